"""The figures of a comparison, in the order of the page."""

from typing import Any

import numpy as np

from podsrl.report.curves import ComparisonCurves
from podsrl.report.figures_drawing import Figure, figure
from podsrl.report.figures_lines import Unit, line_figure
from podsrl.report.theme import PHASE_COLORS


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


def time_unit(summary: dict[str, Any]) -> Unit:
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
    return figure(
        name="phases",
        title="Where a step's time goes",
        caption="Seconds per optimizer step, mean over runs.",
        alt=f"Per step: {'; '.join(parts)}.",
        draw=draw,
    )
