"""What the curves of a comparison run over, seconds of training or optimizer steps, in words."""

from typing import Any

from podsrl.report.curves import STEPS, ComparisonCurves, Unit


def over_of(comparison: ComparisonCurves) -> str:
    """What the curves of a comparison run over, as points name it: "seconds" or "step"."""
    return "step" if comparison.clock == "steps" else "seconds"


def unit_of(summary: dict[str, Any]) -> Unit:
    """Return the unit in which the window is a number people read easily, and its seconds."""
    if summary["clock"] == "steps":
        return STEPS
    ends = [
        measures["accuracy"]["final_at"]
        for arm in summary["arms"].values()
        if "accuracy" in (measures := arm["measures"])
    ]
    return time_unit(max(ends, default=0.0))


def time_unit(seconds: float) -> Unit:
    """The unit of time in which so many seconds are a number people read easily.

    Example: 179 is told in "s", 180 in "min", 7200 in "h".
    """
    if seconds >= 2 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if seconds >= 180 else ("s", 1.0)


def duration(time: float | str, unit: Unit) -> str:
    """A time in the unit of the window, or the text that it is.

    Example: 90 is "1.5 min", "90.0 s", and "90 steps".
    """
    if isinstance(time, str):
        return time
    decimals = {"h": 2, "steps": 0}.get(unit[0], 1)
    return f"{time / unit[1]:.{decimals}f} {unit[0]}"


def axis_label(unit: Unit) -> str:
    """What stands below a figure."""
    return "optimizer step" if unit == STEPS else f"training time, {unit[0]}"


def over_words(unit: Unit) -> str:
    """What a figure's title says that its curves run over."""
    return "optimizer steps" if unit == STEPS else "training time"


def levels(share: float) -> dict[str, float]:
    """The levels that times are measured to; the first is the one that the report speaks of.

    Example: 0.95 gives {"95 % of peak": 0.95, "peak": 1.0, "99 % of peak": 0.99}.
    """
    return {level_name(share): share, "peak": 1.0, "99 % of peak": 0.99}


def level_name(share: float) -> str:
    """The level in words: "peak", or "95 % of peak"."""
    return "peak" if share == 1.0 else f"{100 * share:g} % of peak"


def headline(speed_ups: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The level that the report speaks of, and when it is reached between evaluations."""
    level, grids = next(iter(speed_ups.items()))
    return level, grids["interpolated"]


def ratio_key(found: dict[str, Any]) -> str:
    """Which ratio says how fast an arm is: that of time, wherever it is known."""
    return "time_ratio" if "time_ratio" in found else "ratio"
