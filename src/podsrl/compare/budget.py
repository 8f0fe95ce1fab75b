"""How long every run of a comparison trains: so many seconds, or so many optimizer steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from podsrl.core.selection import BUDGETS as BUDGETS_OF_RULES

MARKS_PER_RUN = 4
# Of each budget the settings of a run: where it ends, and how often it is evaluated.
FIELDS = {
    "seconds": ("training_seconds", "evaluate_every_seconds"),
    "steps": ("max_steps", "evaluate_every_steps"),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each run of a comparison spends, and how often it is evaluated on the way.

    Not to be taken for the setting `budget` of a recipe or arm, which is about kept rollouts.
    """

    unit: str
    """seconds of training, which the machine decides on, or optimizer steps, which it does not."""
    end: float
    every: float

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a run, by their names in `podsrl train`."""
        return dict(zip(FIELDS[self.unit], (self.end, self.every), strict=True))

    def __str__(self) -> str:
        if self.unit == "steps":
            return f"{self.end} optimizer steps"
        return f"{self.end:g} s of training"

    def reached(self, row: Mapping[str, Any]) -> str:
        """Where a row of curve.jsonl stands on this budget: "step 40", or "33 s"."""
        if self.unit == "steps":
            return f"step {row['step']}"
        return f"{row['training_seconds']:.0f} s"


def read_budget(content: Mapping[str, Any]) -> Budget:
    """Return the budget that a comparison's fields name; seconds unless `budget` says steps.

    Without evaluate_every_... a run is evaluated four times on its way.

    Raises `ValueError` for another budget, for the fields of one with the other, and for values
    that are none, each with the remedy.

    Example: {"budget": "steps", "max_steps": 10} ends at 10 and is evaluated every 3.
    """
    unit = content.get("budget", "seconds")
    if unit not in FIELDS:
        raise ValueError(_no_budget(unit))
    end, every = FIELDS[unit]
    (other,) = (name for name in FIELDS if name != unit)
    if strange := [name for name in FIELDS[other] if content.get(name) is not None]:
        raise ValueError(
            f"{strange[0]} goes with budget: {other}, but the comparison's budget is {unit}: give "
            f"{end} and {every}, or write budget: {other}"
        )
    read = _whole if unit == "steps" else _positive
    amount = read(end, content.get(end))
    default = amount / MARKS_PER_RUN if unit == "seconds" else math.ceil(amount / MARKS_PER_RUN)
    return Budget(unit=unit, end=amount, every=read(every, content.get(every, default)))


def _no_budget(given: Any) -> str:
    text = f"budget is {given!r}: a comparison's is {' or '.join(FIELDS)}"
    if given in BUDGETS_OF_RULES:
        text += (
            "; how the kept rollouts are spread over prompts is a setting of the recipe or of an "
            f"arm, as in arms: {{mine: {{budget: {given}}}}}"
        )
    return text


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}: give a number of seconds above 0")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of steps, at least 1")
    return value
