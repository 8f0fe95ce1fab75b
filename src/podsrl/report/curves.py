"""Learning curves of several arms, read from wherever they were written, in one structure.

A *comparison* holds arms; an arm holds runs, one per seed; a run holds its evaluations in order
of training seconds. `podsrl.report.read` fills it. Shares (accuracy, format) are between
0 and 1; times are seconds, or optimizer steps where arms were compared at equal steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from podsrl.runs.step_times import StepTime

Point = dict[str, float | None]
"""One evaluation: `seconds`, `mark` (nominal seconds), `step`, and those of MEASURES it has."""

MEASURES = {
    "accuracy": "answer accuracy",
    "held_out_reward": "mean reward of held-out questions, of runs of PODSTrainer alone",
    "format_rate": "share of answers in the asked format",
    "both_rate": "right answer in the asked format",
    "mean_length": "mean length of an answer, tokens",
    "frac_cut_off": "share of answers cut off by the limit",
    "reward": "mean reward of all sampled rollouts",
    "kept_reward": "mean reward of the kept rollouts",
}
PERCENT = ("accuracy", "both_rate", "format_rate", "frac_cut_off")
"""The measures that are shares, for people in percent."""

Unit = tuple[str, float]
"""A unit of time for people: its name and its seconds; or STEPS."""

STEPS: Unit = ("steps", 1.0)
"""The unit of comparisons at equal optimizer steps."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: the evaluations of one seed."""

    seed: str
    points: list[Point]
    phases: dict[str, float] = field(default_factory=dict)
    """Mean seconds per step of sampling, rewards, selection, update; empty if not recorded."""
    finished: bool = True


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training configuration and its runs."""

    name: str
    settings: dict[str, Any]
    runs: list[Run]

    @property
    def size(self) -> tuple[int, int] | None:
        """n and m, where both are known."""
        n, m = (self.settings.get(key) for key in ("num_rollouts", "num_generations"))
        return (int(n), int(m)) if n is not None and m is not None else None

    @property
    def used(self) -> list[Run]:
        """The finished runs that were evaluated; unfinished ones only where no run finished."""
        evaluated = [run for run in self.runs if run.points]
        return [run for run in evaluated if run.finished] or evaluated


@dataclass(frozen=True, kw_only=True)
class ComparisonCurves:
    """Arms trained for the same purpose and measured on the same questions."""

    title: str
    arms: dict[str, Arm]
    baseline: str | None
    about: dict[str, Any] = field(default_factory=dict)
    """What was run and on what, for people to read."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know: runs that failed, are missing or were left out."""
    transfer: bool = False
    """Whether the questions are of another data set than the one trained on."""
    clock: str = "seconds"
    """What all runs had alike: `seconds` of training, or optimizer `steps`."""
    share: float = 1.0
    """Of the baseline's best, the level that times are measured to."""
    paired: bool = True
    """Whether runs of the same seed share their prompts, so that a speed-up draws them together."""
    step_times: dict[str, StepTime] = field(default_factory=dict)
    """By arm, where known: they turn steps into time."""
    predictions: dict[str, Any] | None = None
    """What was predicted before the runs began (docs/compare.md)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A measure of S runs at K common times, or steps."""

    at_K: np.ndarray
    values_SK: np.ndarray
    seeds: list[str]

    @property
    def mean_K(self) -> np.ndarray:
        """Mean over the runs."""
        return self.values_SK.mean(axis=0)


def curve_of(arm: Arm, measure: str, *, over: str = "seconds") -> Curve | None:
    """Return the measure of every run of an arm on a common grid, None if no run has it.

    Over seconds, the grid is the arm's marks (the nominal times of evaluation) that every run
    reached; each run is interpolated linearly between its evaluations, which come up to one step
    after their mark. Over steps, runs that were evaluated at the same steps keep these. All others
    have as many evenly spaced points as the run with the fewest evaluations, within what all runs
    cover. Beyond its last evaluation a run is held constant, which concerns a last step that ended
    before the last mark.

    Example: marks 0, 60, 120, evaluated at 0, 64, 121 s with accuracy 0.2, 0.3, 0.5: at 60 s
    0.2 + 0.1 x 60/64 = 0.294.
    """
    known = [[point for point in run.points if point.get(measure) is not None] for run in arm.used]
    runs = [(run.seed, points) for run, points in zip(arm.used, known, strict=True) if points]
    if not runs:
        return None
    grid_K = _grid([points for _, points in runs], over)
    rows = [
        np.interp(grid_K, _column(points, over), _column(points, measure)) for _, points in runs
    ]
    return Curve(at_K=grid_K, values_SK=np.array(rows), seeds=[seed for seed, _ in runs])


def _grid(runs: list[list[Point]], over: str) -> np.ndarray:
    marked = [[point for point in points if point.get("mark") is not None] for points in runs]
    if over == "seconds" and all(marked):
        columns = [_column(points, "mark") for points in marked]
        marks = np.unique(np.concatenate(columns))
        return marks[marks <= min(column.max() for column in columns)]
    columns = [_column(points, over) for points in runs]
    if over == "step":
        shortest = min(columns, key=len)
        if all(np.array_equal(column[: len(shortest)], shortest) for column in columns):
            return shortest
    first, last = max(column[0] for column in columns), min(column[-1] for column in columns)
    return np.linspace(first, max(first, last), min(map(len, columns)) if last > first else 1)


def _column(points: Sequence[Point], key: str) -> np.ndarray:
    return np.array([point[key] for point in points], dtype=float)
