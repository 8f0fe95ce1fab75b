"""One training run from settings to result.json."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from podsrl.evaluate import Evaluation, evaluate
from podsrl.models import load_model, load_tokenizer
from podsrl.progress import progress_bar
from podsrl.runs.boundary import (
    NothingToTrain,
    StepBoundary,
    StopBeforeStep,
    TrainingFailed,
    failure,
    in_words,
)
from podsrl.runs.callbacks import MetricsFile, StepProgress, StopAndSave, anyone_stopped
from podsrl.runs.card import write_cards
from podsrl.runs.changes import ApplyChanges
from podsrl.runs.checkpoints import step_of
from podsrl.runs.claims import held
from podsrl.runs.clock import TrainingClock
from podsrl.runs.deadline import in_time, pace_of_processes
from podsrl.runs.evaluations import CURVE, EvaluationCurve
from podsrl.runs.folder import (
    METRICS,
    RUN_FILES,
    is_json,
    retire_result,
    settings_of,
    write_json,
    write_settings,
)
from podsrl.runs.json_lines import read_lines
from podsrl.runs.predicted import likely_rows
from podsrl.runs.prepare import Run, check_options, fit_to_task, load_questions, prepare_run
from podsrl.runs.result import describe, plot_run, result_of
from podsrl.runs.rollout_log import FILE_NAME, attach_log
from podsrl.runs.saving import save_trained, trained_model
from podsrl.runs.stop import Stop
from podsrl.runs.turns import experimental_environments
from podsrl.runs.unanimous import DEFAULT_STOP, StopUnanimous
from podsrl.tasks.base import Row
from podsrl.tasks.majority import MAJORITY
from podsrl.tasks.prompts import fit_prompts
from podsrl.tasks.questions import prompts_of
from podsrl.tasks.turns import tools_of
from podsrl.trl.play import check_tools
from podsrl.trl.trainer import PODSTrainer

__all__ = [
    "Run",
    "TrainingFailed",
    "check_options",
    "describe",
    "fit_to_task",
    "load_questions",
    "prepare_run",
    "run_training",
]

LOGS = (METRICS, CURVE, FILE_NAME)
# What a model, an accelerator or PODSTrainer says of settings that do not fit: still a mistake in
# the input, as no step has been made of them.
MISTAKES = (ValueError, OSError, NotImplementedError)


def run_training(run: Run, stop: Stop | None = None) -> dict[str, Any] | None:
    """Evaluate, train, save, evaluate again; returns what result.json holds, None if stopped.

    A stopped run has a checkpoint to go on from if it has finished a step. stop: what the process
    is told by signals, from the moment that the caller chose.

    Raises: `ValueError` and `OSError` for what only loading could find; a new run leaves nothing
    behind then. `Stopped` where nothing is lost by it. `TrainingFailed` for everything that ends
    training itself, after what could be saved was saved.
    """
    stop = stop or Stop()
    with held(run.claim):
        try:
            with stop.at_once():
                trainer, tokenizer, boundary, clock = _load(run, stop)
        except MISTAKES as error:
            _leave_nothing(run)
            raise ValueError(in_words(error, run.folder, named=False)) from error
        except KeyboardInterrupt:
            _leave_nothing(run)
            raise
        try:
            _train(run, trainer)
            return _finish(run, trainer, tokenizer, clock, stop)
        except (Exception, SystemExit) as error:  # a reward function may exit, too
            failed = failure(error, boundary, run.folder)
            _leave_nothing(run, boundary.step)
            raise failed from error
        except KeyboardInterrupt:
            _leave_nothing(run, boundary.step)
            raise


def _load(run: Run, stop: Stop) -> tuple[PODSTrainer, Any, StepBoundary, TrainingClock]:
    """Load model and trainer, write what is run, and evaluate before the first step."""
    main, clock = PartialState().is_main_process, TrainingClock(run.arguments.training_seconds)
    tokenizer = load_tokenizer(run.arguments.model)
    model = load_model(
        run.arguments.model,
        dtype=run.model_config.dtype or "float32",
        **_model_options(run.model_config),
    )
    check_tools(tokenizer, run.task)
    rows = likely_rows(run, _fitting_rows(run, model, tokenizer))
    _check_logs(run)
    if main:
        _write_settings(run)
        if not run.draws_curve and not is_json(run.folder / "before" / "evaluation.json"):
            with clock.beside("evaluation"):  # a resumed run has it already
                _evaluate(run, model, tokenizer, "before")
    PartialState().wait_for_everyone()
    trainer, boundary = _build_trainer(run, rows, model, tokenizer, clock, stop)
    return trainer, tokenizer, boundary, clock


def _check_logs(run: Run) -> None:
    """Refuse to go on with files that only the end of the run would stumble over."""
    if run.checkpoint is None:
        return
    for name in LOGS:
        for _ in read_lines(run.folder / name):
            pass
    before = run.folder / "before" / "evaluation.json"
    if run.draws_curve and before.exists() and not is_json(before):
        raise ValueError(
            f"{before} is damaged: remove it, and result.json goes without that accuracy"
        )


def _fitting_rows(run: Run, model: Any, tokenizer: Any) -> Sequence[Row]:
    """The run's questions without those that leave the model no room to answer, or a refusal.

    `run.rows` stays as it is: checkpoints have its digest, which a resumed run compares.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return run.rows
    rows, num_dropped = fit_prompts(
        run.rows,
        tokenizer,
        context=context,
        max_new_tokens=run.config.max_completion_length or 0,
        policy=run.arguments.long_prompts,
        tools=run.task.environment and tools_of(run.task.environment()),
    )
    if num_dropped:
        run.console.print(f"{num_dropped} questions are too long for the model and left out")
    return rows


def _write_settings(run: Run) -> None:
    from_step = 0 if run.checkpoint is None else step_of(Path(run.checkpoint))
    settings = settings_of(run.model_config, run.config, run.arguments)
    write_settings(
        run.folder, settings, run.config.device, changes=run.changes, from_step=from_step
    )


def _leave_nothing(run: Run, num_steps: int = 0) -> None:
    """Remove what a run without a step has written, so that the corrected one gets its folder."""
    if run.checkpoint is not None or num_steps or not PartialState().is_main_process:
        return
    for name in (*RUN_FILES, "versions.json", "README.md"):
        path = run.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    others = [path for path in run.folder.glob("*") if not path.name.startswith("claim-")]
    if run.claim is not None and not others:
        shutil.rmtree(run.folder, ignore_errors=True)


def _train(run: Run, trainer: PODSTrainer) -> None:
    if run.checkpoint is not None:
        retire_result(run.folder)
    try:
        trainer.train(resume_from_checkpoint=run.checkpoint)
    except NothingToTrain:
        return


def _finish(
    run: Run, trainer: PODSTrainer, tokenizer: Any, clock: TrainingClock, stop: Stop
) -> dict[str, Any] | None:
    """Save the model, evaluate it, write the result; None where training was told to stop."""
    if anyone_stopped(stop):
        return None
    main, steps = PartialState().is_main_process, trainer.state.global_step
    if run.arguments.save_model:
        with clock.beside("saving"):
            save_trained(run, trainer, tokenizer)
    if not main:
        return {}
    if not run.draws_curve:
        with clock.beside("evaluation"), stop.at_once():
            _evaluate(run, trained_model(run, trainer), tokenizer, "after")
    named = {"task": run.task.name, "model": run.arguments.model}
    result = result_of(run.folder, run.config, steps, clock, **named)
    if run.arguments.save_model:
        write_cards(run, result)
    write_json(run.folder / "result.json", result)
    plot_run(run.folder, steps, run.console.print)
    if run.config.save_strategy == "no":  # it was kept for this end alone
        shutil.rmtree(run.folder / f"checkpoint-{steps}", ignore_errors=True)
    return result


def _model_options(model_config: ModelConfig) -> dict[str, Any]:
    options = {
        "attn_implementation": model_config.attn_implementation,
        "quantization_config": get_quantization_config(model_config),
    }
    return {name: value for name, value in options.items() if value is not None}


def _build_trainer(
    run: Run, rows: Sequence[Row], model: Any, tokenizer: Any, clock: TrainingClock, stop: Stop
) -> tuple[PODSTrainer, StepBoundary]:
    run.config.disable_tqdm = True
    run.config.write_run = False  # the trainer need not: what a run writes is written here
    limit, pace = run.arguments.reward_timeout_seconds, pace_of_processes()
    with experimental_environments():
        trainer = PODSTrainer(
            model=model,
            reward_funcs=[in_time(each, limit, pace) for each in run.task.reward_funcs.values()],
            args=run.config,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            peft_config=get_peft_config(run.model_config),
            environment_factory=run.task.environment,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    about = {"task": run.task.name, "model": run.arguments.model, **prompts_of(run.arguments)}
    attach_log(trainer, run.folder, run.arguments.log_rollouts, about=about)
    # In this order: the clock knows the end, the boundary saves it, an evaluation is broken off by
    # a stop, which counts in the same step, and a resumed run finds last that nothing is left.
    clock.attach(trainer)
    boundary = StepBoundary(
        trainer,
        clock,
        saves_end=run.outlasts_training,
        about=run.origin,
    )
    callbacks: list[Any] = [boundary, ApplyChanges(run.changes)]
    if run.draws_curve:
        callbacks.append(
            EvaluationCurve(
                trainer,
                clock,
                task=run.task,
                arguments=run.arguments,
                folder=run.folder,
                stop=stop,
            )
        )
    callbacks += [StopAndSave(stop), MetricsFile(run.folder), StopBeforeStep(boundary)]
    if PartialState().is_main_process:
        callbacks.append(StepProgress(run.console, clock))
    if MAJORITY in run.task.reward_funcs:
        callbacks.append(StopUnanimous(run.arguments.majority_stop or DEFAULT_STOP))
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer, boundary


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
