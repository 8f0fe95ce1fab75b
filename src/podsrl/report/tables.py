"""The tables of a report: what stands in them; page.html.j2 lays them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from podsrl.report.curves import PERCENT, Unit
from podsrl.report.sentences import duration, in_words, is_told, minus, times, verdict

LABELS = {
    "accuracy": "accuracy",
    "both_rate": "right and in format",
    "format_rate": "in format",
    "mean_length": "length, tokens",
    "frac_cut_off": "cut off by the limit",
    "reward": "reward, all sampled",
    "kept_reward": "reward, kept",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell says: a figure, with its bounds in small type, or a text that is a link."""

    text: str
    low: str | None = None
    high: str | None = None
    told: bool = False
    """Whether it stands out, because its interval leaves out 0."""
    href: str | None = None


Row = list[str | Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first cell of a row names it, and those below with the same first cell."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]

    @property
    def groups(self) -> list[list[Row]]:
        """The rows, those together that share their first cell."""
        return [list(group) for _, group in groupby(self.rows, key=lambda row: row[0])]


def with_bounds(
    found: dict[str, Any], show: Callable[[Any], str], *, key: str = "value", told: bool = False
) -> Cell:
    """Return a figure with its bounds; "never" to "never" goes without saying.

    The bounds of `value` are `low` and `high`, those of another key `key_low` and `key_high`.
    """
    low, high = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    if found[low] is None:
        return Cell(text=show(found[key]), told=told)
    text, bounds = show(found[key]), (show(found[low]), show(found[high]))
    if {text, *bounds} == {"never"}:
        return Cell(text=text, told=told)
    return Cell(text=text, low=bounds[0], high=bounds[1], told=told)


def overview(summaries: Sequence[dict[str, Any]], units: Sequence[Unit]) -> Table:
    """Return one row per comparison, baseline and arm; several comparisons are links.

    Against the baseline, then against every other arm that selects nothing.
    """
    several = len(summaries) > 1
    rows: list[Row] = []
    for index, (summary, unit) in enumerate(zip(summaries, units, strict=True), 1):
        link = Cell(text=summary["title"], href=f"#comparison-{index}")
        every = {summary["baseline"]: summary["against_baseline"], **summary["against_others"]}
        for base, arms in every.items():
            for arm, against in arms.items():
                if against["speed_up"]:
                    row = _at_a_glance(base, arm, against, unit)
                    rows.append([link, *row] if several else row)
    head = ["against", "arm", "best of the other", "reached", "times as fast"]
    return Table(
        caption="At a glance, with 95 % intervals",
        head=[
            *(["comparison"] if several else []),
            *head,
            "accuracy over the window, points",
            "faster or slower",
        ],
        rows=rows,
    )


def in_text(table: Table) -> str:
    """Return a table for a terminal: columns two spaces apart, bounds in brackets."""
    lines = [list(table.head)]
    for group in table.groups:
        for index, row in enumerate(group):
            lines.append(
                [_in_text(cell) if place or not index else "" for place, cell in enumerate(row)]
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return f"{table.caption}\n" + "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _in_text(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell
    return cell.text if cell.low is None else f"{cell.text} ({cell.low} to {cell.high})"


def _at_a_glance(base: str, arm: str, against: dict[str, Any], unit: Unit) -> Row:
    peak = against["speed_up"]["peak"]["interpolated"]
    return [
        base,
        arm,
        f"{100 * peak['level']:.2f} %",
        duration(peak["seconds"], unit),
        with_bounds(peak, times, key="ratio"),
        _difference(against["differences"]["accuracy"]["window"], "accuracy"),
        verdict(against["speed_up"]),
    ]


def speed_ups(summary: dict[str, Any], unit: Unit) -> Table:
    """Return when each arm reaches the baseline's best, by level and by grid."""
    rows: list[Row] = []
    for arm, against in summary["against_baseline"].items():
        for level, grids in against["speed_up"].items():
            for grid, found in grids.items():
                never = found["frac_never"]
                rows.append(
                    [
                        arm,
                        f"{level}, {grid}",
                        f"{100 * found['level']:.2f} %",
                        duration(found["baseline_seconds"], unit),
                        with_bounds(found, lambda value: duration(value, unit), key="seconds"),
                        with_bounds(found, times, key="ratio"),
                        "–" if never is None else f"{100 * never:.1f} %",
                    ]
                )
    base = summary["baseline"]
    head = ("arm", "level", "accuracy", f"{base} reaches it", "the arm reaches it")
    return Table(
        caption=f"When each arm reaches the best mean accuracy of {base}",
        head=(*head, "times as fast", "draws that never do"),
        rows=rows,
    )


def _difference(difference: dict[str, Any], measure: str) -> Cell:
    scale = 100.0 if measure in PERCENT else 1.0
    told = is_told(difference)
    return with_bounds(difference, lambda value: minus(f"{scale * value:+.2f}"), told=told)


def differences(summary: dict[str, Any], unit: Unit) -> Table:
    """Return each arm minus the baseline, measure by measure."""
    rows: list[Row] = []
    for arm, against in summary["against_baseline"].items():
        for measure, found in against["differences"].items():
            window = found["window"]
            rows.append(
                [
                    arm,
                    LABELS[measure] + (", points" if measure in PERCENT else ""),
                    _difference(window, measure),
                    _difference(found["end"], measure),
                    duration(window["until_seconds"], unit),
                    f"{window['num_runs']} {'pairs' if window['paired'] else 'runs, not paired'}",
                ]
            )
    return Table(
        caption=f"Arm minus {summary['baseline']}; bold where the interval leaves out 0",
        head=("arm", "measure", "mean over the window", "at its end", "window until", "runs"),
        rows=rows,
    )


def measures(summary: dict[str, Any], unit: Unit) -> Table:
    """Return each arm's final and highest values."""
    rows: list[Row] = []
    for arm, numbers in summary["arms"].items():
        for measure, found in numbers["measures"].items():
            rows.append(
                [
                    arm,
                    LABELS[measure],
                    _estimate(found["final"], measure),
                    duration(found["final_seconds"], unit),
                    _estimate(found["peak"], measure),
                    duration(found["peak_seconds"], unit),
                    str(found["final"]["num_runs"]),
                ]
            )
    return Table(
        caption="Final and highest values, 95 % intervals over runs",
        head=("arm", "measure", "final", "at", "highest mean", "at", "runs"),
        rows=rows,
    )


def _estimate(estimate: dict[str, Any], measure: str) -> Cell:
    def show(value: float) -> str:
        if measure in PERCENT:
            return f"{100 * value:.2f} %"
        return f"{value:.1f}" if measure == "mean_length" else f"{value:.3f}"

    return with_bounds(estimate, show)


def step_seconds(summary: dict[str, Any]) -> Table:
    """Return the seconds per step of each arm, in all and phase by phase."""
    arms = summary["arms"]
    names = list(dict.fromkeys(phase for arm in arms.values() for phase in arm["phases"]))
    rows: list[Row] = [
        [
            name,
            with_bounds(arm["seconds_per_step"], "{:.2f}".format),
            *(f"{arm['phases'][key]:.2f}" if key in arm["phases"] else "–" for key in names),
        ]
        for name, arm in arms.items()
        if arm["seconds_per_step"] is not None
    ]
    return Table(caption="Seconds per optimizer step", head=("arm", "in all", *names), rows=rows)


def step_seconds_fit(fit: dict[str, Any]) -> Table:
    """Return the seconds per step that were measured and fitted, by n and m."""
    rows: list[Row] = [
        [
            f"n = {row['num_rollouts']}, m = {row['num_generations']}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] - row['residual']:.2f}",
            f"{row['residual']:+.2f}",
        ]
        for row in fit["residuals"]
    ]
    formula = f"seconds per step = {fit['a']:.3g} + {fit['b']:.3g} n + {fit['c']:.3g} m"
    exact = "; three sizes, so it fits exactly" if fit["exact"] else ""
    return Table(
        caption=f"Least squares: {formula}{exact}",
        head=("size", "measured", "fitted", "residual"),
        rows=rows,
    )


def settings(summary: dict[str, Any]) -> Table:
    """Return the settings in which the arms differ."""
    arms = list(summary["arms"])
    rows: list[Row] = [
        [key, *(in_words(row.get(arm)) for arm in arms)]
        for key, row in summary["settings_that_differ"].items()
    ]
    return Table(caption="Settings in which the arms differ", head=("setting", *arms), rows=rows)
