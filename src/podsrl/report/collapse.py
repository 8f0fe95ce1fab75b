"""Format collapse: answers and their format going different ways."""

from typing import TypedDict

from podsrl.report.curves import Curve

DIES = 0.5
"""A rate has died when it ends below this share of its own best."""
HOLDS = 0.9
"""A rate has held when it ends at this share of its own best, or above."""
ENOUGH = 0.1
"""A rate that was never above this cannot die."""


class Collapse(TypedDict):
    """One run in which one rate died while the other held."""

    seed: str
    died: str
    best: float
    end: float


def collapses(accuracy: Curve, format_rate: Curve) -> list[Collapse]:
    """Return the runs that end with one of the two rates dead and the other alive.

    Died: the end is below DIES = 0.5 times the run's own best, and that best was at least
    ENOUGH = 0.1. Held: the end is at least HOLDS = 0.9 times the run's own best. Judged per run,
    because the mean over runs hides one that collapsed.

    Example: accuracy 0.6, 0.8, 0.78 and format 0.8, 0.9, 0.02: "format" died, 0.9 to 0.02.
    """
    found = []
    for seed, rates in _by_seed(accuracy, format_rate).items():
        ends = {name: (max(values), values[-1]) for name, values in rates.items()}
        for dead, alive in (("format", "accuracy"), ("accuracy", "format")):
            best, end = ends[dead]
            held = ends[alive][0] > 0 and ends[alive][1] >= HOLDS * ends[alive][0]
            if best >= ENOUGH and end < DIES * best and held:
                found.append(Collapse(seed=seed, died=dead, best=best, end=end))
    return found


def _by_seed(accuracy: Curve, format_rate: Curve) -> dict[str, dict[str, list[float]]]:
    return {
        seed: {
            "accuracy": accuracy.values_SK[accuracy.seeds.index(seed)].tolist(),
            "format": format_rate.values_SK[format_rate.seeds.index(seed)].tolist(),
        }
        for seed in accuracy.seeds
        if seed in format_rate.seeds
    }
