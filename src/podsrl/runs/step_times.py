"""Seconds per optimizer step of several arms, measured alone: seconds_per_step.json.

It holds `seconds_per_step`, by arm: `value`, the median, and `low` and `high`, its 95 % interval;
and about them what `podsrl compare FILE --time_steps` knows, which nobody needs to give.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from podsrl.runs.folder import read_json

STEP_TIMES = "seconds_per_step.json"
NUM_DRAWS = 10_000


class StepTime(TypedDict):
    """Seconds per step of an arm, with the 95 % interval."""

    value: float
    low: float
    high: float


def read_step_times(path: Path) -> dict[str, StepTime]:
    """Return the seconds per step by arm.

    Raises `ValueError` for a file that is not there or holds something else, naming the arm.

    Example: {"seconds_per_step": {"grpo": {"value": 2.0, "low": 1.9, "high": 2.2}}}.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is no JSON file: podsrl compare FILE --time_steps writes one"
        ) from error
    arms = content.get("seconds_per_step") if isinstance(content, dict) else None
    if not isinstance(arms, dict) or not arms:
        raise ValueError(f"{path} has no mapping seconds_per_step of arms to their seconds")
    return {arm: checked_estimate(f"{path}, arm {arm}", found) for arm, found in arms.items()}


def checked_estimate(where: str, found: Any) -> StepTime:
    """Return value, low and high of a mapping; `ValueError` unless 0 < low <= value <= high."""
    numbers = found if isinstance(found, dict) else {}
    value, low, high = (_number(numbers.get(key)) for key in ("value", "low", "high"))
    if not 0 < low <= value <= high:
        raise ValueError(f"{where} is {found!r}: give value, low and high, with 0 < low <= value")
    return StepTime(value=value, low=low, high=high)


def _number(value: Any) -> float:
    """The number, and 0 for what is none."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else 0.0


def step_time(seconds_RS: Sequence[Sequence[float]], *, seed: int = 0) -> StepTime:
    """Return the median of all steps with its percentile interval over repeats and steps.

    seconds_RS: of each repeat, the seconds of its steps. A draw takes as many repeats with
    replacement, and of each as many of its steps with replacement (Efron 1979, in two stages), as
    the steps of one repeat have their machine and their prompts in common.

    Example: steps of 1, 2 and 3 s in one repeat: median 2, interval 1 to 3.
    """
    draws = np.random.default_rng(seed)
    medians = [
        np.median(
            np.concatenate(
                [
                    draws.choice(seconds_RS[repeat], len(seconds_RS[repeat]))
                    for repeat in draws.integers(len(seconds_RS), size=len(seconds_RS))
                ]
            )
        )
        for _ in range(NUM_DRAWS)
    ]
    low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    value = float(np.median(np.concatenate([np.asarray(each) for each in seconds_RS])))
    return StepTime(value=value, low=min(float(low), value), high=max(float(high), value))
