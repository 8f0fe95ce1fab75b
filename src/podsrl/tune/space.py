"""The settings that a search may change, and the values that each may take.

Shape letters: P settings proposed together, D features that a setting has for the model.
"""

import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from podsrl.compare.comparison import QUESTION_SETTINGS
from podsrl.compare.presets import OWN_SETTINGS
from podsrl.runs.checks import check_names, check_values
from podsrl.runs.settings import setting_names, setting_types

Values = dict[str, Any]
SCALES = ("linear", "log")
RANGE_FIELDS = ("low", "high", "scale")
MAX_CHOICES = 64


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from low to high, both among them, drawn evenly on a linear or a log scale."""

    low: float
    high: float
    is_log: bool
    is_whole: bool

    def draw(self, rng: np.random.Generator) -> float | int:
        """One value; whole numbers are rounded from half a step beyond either end."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.is_whole else (self.low, self.high)
        if self.is_log:
            # From half a step beyond, but never from 0 or less.
            low = max(low, self.low / 2)
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            drawn = rng.uniform(low, high)
        drawn = min(self.high, max(self.low, drawn))
        return round(drawn) if self.is_whole else drawn

    def encode(self, value: Any) -> list[float]:
        """The value on its scale, 0 at low and 1 at high; one feature."""
        low, high, at = self.low, self.high, float(value)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(max(at, 1e-300))
        return [(at - low) / (high - low)]

    def every(self) -> Sequence[Any]:
        """All values of a range of whole numbers."""
        assert self.is_whole
        return range(int(self.low), int(self.high) + 1)

    def num_values(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.is_whole else math.inf


@dataclass(frozen=True)
class Choices:
    """One of a list of values; numbers keep their order for the model, other values have none."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One of the values, all alike."""
        return self.values[rng.integers(len(self.values))]

    def encode(self, value: Any) -> list[float]:
        """The place of a number among the choices, 0 to 1; of other values one feature each."""
        if all(_is_number(choice) for choice in self.values):
            ordered = sorted(self.values)
            places = np.linspace(0, 1, len(ordered))
            return [float(np.interp(float(value), ordered, places))]
        return [float(choice == value) for choice in self.values]

    def every(self) -> Sequence[Any]:
        """All values."""
        return self.values

    def num_values(self) -> float:
        """How many values there are."""
        return len(self.values)


@dataclass(frozen=True)
class Space:
    """Settings by name, each a `Range` or `Choices`."""

    dimensions: dict[str, Range | Choices]

    def draw(self, rng: np.random.Generator) -> Values:
        """A value of every setting, whether or not they go together."""
        return {name: dimension.draw(rng) for name, dimension in self.dimensions.items()}

    def encode(self, settings: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Features of settings for the model, float64 (P, D)."""
        rows = [
            [x for name, of in self.dimensions.items() for x in of.encode(values[name])]
            for values in settings
        ]
        return np.array(rows, dtype=float)

    def every(self) -> Iterator[Values]:
        """All settings of a space that is finite."""
        lists = [of.every() for of in self.dimensions.values()]
        return (dict(zip(self.dimensions, each, strict=True)) for each in product(*lists))

    def num_values(self) -> float:
        """How many settings there are, inf with a range that is not of whole numbers."""
        return math.prod(dimension.num_values() for dimension in self.dimensions.values())


def read_space(content: Any) -> Space:
    """Return the space that a tune file's `space` describes.

    A list is the choices; a mapping `{low, high, scale}` a range, whole numbers where the setting
    is one, `scale` linear (default) or log.

    Raises `ValueError` naming the setting and the remedy: for one that no run has, that the search
    sets itself or that changes what is measured; for values that the setting cannot have; for a
    range of what is no number, an empty one, and a log scale from 0 or less.

    Example: `read_space({"num_generations": [4, 8], "learning_rate": {"low": "1e-6", "high": 1e-4,
    "scale": "log"}})`.
    """
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"space is {content!r}: name at least one setting, as in space: "
            "{learning_rate: {low: 1e-6, high: 1e-4, scale: log}, num_generations: [4, 8, 16]}"
        )
    check_names("setting of space", content, sorted(setting_names()), "see docs/tune.md")
    return Space({name: _dimension(name, of) for name, of in content.items()})


def _dimension(name: str, content: Any) -> Range | Choices:
    if name in OWN_SETTINGS:
        raise ValueError(f"space names {name}, which the search sets for all trials alike")
    if name in QUESTION_SETTINGS:
        raise ValueError(
            f"space names {name}, which changes what is measured: scores would not compare"
        )
    if isinstance(content, list):
        return _choices(name, content)
    if isinstance(content, dict):
        return _range(name, content)
    raise ValueError(
        f"space: {name} is {content!r}: give a list of values, or {{low: ..., high: ...}}; what "
        "all trials have in common belongs into the recipe"
    )


def _choices(name: str, values: list[Any]) -> Choices:
    # YAML reads 1e-6 as text.
    numbers = _kinds(name) & {int, float}
    read = [_number(value) if numbers and isinstance(value, str) else value for value in values]
    for value in read:
        check_values({name: value}, setting_types())
    if len(set(map(repr, read))) < len(read) or not 2 <= len(read) <= MAX_CHOICES:
        raise ValueError(
            f"space: {name} has {len(read)} values, {values!r}: give 2 to {MAX_CHOICES} different "
            "ones"
        )
    return Choices(tuple(read))


def _range(name: str, content: dict[str, Any]) -> Range:
    check_names(f"field of {name} in space", content, RANGE_FIELDS, "low, high and scale")
    numbers = _kinds(name) & {int, float}
    if not numbers:
        raise ValueError(f"space: {name} is no number: give a list of values")
    low, high = (_number(content.get(end)) for end in ("low", "high"))
    scale = content.get("scale", "linear")
    if not all(_is_number(end) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise ValueError(
            f"space: {name} goes from {low!r} to {high!r}: give two numbers, low < high"
        )
    if scale not in SCALES:
        raise ValueError(f"space: scale of {name} is {scale!r}: choose from {', '.join(SCALES)}")
    if scale == "log" and low <= 0:
        raise ValueError(
            f"space: {name} starts at {low} on a log scale: start above 0, or list values, as in "
            f"{name}: [0, 0.001, 0.01]"
        )
    is_whole = float not in numbers
    if is_whole and not (float(low).is_integer() and float(high).is_integer()):
        raise ValueError(f"space: {name} goes from {low} to {high}: its ends must be whole numbers")
    low, high = (int(low), int(high)) if is_whole else (float(low), float(high))
    for end in (low, high):
        check_values({name: end}, setting_types())
    return Range(low=low, high=high, is_log=scale == "log", is_whole=is_whole)


def _kinds(name: str) -> set[Any]:
    """The plain types that a setting may have, those of a union apart."""
    hint = setting_types()[name]
    return set(typing.get_args(hint)) or {hint}


def _number(value: Any) -> Any:
    """The number that text stands for; anything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
