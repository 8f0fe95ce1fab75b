"""Figures of a measure over training time or optimizer steps: one line per arm."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from podsrl.report.curves import ComparisonCurves, Curve, curve_of
from podsrl.report.figures_drawing import Figure, figure
from podsrl.report.speedup import band
from podsrl.report.theme import INK, MARKERS, color_of

Unit = tuple[str, float]
PERCENT = ("accuracy", "both_rate", "format_rate")


@dataclass(frozen=True, kw_only=True)
class Line:
    """An arm in a figure, in the figure's units."""

    name: str
    place: int
    """Of the arm among all arms: decides colour and marker."""
    at_K: np.ndarray
    mean_K: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray


def line_figure(
    comparison: ComparisonCurves,
    measure: str,
    title: str,
    *,
    unit: Unit | None = None,
    summary: dict[str, Any] | None = None,
) -> Figure | None:
    """Return mean and 95 % band over runs, over time in `unit` or, without it, over steps.

    With a summary, the best of the baseline is a dashed line, and where each arm reaches it is
    marked. A start far below everything else is left out of the picture, and the caption says so.
    None where nobody has the measure.
    """
    lines = _lines(comparison, measure, unit)
    if not lines:
        return None
    percent = measure in PERCENT
    limits = _limits(lines)
    reached = _reached(summary, unit) if summary and unit else []

    def draw(axes: Any) -> None:
        for line in lines:
            _draw_line(axes, line)
        if limits:
            axes.set_ylim(*limits)
        _draw_reached(axes, reached, {line.name: line.place for line in lines})
        axes.set_xlabel(f"training time, {unit[0]}" if unit else "optimizer step")
        if percent:
            axes.yaxis.set_major_formatter("{x:g} %")

    sign = " %" if percent else ""
    ends = "; ".join(f"{line.name} ends at {line.mean_K[-1]:.1f}{sign}" for line in lines)
    over = "time" if unit else "step"
    return figure(
        name=f"{measure.replace('_', '-')}-over-{over}",
        title=title,
        caption=_caption(lines, limits, reached, summary, sign),
        alt=f"{title}: {ends}.",
        draw=draw,
    )


def _lines(comparison: ComparisonCurves, measure: str, unit: Unit | None) -> list[Line]:
    lines = []
    for place, (name, arm) in enumerate(comparison.arms.items()):
        stepped = all(point.get("step") is not None for run in arm.used for point in run.points)
        if not arm.used or not (unit or stepped):
            continue
        curve = curve_of(arm, measure, over="seconds" if unit else "step")
        if curve is not None:
            # Grey is the baseline's; without one, no arm is grey.
            place += comparison.baseline is None
            scale = 100.0 if measure in PERCENT else 1.0
            lines.append(_line(name, place, curve, scale, unit[1] if unit else 1.0))
    return lines


def _line(name: str, place: int, curve: Curve, scale: float, divisor: float) -> Line:
    low_K, high_K = band(curve) or (curve.mean_K, curve.mean_K)
    if scale == 100.0:  # an interval of Student's t does not know that shares end at 0 and 1
        low_K, high_K = np.clip(low_K, 0.0, 1.0), np.clip(high_K, 0.0, 1.0)
    return Line(
        name=name,
        place=place,
        at_K=curve.at_K / divisor,
        mean_K=scale * curve.mean_K,
        low_K=scale * low_K,
        high_K=scale * high_K,
    )


def _limits(lines: list[Line]) -> tuple[float, float] | None:
    """Limits without the starts, where with them the rest would fill less than half."""
    if any(len(line.at_K) < 3 for line in lines):
        return None
    low = min(line.low_K[1:].min() for line in lines)
    high = max(line.high_K[1:].max() for line in lines)
    start = min(line.mean_K[0] for line in lines)
    room = 0.06 * (high - low)
    return (low - room, high + room) if low - start > high - low > 0 else None


def _reached(summary: dict[str, Any], unit: Unit) -> list[tuple[str, float, float]]:
    """Arm, time and level of every arm that reaches the baseline's best, the baseline first."""
    found = []
    for arm, against in summary["against_baseline"].items():
        if against["speed_up"]:
            peak = against["speed_up"]["peak"]["interpolated"]
            for name, seconds in (
                (summary["baseline"], peak["baseline_seconds"]),
                (arm, peak["seconds"]),
            ):
                if seconds != "never":
                    found.append((name, seconds / unit[1], 100 * peak["level"]))
    return list(dict.fromkeys(found))


def _draw_line(axes: Any, line: Line) -> None:
    color = color_of(line.place)
    axes.fill_between(line.at_K, line.low_K, line.high_K, color=color, alpha=0.16, linewidth=0)
    marker = MARKERS[line.place % len(MARKERS)]
    axes.plot(line.at_K, line.mean_K, color=color, marker=marker, markersize=3.2, label=line.name)


def _draw_reached(
    axes: Any, reached: list[tuple[str, float, float]], places: dict[str, int]
) -> None:
    if not reached:
        return
    bottom, top = axes.get_ylim()
    axes.axhline(reached[0][2], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    for name, at, level in reached:
        color = color_of(places[name])
        axes.vlines(at, bottom, level, color=color, linewidth=1.1, linestyle=(0, (1, 2)))
    axes.set_ylim(bottom, top)


def _caption(
    lines: list[Line],
    limits: tuple[float, float] | None,
    reached: list[tuple[str, float, float]],
    summary: dict[str, Any] | None,
    sign: str,
) -> str:
    parts = ["Mean over runs, band 95 %."]
    if reached and summary:
        parts.append(f"Dashed: the best of {summary['baseline']}; dotted: when it was reached.")
    if limits:
        starts = sorted({f"{line.mean_K[0]:.1f}" for line in lines})
        parts.append(f"The start, {' or '.join(starts)}{sign}, is below the picture.")
    return " ".join(parts)
