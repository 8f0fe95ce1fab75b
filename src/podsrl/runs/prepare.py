"""A run before anything expensive is loaded: its settings checked, its folder its own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from trl import ModelConfig

from podsrl.extras import need
from podsrl.models import resolve_model
from podsrl.plugins import PROBE, digests
from podsrl.probe.reward import answer_head
from podsrl.runs.callbacks import is_of_worker
from podsrl.runs.changes import ENDS, FIXED, Changes, changed_settings, fingerprints, told
from podsrl.runs.checkpoints import (
    newest_whole,
    num_processes_of,
    read_manifest,
    step_of,
)
from podsrl.runs.checks import check_output, check_reporters
from podsrl.runs.claims import Claim, forget_claims, owner, try_claim
from podsrl.runs.folder import read_json, settings_of
from podsrl.runs.place import from_main_process, new_folder
from podsrl.runs.predicted import prompt_head
from podsrl.runs.settings import EVALUATE_EVERY, RunArguments, check_clock
from podsrl.runs.turns import fit_to_turns
from podsrl.tasks import Task
from podsrl.tasks.questions import as_rewarded, named_task, try_held_out, with_answers
from podsrl.trl.behaviours_checks import num_followers
from podsrl.trl.config import PODSConfig
from podsrl.trl.reward_checks import check_rewards

NEW_RUN = "name the run's folder with --output_dir, or leave --resume out to start anew"


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
    finished: bool = False
    """Whether all of it was done before: then there is nothing to run."""
    changes: Changes = field(default_factory=dict)
    """Settings of which it goes on otherwise than before."""
    claim: Claim | None = None

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def draws_curve(self) -> bool:
        """Whether training evaluates as it goes, before its first and after its last step too."""
        return any(getattr(self.arguments, name) is not None for name in EVALUATE_EVERY)

    @property
    def outlasts_training(self) -> bool:
        """Whether something is left to do after the last step, which a kill could cut off."""
        return self.arguments.save_model or self.arguments.evaluate_limit > 0

    @property
    def origin(self) -> dict[str, Any]:
        """What its checkpoints say they were made of: digests of the questions and of own code."""
        return {"questions": fingerprints(self.rows)[0], "own_code": own_code(self)}


def prepare_run(
    arguments: RunArguments, config: PODSConfig, model_config: ModelConfig, console: Console
) -> Run:
    """Check settings, task, data, model name and folder before anything expensive is loaded.

    The folder is this process's from here on: a new one, or with `resume` the run's own.

    Raises `ValueError` naming what is wrong; nothing has been written by then.
    """
    task, rows = check_run(arguments, config, model_config)
    run = Run(arguments, config, model_config, task, rows, None, console)
    place = from_main_process(lambda: _going_on(run) if arguments.resume else _new_place(run))
    config.output_dir = str(place.folder)
    run.checkpoint = None if place.checkpoint is None else str(place.checkpoint)
    run.finished, run.changes = place.finished, place.changes
    run.claim = place.claim if PartialState().is_main_process else None
    console.quiet = console.quiet or not PartialState().is_main_process
    for line in place.notes:
        console.print(line, soft_wrap=True, highlight=False)
    return run


def check_run(
    arguments: RunArguments, config: PODSConfig, model_config: ModelConfig
) -> tuple[Task, list[dict[str, Any]]]:
    """Return the task and its training rows, everything checked that takes no model.

    Raises `ValueError` naming what is wrong; nothing is written.
    """
    check_options(arguments, config, model_config)
    task, rows = load_questions(arguments, config.seed)
    fit_to_task(config, task, len(rows))
    return task, rows


def fit_to_task(config: PODSConfig, task: Task, num_questions: int) -> None:
    """Fill in the weights and bounds of the task's rewards; `ValueError` for what does not fit."""
    fit_to_turns(config, task)
    names = list(task.reward_funcs)
    if config.reward_weights is None:
        config.reward_weights = [task.reward_weights[name] for name in names]
    elif len(config.reward_weights) != len(names):
        raise ValueError(
            f"reward_weights has {len(config.reward_weights)} numbers, but {task.name} has "
            f"{len(names)} rewards ({', '.join(names)}): give one for each"
        )
    check_rewards(config, task.reward_funcs)
    needs_bounds = config.early_stop or (config.sampling_rounds and task.has_bounds())
    if needs_bounds and config.reward_bounds is None:
        config.reward_bounds = list(task.bounds(config.reward_weights))
    assert config.generation_batch_size is not None
    num_prompts = config.generation_batch_size // config.num_generations
    if num_questions < num_prompts:
        raise ValueError(
            f"a generation batch takes {num_prompts} prompts, but {task.name} has {num_questions} "
            "training questions: raise train_limit or give more data, or lower "
            "per_device_train_batch_size"
        )


def check_options(arguments: RunArguments, config: PODSConfig, model_config: ModelConfig) -> None:
    """Check what takes no loading: the clock, the folder, that there is such a model.

    Raises `ValueError` naming what is wrong.
    """
    check_clock(arguments, config)
    if not config.write_run:
        raise ValueError(
            "write_run is false, but a run of podsrl train is its folder: leave it out, or train "
            "with PODSTrainer in Python"
        )
    check_reporters(config.report_to)
    check_output(Path(config.output_dir))
    if model_config.use_peft:
        need("peft", "use_peft")
    elif num_followers(config):
        raise ValueError(
            "follower_entropy needs LoRA, as followers are adapters on the base of the policy: set "
            "use_peft: true, or leave follower_entropy out"
        )
    if arguments.prompt_probe is not None:
        prompt_head(arguments.prompt_probe)
    if config.rbrm_head is not None:
        answer_head(config.rbrm_head, f"rbrm_head {config.rbrm_head}")
    arguments.model = model_config.model_name_or_path or arguments.model
    resolve_model(arguments.model)


def load_questions(arguments: RunArguments, seed: int) -> tuple[Task, list[dict[str, Any]]]:
    """Return the task and its training rows, having looked at the held-out ones, too.

    Raises `ValueError` for a task, option or data that is not there, and for a reward function
    that fails.
    """
    plain = named_task(arguments, seed=seed)
    rows = plain.rows("train", arguments.train_limit)
    task = as_rewarded(plain, arguments, rows)
    if arguments.evaluate_limit:
        held_out = with_answers(plain.rows("test", arguments.evaluate_limit), "test")
        if held_out[0].keys() != rows[0].keys():
            try_held_out(plain, arguments, held_out)
    return task, rows


def own_code(run: Run) -> dict[str, str]:
    """The user's files that a run is made with, by name, and their digests."""
    arguments = run.arguments
    references = [*(arguments.reward_funcs or ()), *(arguments.plugins or ())]
    heads = [PROBE + each for each in (arguments.prompt_probe, run.config.rbrm_head) if each]
    return digests([*references, arguments.grader or "", *heads])


@dataclass
class _Place:
    """Where a run goes on, the same on all processes."""

    folder: Path
    checkpoint: Path | None = None
    finished: bool = False
    changes: Changes = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    claim: Claim | None = None


def _new_place(run: Run) -> _Place:
    folder, claim = new_folder(run.folder)
    return _Place(folder, claim=claim)


def _going_on(run: Run) -> _Place:
    folder = run.folder
    if not folder.is_dir():
        raise ValueError(f"--resume: {folder} holds no checkpoint: {NEW_RUN}")
    if is_of_worker():
        return _resumed(run, None)
    claim = try_claim(folder)
    if claim is None:
        raise ValueError(
            f"--resume: {folder} is being trained by {owner(folder)}: wait for its end or stop it"
        )
    try:
        place = _resumed(run, claim)
    except BaseException:
        forget_claims(folder)
        raise
    if place.finished:
        forget_claims(folder)
    return place


def _resumed(run: Run, claim: Claim | None) -> _Place:
    folder = run.folder
    settings = settings_of(run.model_config, run.config, run.arguments)
    old = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if _is_finished(folder, old, settings):
        return _Place(folder, finished=True)
    checkpoint, skipped = newest_whole(folder)
    if checkpoint is None:
        raise ValueError(_no_checkpoint(run, skipped))
    changes = changed_settings(old, settings) | _other_circumstances(run, checkpoint)
    if fixed := {name: changes[name] for name in changes if name in FIXED}:
        raise ValueError(
            f"--resume: {told(fixed)}, but the checkpoints of {folder} hold the former: undo the "
            "change, or start anew"
        )
    if changes and not run.arguments.resume_with_changes:
        raise ValueError(
            f"--resume: {folder} was trained otherwise: {told(changes)}; undo the change, or go on "
            f"with it from step {step_of(checkpoint)} by --resume_with_changes"
        )
    notes = [f"{', '.join(skipped)}; going on from {checkpoint.name}"] if skipped else []
    return _Place(folder, checkpoint, changes=changes, notes=notes, claim=claim)


def _is_finished(folder: Path, old: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether the run has its result, and its end was not put off since."""
    if not (folder / "result.json").is_file():
        return False
    if any(old.get(name) != settings[name] for name in (*ENDS, "training_seconds")):
        return read_json(folder / "result.json").get("steps", 0) >= settings["max_steps"] > 0
    return True


def _no_checkpoint(run: Run, skipped: list[str]) -> str:
    folder = run.folder
    if skipped:
        return (
            f"--resume: no checkpoint in {folder} is whole ({', '.join(skipped)}): leave --resume "
            "out to start anew"
        )
    if (folder / "result.json").is_file():
        return (
            f"--resume: {folder} is finished and kept no checkpoint to train on from: start anew, "
            "with save_strategy steps where a run is to be prolonged"
        )
    return f"--resume: {folder} holds no checkpoint: {NEW_RUN}"


def _other_circumstances(run: Run, checkpoint: Path) -> Changes:
    """What makes another run of equal settings: other questions, another number of processes."""
    before, now = num_processes_of(checkpoint), PartialState().num_processes
    changes: Changes = {} if before == now else {"number of processes": [before, now]}
    questions = read_manifest(checkpoint).get("questions")
    if questions is not None and questions not in (found := fingerprints(run.rows)):
        changes["questions (SHA-256)"] = [questions[:8], found[0][:8]]
    code = read_manifest(checkpoint).get("own_code") or {}
    for name, digest in own_code(run).items():
        if name in code and code[name] != digest:
            changes[f"{name} (SHA-256)"] = [code[name][:8], digest[:8]]
    return changes
