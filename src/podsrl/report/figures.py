"""The figures of a comparison, in the order of the page: one line per arm, and a step's phases."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from podsrl.report.axis import axis_label, headline, over_words, unit_of
from podsrl.report.curves import PERCENT, STEPS, ComparisonCurves, Curve, Unit, curve_of
from podsrl.report.differences import band
from podsrl.report.theme import (
    HEIGHT_INCHES,
    INK,
    MARKERS,
    PHASE_COLORS,
    Figure,
    color_of,
    figure,
    label_of,
)

PANEL_INCHES = 1.3  # height of a row of panels
MOST_BANDS = 2
BAND_IN_MEANS = 4.0  # a band is drawn as far as this many times the farthest mean


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
    unit = unit_of(summary)
    over = over_words(unit)
    by_steps = unit == STEPS
    drawn = [
        lead_figure(summary, unit),
        line_figure(comparison, "accuracy", f"Accuracy over {over}", unit=unit, summary=summary),
        None if by_steps else line_figure(comparison, "accuracy", "Accuracy over optimizer steps"),
        line_figure(comparison, "both_rate", "Right answers in the asked format", unit=unit),
        line_figure(comparison, "format_rate", "Answers in the asked format", unit=unit),
        line_figure(comparison, "mean_length", "Length of answers, tokens", unit=unit),
        line_figure(comparison, "held_out_reward", "Reward of held-out questions", unit=unit),
        line_figure(comparison, "reward", "Reward, all sampled rollouts", unit=unit),
        _phases(summary),
    ]
    return [found for found in drawn if found is not None]


def lead_figure(summary: dict[str, Any], unit: Unit) -> Figure | None:
    """Return each arm's accuracy minus the baseline's, a panel per arm; None if there is none."""
    arms = list(summary["arms"])
    leads = {
        name: against["lead"]
        for name, against in summary["against_baseline"].items()
        if against["lead"] and len(against["lead"]["at"]) > 1
    }
    if not leads:
        return None
    num_columns = min(2, len(leads))
    num_rows = -(-len(leads) // num_columns)
    limit = _lead_limit(leads.values())
    cut = "" if limit is None else " Bands that leave the picture are cut."

    def draw(panels: list[Any]) -> None:
        for axes, (name, lead) in zip(panels, leads.items(), strict=False):
            _draw_lead(axes, name, lead, color_of(arms.index(name)), unit)
        if limit is not None:
            panels[0].set_ylim(-limit, limit)  # the panels share it
        for axes in panels[len(leads) :]:
            axes.set_visible(False)
        for axes in panels[len(leads) - num_columns : len(leads)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(axis_label(unit))
        for axes in panels[::num_columns]:
            axes.set_ylabel("points")

    base = summary["baseline"]
    ends = [f"{name} ends at {100 * lead['value'][-1]:+.1f}" for name, lead in leads.items()]
    return figure(
        name=f"lead-over-{'step' if unit == STEPS else 'time'}",
        title=f"Accuracy ahead of {base}'s over {over_words(unit)}",
        caption=f"Points above {base}: mean and 95 % band over runs, paired by seed where they can "
        f"be. Where the band includes 0, nothing can be told.{cut}",
        alt=f"Points ahead of {base}: {'; '.join(ends)}.",
        draw=draw,
        height=max(HEIGHT_INCHES, 0.6 + PANEL_INCHES * num_rows),
        panels=(num_rows, num_columns),
    )


def _draw_lead(axes: Any, name: str, lead: dict[str, Any], color: str, unit: Unit) -> None:
    at_K = np.array(lead["at"]) / unit[1]
    axes.axhline(0, color=INK, linewidth=0.9)
    if None not in lead["low"]:
        low_K, high_K = (100 * np.array(lead[bound]) for bound in ("low", "high"))
        _draw_band(axes, at_K, low_K, high_K, color)
    axes.plot(at_K, 100 * np.array(lead["value"]), color=color)
    axes.set_title(label_of(name), loc="left", fontsize=9, color=INK)


def _lead_limit(leads: Iterable[dict[str, Any]]) -> float | None:
    """Where to cut the bands of very few runs, beside which every mean would be a flat line."""
    means = [abs(value) for lead in leads for value in lead["value"]]
    bounds = [abs(x) for lead in leads for x in (*lead["low"], *lead["high"]) if x is not None]
    limit = 100 * BAND_IN_MEANS * max(means)
    return limit if 0 < limit < 100 * max(bounds, default=0.0) else None


def line_figure(
    comparison: ComparisonCurves,
    measure: str,
    title: str,
    *,
    unit: Unit = STEPS,
    summary: dict[str, Any] | None = None,
) -> Figure | None:
    """Return means over runs, over time in `unit` or over steps.

    Up to two arms have their 95 % bands; more bands would lie on each other and hide the lines.

    With a summary, the best of the baseline, or the share of it that the report measures times to,
    is a dashed line, and where each arm reaches it is marked. A start far below everything else is
    left out of the picture, and the caption says so.
    None where nobody has the measure.
    """
    lines = _lines(comparison, measure, unit)
    if not lines:
        return None
    if len(lines) > MOST_BANDS:
        lines = [replace(line, low_K=line.mean_K, high_K=line.mean_K) for line in lines]
    percent = measure in PERCENT
    limits = _limits(lines)
    reached = _reached(summary, unit) if summary else []

    def draw(axes: Any) -> None:
        for line in lines:
            _draw_line(axes, line)
        if limits:
            axes.set_ylim(*limits)
        _draw_reached(axes, reached, {line.name: line.place for line in lines})
        axes.set_xlabel(axis_label(unit))
        if percent:
            axes.yaxis.set_major_formatter("{x:g} %")

    sign = " %" if percent else ""
    ends = "; ".join(f"{line.name} ends at {line.mean_K[-1]:.1f}{sign}" for line in lines)
    over = "step" if unit == STEPS else "time"
    return figure(
        name=f"{measure.replace('_', '-')}-over-{over}",
        title=title,
        caption=_caption(lines, limits, reached, summary, sign),
        alt=f"{title}: {ends}.",
        draw=draw,
    )


def _lines(comparison: ComparisonCurves, measure: str, unit: Unit) -> list[Line]:
    lines = []
    for place, (name, arm) in enumerate(comparison.arms.items()):
        stepped = all(point.get("step") is not None for run in arm.used for point in run.points)
        if not arm.used or (unit == STEPS and not stepped):
            continue
        curve = curve_of(arm, measure, over="step" if unit == STEPS else "seconds")
        if curve is not None:
            # Grey is the baseline's; without one, no arm is grey.
            place += comparison.baseline is None
            scale = 100.0 if measure in PERCENT else 1.0
            lines.append(_line(name, place, curve, scale, unit[1]))
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
            _, told = headline(against["speed_up"])
            for name, at in (
                (summary["baseline"], told["baseline_reached"]),
                (arm, told["reached"]),
            ):
                if at != "never":
                    found.append((name, at / unit[1], 100 * told["level"]))
    return list(dict.fromkeys(found))


def _draw_line(axes: Any, line: Line) -> None:
    color = color_of(line.place)
    if (line.low_K < line.high_K).any():
        _draw_band(axes, line.at_K, line.low_K, line.high_K, color)
    marker, label = MARKERS[line.place % len(MARKERS)], label_of(line.name)
    axes.plot(line.at_K, line.mean_K, color=color, marker=marker, markersize=3.2, label=label)


def _draw_band(
    axes: Any, at_K: np.ndarray, low_K: np.ndarray, high_K: np.ndarray, color: str
) -> None:
    axes.fill_between(at_K, low_K, high_K, color=color, alpha=0.16, linewidth=0)


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
    banded = any((line.low_K < line.high_K).any() for line in lines)
    parts = ["Mean over runs, band 95 %." if banded else "Mean over runs."]
    if reached and summary:
        first = next(a for a in summary["against_baseline"].values() if a["speed_up"])
        level = headline(first["speed_up"])[0].replace("peak", "the best")
        parts.append(f"Dashed: {level} of {summary['baseline']}; dotted: when it was reached.")
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
        axes.set_yticks(range(len(names)), [label_of(name) for name in names])
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
        height=max(HEIGHT_INCHES, 1.2 + 0.28 * len(names)),
    )
