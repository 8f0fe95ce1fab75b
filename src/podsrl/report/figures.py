"""The figures of a comparison, in the order of the page: one line per arm, and a step's phases."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from podsrl.report.curves import PERCENT, ComparisonCurves, Curve, Unit, curve_of
from podsrl.report.sentences import time_unit
from podsrl.report.speedup import band
from podsrl.report.theme import GRID, INK, MARKERS, PHASE_COLORS, STYLE, color_of

SIZE_INCHES = (4.6, 3.1)
LEGEND_LETTERS = 48
"""How many letters of a legend stand beside each other in that width."""
LONGEST_LABEL = 28
"""An arm's name that is longer is cut in figures: it would leave them no room."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing: a short name for files, what stands above it, what it shows in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


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


def draw_figures(comparison: ComparisonCurves, summary: dict[str, Any]) -> list[Figure]:
    """Return the figures that the comparison's measures allow."""
    unit = time_unit(summary)
    drawn = [
        line_figure(
            comparison, "accuracy", "Accuracy over training time", unit=unit, summary=summary
        ),
        line_figure(comparison, "accuracy", "Accuracy over optimizer steps"),
        line_figure(comparison, "both_rate", "Right answers in the asked format", unit=unit),
        line_figure(comparison, "format_rate", "Answers in the asked format", unit=unit),
        line_figure(comparison, "mean_length", "Length of answers, tokens", unit=unit),
        line_figure(comparison, "reward", "Reward, all sampled rollouts", unit=unit),
        _phases(summary),
    ]
    return [found for found in drawn if found is not None]


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
    axes.plot(
        line.at_K, line.mean_K, color=color, marker=marker, markersize=3.2, label=_label(line.name)
    )


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


def _phases(summary: dict[str, Any]) -> Figure | None:
    """Seconds per step, one stacked bar per arm."""
    arms = {name: arm["phases"] for name, arm in summary["arms"].items() if arm["phases"]}
    if not arms:
        return None
    names = list(arms)

    def draw(axes: Any) -> None:
        left = np.zeros(len(names))
        for phase, (color, _) in PHASE_COLORS.items():
            width = np.array([arms[name].get(phase, 0.0) for name in names])
            axes.barh(range(len(names)), width, left=left, color=color, label=phase, height=0.62)
            left += width
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds per step")

    parts = [
        f"{name} {sum(phases.values()):.2f} s, of which sampling {phases.get('sampling', 0):.2f} "
        f"and update {phases.get('update', 0):.2f}"
        for name, phases in arms.items()
    ]
    return figure(
        name="phases",
        title="Where a step's time goes",
        caption="Seconds per optimizer step, mean over runs.",
        alt=f"Per step: {'; '.join(parts)}.",
        draw=draw,
    )


def figure(*, name: str, title: str, caption: str, alt: str, draw: Callable[[Any], None]) -> Figure:
    """Return the figure that `draw` makes on matplotlib axes; the same bytes every time."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = Drawing(figsize=SIZE_INCHES, layout="constrained")
        axes = drawing.subplots()
        draw(axes)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        _add_legend(drawing, axes)
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")  # the layout is found; it need not be found per file
        svg, png = io.StringIO(), io.BytesIO()
        drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        drawing.savefig(png, format="png", dpi=200, facecolor="white")
    return Figure(
        name=name, title=title, caption=caption, alt=alt, svg=svg.getvalue(), png=png.getvalue()
    )


def _label(name: str) -> str:
    """The name as it stands in a figure; matplotlib leaves names that begin with _ out."""
    short = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
    return f" {short}" if short.startswith("_") else short


def _add_legend(drawing: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, LEGEND_LETTERS // (max(map(len, labels)) + 4)))
    drawing.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK
    )
