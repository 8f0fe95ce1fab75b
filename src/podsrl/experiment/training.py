"""One training run from settings to result.json."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.console import Console
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config, get_quantization_config

from podsrl.config import PODSConfig
from podsrl.evaluate import Evaluation, evaluate
from podsrl.experiment.callbacks import MetricsFile, StepProgress, StopAndSave
from podsrl.experiment.plot import plot_curve
from podsrl.experiment.run_folder import (
    device_name,
    free_folder,
    phase_seconds,
    read_json,
    read_metrics,
    settings_of,
    versions,
    write_json,
)
from podsrl.models import DEFAULT_MODEL, load_model, load_tokenizer, resolve_model
from podsrl.progress import progress_bar
from podsrl.tasks import Task, load_task
from podsrl.trainer import PODSTrainer


@dataclass
class RunArguments:
    """What a run needs besides PODSConfig and the model's own options."""

    task: str = field(
        default="arithmetic",
        metadata={"help": "arithmetic, gsm8k, math, amc23, reasoning_gym:<name> or jsonl:<path>."},
    )
    task_arguments: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the task, as a YAML mapping or JSON text."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder or file with the task's data, instead of the hub."}
    )
    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": f"Hub id, local folder, or {DEFAULT_MODEL} (packaged)."},
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Use only this many training questions."}
    )
    evaluate_limit: int = field(
        default=256,
        metadata={"help": "Held-out questions of the evaluation before and after; 0 for none."},
    )
    evaluate_samples: int = field(
        default=0, metadata={"help": "Sampled answers per held-out question, besides the greedy."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint in --output_dir."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.task_arguments, str):
            self.task_arguments = json.loads(self.task_arguments)
        if not isinstance(self.task_arguments, dict | None):
            raise ValueError(
                f"task_arguments is {self.task_arguments!r}: write a mapping, as in "
                "--task_arguments '{\"num_test\": 512}'"
            )
        if self.evaluate_limit < 0:
            raise ValueError(f"evaluate_limit is {self.evaluate_limit}: it must be 0 or more")
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit is {self.train_limit}: it must be at least 1")


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


def prepare_run(
    arguments: RunArguments, config: PODSConfig, model_config: ModelConfig, console: Console
) -> Run:
    """Check task, data, model name and folder before anything expensive is loaded.

    Raises `ValueError` naming what is wrong; nothing has been written by then.
    """
    arguments.model = model_config.model_name_or_path or arguments.model
    resolve_model(arguments.model)
    options = arguments.task_arguments or {}
    assert isinstance(options, dict)
    task = load_task(arguments.task, data=arguments.data, seed=config.seed, **options)
    rows = task.rows("train", arguments.train_limit)
    if arguments.evaluate_limit:
        task.rows("test", arguments.evaluate_limit)
    if config.reward_weights is None:
        config.reward_weights = [task.reward_weights[name] for name in task.reward_funcs]
    checkpoint = _prepare_folder(arguments, config)
    return Run(arguments, config, model_config, task, rows, checkpoint, console)


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
    main, start = PartialState().is_main_process, time.perf_counter()
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
        if not (run.folder / "before" / "evaluation.json").exists():  # a resumed run has it
            _evaluate(run, model, tokenizer, "before")
    PartialState().wait_for_everyone()
    trainer, stop = _build_trainer(run, model, tokenizer)
    trainer.train(resume_from_checkpoint=run.checkpoint)
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        return None
    _save_model(trainer, run.folder / "model", tokenizer)
    steps = trainer.state.global_step
    if not main:
        return {}
    del trainer, model
    trained = load_model(str(run.folder / "model"), dtype=run.model_config.dtype or "float32")
    _evaluate(run, trained, tokenizer, "after")
    result = _result(run, steps, time.perf_counter() - start)
    write_json(run.folder / "result.json", result)
    _plot(run, steps)
    return result


def _model_options(model_config: ModelConfig) -> dict[str, Any]:
    options = {
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": get_quantization_config(model_config),
    }
    return {name: value for name, value in options.items() if value is not None}


def _build_trainer(run: Run, model: Any, tokenizer: Any) -> tuple[PODSTrainer, StopAndSave]:
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
    stop = StopAndSave(run.console)
    trainer.add_callback(stop)
    trainer.add_callback(MetricsFile(run.folder))
    if PartialState().is_main_process:
        trainer.add_callback(StepProgress(run.console))
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


def _result(run: Run, steps: int, wall_seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "task": run.task.name,
        "model": run.arguments.model,
        "num_rollouts": run.config.num_rollouts,
        "num_generations": run.config.num_generations,
        "selection_rule": run.config.selection_rule,
        "advantage_from": run.config.advantage_from,
        "seed": run.config.seed,
        "steps": steps,
        "seconds": {**phase_seconds(read_metrics(run.folder)), "wall": wall_seconds},
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
