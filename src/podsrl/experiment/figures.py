"""The figures of a report, as SVG text in the colours of a light page."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from podsrl.experiment.curves import ComparisonCurves, curve_of
from podsrl.experiment.figures_theme import GRID, INK, MARKERS, STYLE, color_of
from podsrl.experiment.speedup import band

PHASE_COLORS = {
    "sampling": "#2f6fb5",
    "rewards": "#b58a1b",
    "selection": "#3b8f5c",
    "update": "#b3502e",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One drawing: a short name for files, a title, what it shows in words, and a drawer."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


def draw_figures(comparison: ComparisonCurves, summary: dict[str, Any]) -> list[Figure]:
    """Return the figures that the comparison's measures allow, in the order of the page."""
    unit = time_unit(summary)
    drawn = [
        _lines(comparison, "accuracy", "seconds", "Accuracy over training time", unit),
        _lines(comparison, "accuracy", "step", "Accuracy over optimizer steps", unit),
        _lines(comparison, "both_rate", "seconds", "Right answers in the asked format", unit),
        _lines(comparison, "format_rate", "seconds", "Answers in the asked format", unit),
        _lines(comparison, "mean_length", "seconds", "Length of answers, tokens", unit),
        _lines(comparison, "reward", "seconds", "Reward, all sampled rollouts", unit),
        _phases(summary),
    ]
    return [figure for figure in drawn if figure is not None]


def time_unit(summary: dict[str, Any]) -> tuple[str, float]:
    """Return the unit in which the window is a number people read easily, and its seconds."""
    ends = [
        measures["accuracy"]["final_seconds"]
        for arm in summary["arms"].values()
        if "accuracy" in (measures := arm["measures"])
    ]
    window = max(ends, default=0.0)
    if window >= 2 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if window >= 180 else ("s", 1.0)


def _lines(
    comparison: ComparisonCurves, measure: str, over: str, title: str, unit: tuple[str, float]
) -> Figure | None:
    """Mean over runs with a 95 % band, one line per arm."""
    curves = {
        name: curve
        for name, arm in comparison.arms.items()
        if arm.used and (curve := _curve(arm, measure, over)) is not None
    }
    if not curves:
        return None
    scale = 100.0 if measure in ("accuracy", "both_rate", "format_rate") else 1.0
    divisor = unit[1] if over == "seconds" else 1.0

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            # Grey is the baseline's; without one, no arm is grey.
            index = list(comparison.arms).index(name) + (comparison.baseline is None)
            color = color_of(index)
            at_K, mean_K = curve.at_K / divisor, scale * curve.mean_K
            bounds = band(curve)
            if bounds is not None:
                low_K, high_K = (scale * bound for bound in bounds)
                axes.fill_between(at_K, low_K, high_K, color=color, alpha=0.16, linewidth=0)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(at_K, mean_K, color=color, marker=marker, markersize=3.2, label=name)
        axes.set_xlabel(f"training time, {unit[0]}" if over == "seconds" else "optimizer step")
        if scale == 100.0:
            axes.yaxis.set_major_formatter("{x:g} %")

    ends = [f"{name} ends at {scale * c.mean_K[-1]:.1f}" for name, c in curves.items()]
    alt = f"{title}: {'; '.join(ends)}{' %' if scale == 100.0 else ''}."
    return _figure(f"{measure}-{over}".replace("_", "-"), title, alt, draw)


def _curve(arm: Any, measure: str, over: str) -> Any:
    if over == "step" and not all(p.get("step") is not None for r in arm.used for p in r.points):
        return None
    return curve_of(arm, measure, over=over)


def _phases(summary: dict[str, Any]) -> Figure | None:
    """Seconds per step, one stacked bar per arm."""
    arms = {name: arm["phases"] for name, arm in summary["arms"].items() if arm["phases"]}
    if not arms:
        return None
    names = list(arms)

    def draw(axes: Any) -> None:
        left = np.zeros(len(names))
        for phase, color in PHASE_COLORS.items():
            width = np.array([arms[name].get(phase, 0.0) for name in names])
            axes.barh(names, width, left=left, color=color, label=phase, height=0.62)
            left += width
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds per step")

    parts = [
        f"{name} {sum(phases.values()):.2f} s, of which sampling {phases.get('sampling', 0):.2f} "
        f"and update {phases.get('update', 0):.2f}"
        for name, phases in arms.items()
    ]
    return _figure("phases", "Where a step's time goes", f"Per step: {'; '.join(parts)}.", draw)


def _figure(name: str, title: str, alt: str, draw: Callable[[Any], None]) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = Drawing(figsize=(4.6, 3.1), layout="constrained")
        axes = drawing.subplots()
        draw(axes)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        drawing.legend(
            handles, labels, loc="outside upper left", ncols=4, frameon=False, labelcolor=INK
        )
        svg, png = io.StringIO(), io.BytesIO()
        drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        drawing.savefig(png, format="png", dpi=200, facecolor="white")
    return Figure(name=name, title=title, alt=alt, svg=svg.getvalue(), png=png.getvalue())
