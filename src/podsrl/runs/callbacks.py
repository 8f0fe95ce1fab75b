"""Trainer callbacks of a run: metrics on disk, progress on screen, a stop that saves."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from podsrl.runs.clock import TrainingClock
from podsrl.runs.folder import METRICS
from podsrl.runs.json_lines import append_lines, keep_until, read_lines
from podsrl.runs.stop import Stop

logger = logging.getLogger(__name__)

WORKER = "PODSRL_WORKER"
"""Environment variable: the process without which this run, its child, must not go on."""


def is_of_worker() -> bool:
    """Whether a living worker of a comparison started this process; the claim is then its own."""
    return os.environ.get(WORKER) == str(os.getppid())


class MetricsFile(TrainerCallback):
    """Appends one line per logged step to metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.is_world_process_zero:
            path = self.folder / METRICS
            keep_until(path, state.global_step)
            last = max((row["step"] for row in read_lines(path)), default=0)
            if args.logging_strategy == "steps" and state.global_step - last >= state.logging_steps:
                logger.warning(
                    "%s has no rows of steps %d to %d: it was damaged, removed or not written",
                    path,
                    last + 1,
                    state.global_step,
                )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        append_lines(self.folder / METRICS, [{"step": state.global_step, **logs}])


class StepProgress(TrainerCallback):
    """A bar with reward, kept variance, dead groups and time left; lines without a terminal.

    It counts steps or, where the clock has a budget, seconds of training; the clock must be among
    the trainer's callbacks before this one.
    """

    def __init__(self, console: Console, clock: TrainingClock) -> None:
        self.console, self.clock = console, clock
        self.bar = Progress(
            TextColumn("step" if clock.budget_seconds is None else "seconds"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.start, self.first_step = 0.0, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.start, self.first_step = time.perf_counter(), state.global_step
        self.bar.start()
        done, total = self._progress(state)
        self.task = self.bar.add_task("", total=total, completed=done)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.bar.stop()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar.update(self.task, completed=self._progress(state)[0])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        text = self._describe(state, logs)
        done, total = self._progress(state)
        self.bar.update(self.task, completed=done, description=text)
        if not self.console.is_terminal:
            where = f"step {state.global_step}/{state.max_steps}"
            if self.clock.budget_seconds is not None:
                where = f"step {state.global_step}, {done} of {total} s"
            self.console.print(f"{where}  {text}", soft_wrap=True)

    def _progress(self, state: TrainerState) -> tuple[int, int]:
        if self.clock.budget_seconds is None:
            return state.global_step, state.max_steps
        return round(self.clock.seconds["training"]), round(self.clock.budget_seconds)

    def _describe(self, state: TrainerState, logs: dict[str, Any]) -> str:
        seconds = (time.perf_counter() - self.start) / (state.global_step - self.first_step)
        left = seconds * (state.max_steps - state.global_step)
        if self.clock.budget_seconds is not None:
            left = max(0.0, self.clock.budget_seconds - self.clock.seconds["training"])
        shown = "  ".join(f"{name} {value}" for name, value in figures_of(logs).items())
        return f"{shown}  {seconds:.1f} s/step  {left / 60:.1f} min left"


class StopAndSave(TrainerCallback):
    """Ends the run after the step under way, with a checkpoint, when any process was told to stop.

    So does the end of the worker of a comparison that started the run: another may then take it.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if anyone_stopped(self.stop):
            control.should_save = control.should_training_stop = True
        return control


def anyone_stopped(stop: Stop) -> bool:
    """Whether a process was told to stop: all end after the same step, whoever heard first."""
    state = PartialState()
    if WORKER in os.environ and not is_of_worker():  # it has ended, and we were handed on
        stop.asked = True
    if state.num_processes > 1:
        told = torch.tensor(float(stop.asked), device=state.device)
        stop.asked = bool(reduce(told, reduction="sum").item())
    return stop.asked


def figures_of(logs: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a logged step, name -> number in words; "-" for what was not measured.

    Example: {"reward": 0.25} gives reward "0.250", kept variance "-", dead groups "-".
    """
    dead = logs.get("pods/frac_kept_zero_variance")
    return {
        "reward": _number(logs.get("reward")),
        "kept variance": _number(logs.get("pods/kept_reward_variance")),
        "dead groups": "-" if dead is None else f"{100 * dead:.0f} %",
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
