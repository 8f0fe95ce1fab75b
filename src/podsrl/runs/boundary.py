"""The end of each step: what a checkpoint holds, and what is saved after an error in the next."""

import errno
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from podsrl.runs.checkpoints import fault, newest_whole, write_manifest
from podsrl.runs.clock import TrainingClock
from podsrl.runs.unanimous import NothingToLearn

FULL = (errno.ENOSPC, errno.EDQUOT)
WORDS_OF_FULL = ("No space left", "os error 28", "Disk quota exceeded")


class TrainingFailed(Exception):
    """A run that an error has ended; the text says where, and what is kept of it.

    says_all: whether nobody needs to see a traceback.
    """

    def __init__(self, text: str, *, says_all: bool) -> None:
        super().__init__(text)
        self.says_all = says_all


class NothingToTrain(Exception):
    """Ends `train()` before its first step: all steps were done before, and no more are due."""


class StepBoundary(TrainerCallback):
    """Keeps the random states of the last step's end, and closes each checkpoint with a manifest.

    With `saves_end` the last step saves a checkpoint whatever save_strategy says, so that nothing
    that follows, saving and evaluating, can lose the training. Weights that are not finite are
    never saved: the run ends instead. Its place is after the clock among the callbacks.
    """

    def __init__(
        self, trainer: Any, clock: TrainingClock, *, saves_end: bool, about: dict[str, Any]
    ) -> None:
        self.trainer, self.clock = trainer, clock
        self.saves_end, self.about = saves_end, about
        self.step = 0
        self.in_update = False
        self._random_states = random_states()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.step = state.global_step

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.step == 0:
            self._random_states = random_states()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.in_update = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.step, self.in_update = state.global_step, False
        self._random_states = random_states()
        if self.saves_end and self.at_end(state):
            control.should_save = True
        if control.should_save and not is_finite(self.trainer.model):
            raise FloatingPointError(f"step {self.step} made them so: they are not saved")
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.trainer.accelerator.wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            write_manifest(self.checkpoint(), **self.about)

    def at_end(self, state: TrainerState) -> bool:
        """Whether the last step is done, by number or by the clock."""
        return self.clock.spent or state.global_step >= state.max_steps > 0

    def checkpoint(self) -> Path:
        """Where the checkpoint of the last finished step is, or would be."""
        return Path(self.trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.step}"

    def save_after_error(self) -> str | None:
        """Save the end of the last finished step; None if it is saved, else why it is not.

        Every process writes its part without waiting for the others, which may be dead: only with
        the random states of all of them is the checkpoint whole.
        """
        if self.step == 0:
            return "no step was finished"
        path = self.checkpoint()
        if path.is_dir() and fault(path) is None:
            return None
        if self.in_update:
            return "the weights are those of no step: the error came in the midst of an update"
        if not is_finite(self.trainer.model):
            return "the weights hold NaN or infinity"
        set_random_states(self._random_states)
        try:
            self.trainer._save_checkpoint(self.trainer.model, None)
            if self.trainer.accelerator.num_processes == 1:
                write_manifest(path, **self.about)
        except Exception as error:
            # Half a checkpoint helps nobody, and takes the space of the logs.
            shutil.rmtree(path, ignore_errors=True)
            return f"saving failed, too: {in_words(error, path.parent)}"
        return None


class StopBeforeStep(TrainerCallback):
    """Ends `train()` where a resumed run has no step left; its place is after all that resumes."""

    def __init__(self, boundary: StepBoundary) -> None:
        self.boundary = boundary

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step and self.boundary.at_end(state):
            raise NothingToTrain


def failure(error: BaseException, boundary: StepBoundary, folder: Path) -> TrainingFailed:
    """Save what can be saved after an error in training, and say how the run stands."""
    # Before what was torn is removed, which may make room.
    what, disk_full = in_words(error, folder), is_disk_full(error, folder)
    if not disk_full and not is_finite(boundary.trainer.model):
        what = f"the weights hold NaN or infinity, which a lower learning_rate may avoid ({what})"
    not_saved = boundary.save_after_error()
    newest, _ = newest_whole(folder)
    if newest is None:
        kept = "there is no checkpoint to go on from"
    elif not_saved is None and newest == boundary.checkpoint():
        kept = f"saved in {newest.name}"
    else:
        kept = f"the newest whole one is {newest.name}"
    where = f"step {boundary.step + 1}"
    if boundary.trainer.state.max_steps and boundary.at_end(boundary.trainer.state):
        where = "what follows the last step"
    because = "" if not_saved is None else f"; no checkpoint of it: {not_saved}"
    return TrainingFailed(
        f"{where} failed: {what}; step {boundary.step} was finished{because}; {kept}",
        says_all=disk_full or isinstance(error, NothingToLearn),
    )


def in_words(error: BaseException, folder: Path, *, named: bool = True) -> str:
    """What went wrong in one line, with the error's class; a full disk by its name."""
    if is_disk_full(error, folder):
        free = shutil.disk_usage(folder).free / 2**20
        return (
            f"the disk is full (no space left on device): {free:.0f} MiB are left for {folder}; "
            "free some, then go on"
        )
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if named else text


def is_disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether the error, or one that led to it, came from a disk or quota that is used up.

    torch says of a full disk that a position in its file is not the expected one; so a disk without
    a megabyte left for the folder is one, too.
    """
    if folder.exists() and shutil.disk_usage(folder).free < 2**20:
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(words in str(error) for words in WORDS_OF_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_finite(model: torch.nn.Module) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def random_states() -> tuple[Any, ...]:
    """The states of python's, numpy's and torch's generators."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), numpy.random.get_state(), torch.random.get_rng_state(), devices


def set_random_states(states: tuple[Any, ...]) -> None:
    """Put the generators back to what `random_states` returned."""
    python, arrays, cpu, devices = states
    random.setstate(python)
    numpy.random.set_state(arrays)
    torch.random.set_rng_state(cpu)
    if devices:
        torch.cuda.set_rng_state_all(devices)
