"""Evaluations at equal training seconds, or at equal steps, into curve.jsonl.

By seconds one row per mark (0, E, 2E, ..., the budget), measured at the end of the first step past
it; by steps one row at 0, E, 2E, ... and at the last:

mark_seconds       the mark; null where a run without budget, or at max_steps, ended between marks,
                   and by steps, where `step` says all
training_seconds   on the training clock, at that step's end
step               optimizer steps done
accuracy, format_rate, both_rate   shares of the held-out questions, greedy; null without format
mean_length, frac_cut_off          tokens per answer; share cut off by the length limit
reward, kept_reward                mean over all n and over the kept m, of the steps since the
                                   row before; null at 0
wall_seconds       since the run began to load, everything included
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from podsrl.evaluate import Evaluation, evaluate
from podsrl.runs.clock import TrainingClock
from podsrl.runs.json_lines import append_lines, keep_until, read_lines
from podsrl.runs.settings import EVALUATE_EVERY, RunArguments
from podsrl.runs.stop import Stop, Stopped
from podsrl.tasks import Task
from podsrl.trl.sampling import autocast_dtype, unwrapped_policy

CURVE = "curve.jsonl"
REWARDS = {"reward": "reward", "kept_reward": "pods/kept_reward_mean"}


def marks_passed(
    before: float, after: float, every: float, budget: float | None = None
) -> list[float]:
    """The marks in (before, after]: multiples of `every` below the budget, and the budget itself.

    Example: from 14 to 31 with every=15 are 15 and 30; with budget=20, 15 and 20.
    """
    end = math.inf if budget is None else budget
    first, last = math.floor(before / every) + 1, math.floor(after / every)
    marks = [k * every for k in range(first, last + 1) if before < k * every < end]
    return marks + ([end] if before < end <= after else [])


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Give python's, numpy's and torch's generators back as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)


class EvaluationCurve(TrainerCallback, ExportableState):
    """Evaluates the policy at marks of the training clock or at steps; training does not notice.

    The weights, the model's mode and all random states are left as they were, and the seconds are
    counted as evaluation. With several processes the main one evaluates and the others wait.
    `before/` and `after/` of the run folder receive the answers of the first and last evaluation.
    The last one comes when the last step's checkpoint is saved. A signal to stop breaks an
    evaluation off; a resumed run makes it up, with the weights that it was meant for.

    clock: must be among the trainer's callbacks, before this one.
    Raises `ValueError` where the weights are sharded over processes by FSDP.
    """

    def __init__(
        self,
        trainer: Any,
        clock: TrainingClock,
        *,
        task: Task,
        arguments: RunArguments,
        folder: Path,
        stop: Stop | None = None,
    ) -> None:
        every = {name: getattr(arguments, name) for name in EVALUATE_EVERY}
        ((name, self.every),) = ((k, v) for k, v in every.items() if v is not None)
        if trainer.is_fsdp_enabled:
            raise ValueError(f"{name} does not work with FSDP: leave it out, or use DDP or ZeRO")
        self.by_steps = name == "evaluate_every_steps"
        self.trainer, self.clock = trainer, clock
        self.task, self.arguments, self.folder = task, arguments, folder
        self.stop = stop or Stop()
        self.measured_seconds, self.measured_steps = 0.0, 0  # all marks up to here have their row
        self.rewards: dict[str, list[float]] = {name: [] for name in REWARDS}
        self._num_seen: dict[str, int] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step and isinstance(saved, dict):
            attributes = saved["attributes"]
            self.rewards = attributes["rewards"]
            seconds = self.clock.seconds["training"]
            self.measured_seconds = attributes.get("measured_seconds", seconds)
            self.measured_steps = attributes.get("measured_steps", state.global_step)
        if PartialState().is_main_process:
            keep_until(self.folder / CURVE, state.global_step)
        if not state.global_step:
            self._measure(state, [None if self.by_steps else 0.0], "before")
            return
        has_row, has_answers = self._found(state.global_step)
        if has_row:  # written after the checkpoint was
            self._now_measured(state)
        ends = self.clock.spent or state.global_step >= state.max_steps
        self._measure_due(state, is_last=ends and not (has_row and has_answers))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        metrics = self.trainer._metrics["train"]
        self._num_seen = {name: len(metrics[key]) for name, key in REWARDS.items()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        metrics = self.trainer._metrics["train"]
        for name, key in REWARDS.items():
            self.rewards[name] += metrics[key][self._num_seen[name] :]
        if not (self.clock.spent or state.global_step >= state.max_steps):
            self._measure_due(state, is_last=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.clock.spent or state.global_step >= state.max_steps:
            self._measure_due(state, is_last=True)

    def state(self) -> dict[str, Any]:
        names = ("rewards", "measured_seconds", "measured_steps")
        attributes = {name: getattr(self, name) for name in names}
        return {"args": {}, "attributes": attributes}

    def _found(self, step: int) -> tuple[bool, bool]:
        """Whether a row of this step, and the answers of a last evaluation, are there already."""
        rows = read_curve(self.folder) if PartialState().is_main_process else []
        found = [bool(rows) and rows[-1]["step"] == step, (self.folder / "after").is_dir()]
        if PartialState().num_processes > 1:
            broadcast_object_list(found)
        return found[0], found[1]

    def _measure_due(self, state: TrainerState, *, is_last: bool) -> None:
        """Evaluate if marks have been passed since the last row, and where the run ends."""
        passed = self._marks_passed(state)
        if passed or is_last:
            self._measure(state, passed or [None], "after" if is_last else None)

    def _marks_passed(self, state: TrainerState) -> list[float | None]:
        """The marks since the last row; by steps, None for a row without a mark of the clock."""
        if self.by_steps:
            due = marks_passed(self.measured_steps, state.global_step, self.every)
            return [None] if due else []
        now, budget = self.clock.seconds["training"], self.clock.budget_seconds
        return [*marks_passed(self.measured_seconds, now, self.every, budget)]

    def _now_measured(self, state: TrainerState) -> None:
        self.measured_seconds = self.clock.seconds["training"]
        self.measured_steps = state.global_step

    def _measure(self, state: TrainerState, marks: list[Any], folder: str | None) -> None:
        """Evaluate once, and write a row for each mark that this step has passed."""
        done = True
        with self.clock.beside("evaluation"), untouched_random_state(), self._policy() as model:
            if PartialState().is_main_process:
                done = self._write(model, state, marks, folder)
            PartialState().wait_for_everyone()
        if done:
            self._now_measured(state)
            self.rewards = {name: [] for name in REWARDS}

    def _write(self, model: Any, state: TrainerState, marks: list[Any], folder: str | None) -> bool:
        """Evaluate and add the rows; False when a signal broke it off, which costs no step."""
        try:
            with self.stop.at_once():
                evaluation = self._evaluate(model, folder)
        except Stopped:
            if not state.global_step:
                raise
            return False
        row = self._row(evaluation, state.global_step)
        append_lines(self.folder / CURVE, [{"mark_seconds": mark, **row} for mark in marks])
        return True

    @contextmanager
    def _policy(self) -> Iterator[Any]:
        """The model as sampling in training sees it: unwrapped, and in its precision."""
        trainer = self.trainer
        dtype = autocast_dtype(trainer)
        with (
            unwrapped_policy(trainer) as model,
            torch.autocast(trainer.accelerator.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            yield model

    def _evaluate(self, model: Any, folder: str | None) -> Evaluation:
        evaluation = evaluate(
            model,
            self.trainer.processing_class,
            self.task,
            limit=self.arguments.evaluate_limit,
            num_samples=self.arguments.evaluate_samples if folder else 0,
            max_new_tokens=self.trainer.args.max_completion_length,
            seed=self.trainer.args.seed,
        )
        if folder:
            evaluation.save(self.folder / folder)
        return evaluation

    def _row(self, evaluation: Evaluation, step: int) -> dict[str, Any]:
        return {
            "training_seconds": self.clock.seconds["training"],
            "step": step,
            **curve_figures(evaluation, has_format=self.task.has_format),
            **{name: mean_or_none(values) for name, values in self.rewards.items()},
            "wall_seconds": self.clock.wall_seconds(),
        }


def curve_figures(evaluation: Evaluation, *, has_format: bool) -> dict[str, float | None]:
    """The figures of a curve's row, from greedy answers.

    Example: right and in format, right only, in format only, neither: accuracy 0.5, format_rate
    0.5, both_rate 0.25.
    """
    answers = [problem["greedy"] for problem in evaluation.problems]
    both = [float(bool(a["correct"]) and a["keeps_format"]) for a in answers]
    summary = evaluation.summary
    return {
        "accuracy": summary["accuracy_greedy"]["value"],
        "format_rate": summary["format_rate"]["value"] if has_format else None,
        "both_rate": mean_or_none(both) if has_format else None,
        "mean_length": summary["mean_length"]["value"],
        "frac_cut_off": summary["truncated_share"]["value"],
    }


def mean_or_none(values: list[float]) -> float | None:
    """The mean of the values that are numbers; None without any."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else None


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The rows of curve.jsonl in order, without one that is being written; empty without file."""
    return list(read_lines(folder / CURVE))
