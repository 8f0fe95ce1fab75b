"""One training run from settings to result.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.console import Console
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config, get_quantization_config

from podsrl.evaluate import Evaluation, evaluate
from podsrl.models import load_model, load_tokenizer, resolve_model
from podsrl.progress import progress_bar
from podsrl.runs.callbacks import MetricsFile, StepProgress, StopAndSave
from podsrl.runs.clock import TrainingClock
from podsrl.runs.evaluations import EvaluationCurve
from podsrl.runs.folder import (
    device_name,
    free_folder,
    phase_seconds,
    read_json,
    read_metrics,
    settings_of,
    versions,
    write_json,
)
from podsrl.runs.plot import plot_curve
from podsrl.runs.rollout_log import attach_log
from podsrl.runs.settings import RunArguments, check_clock
from podsrl.tasks import Task, load_task
from podsrl.trl.config import PODSConfig
from podsrl.trl.trainer import PODSTrainer


@dataclass
class Run:
    """A run that has passed all checks that need no model."""

    arguments: RunArguments
    config: PODSConfig
    model_config: ModelConfig
    task: Task
    rows: list[dict[str, Any]]
    checkpoint: str | None
    console: Console

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def draws_curve(self) -> bool:
        """Whether training evaluates as it goes, before its first and after its last step too."""
        return self.arguments.evaluate_every_seconds is not None


def prepare_run(
    arguments: RunArguments, config: PODSConfig, model_config: ModelConfig, console: Console
) -> Run:
    """Check task, data, model name and folder before anything expensive is loaded.

    Raises `ValueError` naming what is wrong; nothing has been written by then.
    """
    check_options(arguments, config, model_config)
    task, rows = load_questions(arguments, config.seed)
    if config.reward_weights is None:
        config.reward_weights = [task.reward_weights[name] for name in task.reward_funcs]
    if config.early_stop and config.reward_bounds is None:
        config.reward_bounds = list(task.bounds(config.reward_weights))
    checkpoint = _prepare_folder(arguments, config)
    return Run(arguments, config, model_config, task, rows, checkpoint, console)


def check_options(arguments: RunArguments, config: PODSConfig, model_config: ModelConfig) -> None:
    """Check what takes no loading: the clock, and that there is such a model.

    Raises `ValueError` naming what is wrong.
    """
    check_clock(arguments, config)
    arguments.model = model_config.model_name_or_path or arguments.model
    resolve_model(arguments.model)


def load_questions(arguments: RunArguments, seed: int) -> tuple[Task, list[dict[str, Any]]]:
    """Return the task and its training rows, having looked at the held-out ones, too.

    Raises `ValueError` for a task, option or data that is not there.
    """
    options = arguments.task_arguments or {}
    assert isinstance(options, dict)
    task = load_task(arguments.task, data=arguments.data, seed=seed, **options)
    rows = task.rows("train", arguments.train_limit)
    if arguments.evaluate_limit:
        task.rows("test", arguments.evaluate_limit)
    return task, rows


def _prepare_folder(arguments: RunArguments, config: PODSConfig) -> str | None:
    """Pick the run folder, the same on all processes, and the checkpoint to go on from."""
    wanted = Path(config.output_dir)
    if arguments.resume:
        checkpoint = get_last_checkpoint(str(wanted)) if wanted.is_dir() else None
        if checkpoint is None:
            raise ValueError(
                f"--resume: {wanted} holds no checkpoint. Name the run's folder with --output_dir, "
                "or leave --resume out to start anew."
            )
        return checkpoint
    chosen = [str(free_folder(wanted))]
    if PartialState().num_processes > 1:
        broadcast_object_list(chosen)
    config.output_dir = chosen[0]
    return None


def run_training(run: Run) -> dict[str, Any] | None:
    """Evaluate, train, save, evaluate again; returns what result.json holds, None if stopped."""
    main, clock = PartialState().is_main_process, TrainingClock(run.arguments.training_seconds)
    tokenizer = load_tokenizer(run.arguments.model)
    model = load_model(
        run.arguments.model,
        dtype=run.model_config.dtype or "float32",
        **_model_options(run.model_config),
    )
    if main:
        write_json(
            run.folder / "config.json", settings_of(run.model_config, run.config, run.arguments)
        )
        write_json(run.folder / "versions.json", versions(device_name(run.config.device)))
        if not run.draws_curve and not (run.folder / "before" / "evaluation.json").exists():
            with clock.beside("evaluation"):  # a resumed run has it already
                _evaluate(run, model, tokenizer, "before")
    PartialState().wait_for_everyone()
    trainer, stop = _build_trainer(run, model, tokenizer, clock)
    trainer.train(resume_from_checkpoint=run.checkpoint)
    steps = trainer.state.global_step
    if stop.stopped and steps < trainer.state.max_steps and not clock.spent:
        return None
    if run.arguments.save_model:
        with clock.beside("saving"):
            _save_model(trainer, run.folder / "model", tokenizer)
    if not main:
        return {}
    del model
    if not run.draws_curve:
        with clock.beside("evaluation"):
            _evaluate(run, _trained_model(run, trainer), tokenizer, "after")
    result = _result(run, steps, clock)
    write_json(run.folder / "result.json", result)
    _plot(run, steps)
    return result


def _trained_model(run: Run, trainer: PODSTrainer) -> Any:
    """What plain transformers loads from the run's model folder; the policy if it has none."""
    if not run.arguments.save_model:
        return trainer.accelerator.unwrap_model(trainer.model)
    return load_model(str(run.folder / "model"), dtype=run.model_config.dtype or "float32")


def _model_options(model_config: ModelConfig) -> dict[str, Any]:
    options = {
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": get_quantization_config(model_config),
    }
    return {name: value for name, value in options.items() if value is not None}


def _build_trainer(
    run: Run, model: Any, tokenizer: Any, clock: TrainingClock
) -> tuple[PODSTrainer, StopAndSave]:
    run.config.disable_tqdm = True
    trainer = PODSTrainer(
        model=model,
        reward_funcs=list(run.task.reward_funcs.values()),
        args=run.config,
        train_dataset=Dataset.from_list(run.rows),
        processing_class=tokenizer,
        peft_config=get_peft_config(run.model_config),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    about = {"task": run.task.name, "model": run.arguments.model}
    attach_log(trainer, run.folder, run.arguments.log_rollouts, about=about)
    clock.attach(trainer)
    if run.draws_curve:
        trainer.add_callback(
            EvaluationCurve(
                trainer, clock, task=run.task, arguments=run.arguments, folder=run.folder
            )
        )
    stop = StopAndSave(run.console)
    trainer.add_callback(stop)
    trainer.add_callback(MetricsFile(run.folder))
    if PartialState().is_main_process:
        trainer.add_callback(StepProgress(run.console, clock))
    return trainer, stop


def _evaluate(run: Run, model: Any, tokenizer: Any, when: str) -> None:
    """Evaluate into the folder `when` of the run, if the run evaluates at all."""
    if not run.arguments.evaluate_limit:
        return
    with progress_bar(run.console, f"evaluating {when} training") as report:
        evaluation: Evaluation = evaluate(
            model.to(run.config.device),
            tokenizer,
            run.task,
            limit=run.arguments.evaluate_limit,
            num_samples=run.arguments.evaluate_samples,
            max_new_tokens=run.config.max_completion_length,
            seed=run.config.seed,
            progress=report,
        )
    evaluation.save(run.folder / when)
    accuracy = evaluation.summary["accuracy_greedy"]
    run.console.print(f"accuracy {when} training: {describe(accuracy)}")


def describe(interval: dict[str, float]) -> str:
    """A share with its 95 % interval in words: 30.1 % (24.8 to 36.0)."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _save_model(trainer: PODSTrainer, folder: Path, tokenizer: Any) -> None:
    """Save in safetensors that plain transformers loads; adapters are merged into the weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        if trainer.accelerator.is_main_process:
            model.merge_and_unload().save_pretrained(folder)
    else:
        trainer.save_model(str(folder))
    if trainer.accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _result(run: Run, steps: int, clock: TrainingClock) -> dict[str, Any]:
    result: dict[str, Any] = {
        "task": run.task.name,
        "model": run.arguments.model,
        "num_rollouts": run.config.num_rollouts,
        "num_generations": run.config.num_generations,
        "selection_rule": run.config.selection_rule,
        "advantage_from": run.config.advantage_from,
        "seed": run.config.seed,
        "steps": steps,
        "seconds": {
            **phase_seconds(read_metrics(run.folder)),
            **clock.seconds,
            "wall": clock.wall_seconds(),
        },
        "versions": read_json(run.folder / "versions.json"),
    }
    evaluations = {
        when: read_json(run.folder / when / "evaluation.json")
        for when in ("before", "after")
        if (run.folder / when / "evaluation.json").exists()
    }
    result |= evaluations
    if len(evaluations) == 2:
        before, after = (evaluations[when]["accuracy_greedy"] for when in ("before", "after"))
        result["gain_points"] = 100 * (after["value"] - before["value"])
        result["intervals_overlap"] = before["high"] >= after["low"]
    return result


def _plot(run: Run, steps: int) -> None:
    accuracies = {}
    for step, when in ((0, "before"), (steps, "after")):
        path = run.folder / when / "evaluation.json"
        if path.exists():
            accuracies[step] = read_json(path)["accuracy_greedy"]
    plot_curve(read_metrics(run.folder), accuracies, run.folder / "curve.png")
