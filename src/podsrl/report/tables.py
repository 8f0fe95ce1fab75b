"""The tables of a report, as HTML."""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from podsrl.report.curves import PERCENT, Unit
from podsrl.report.sentences import duration, is_told, minus, times, verdict

LABELS = {
    "accuracy": "accuracy",
    "both_rate": "right and in format",
    "format_rate": "in format",
    "mean_length": "length, tokens",
    "frac_cut_off": "cut off by the limit",
    "reward": "reward, all sampled",
    "kept_reward": "reward, kept",
}


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is wider than the page.

    Cells are HTML already; the first cell of a row names it, and those below with the same name.
    """
    if not rows:
        return ""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row[0])]
    body = "".join(f"<tbody>{_group(group)}</tbody>" for group in groups)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{columns}</tr></thead>"
        f"{body}</table></div>"
    )


def _group(rows: Sequence[Sequence[str]]) -> str:
    """Rows with the same first cell, which names them all."""
    cells = ["".join(f"<td>{cell}</td>" for cell in row[1:]) for row in rows]
    kind = "rowgroup" if len(rows) > 1 else "row"
    cells[0] = f'<th scope="{kind}" rowspan="{len(rows)}">{rows[0][0]}</th>{cells[0]}'
    return "".join(f"<tr>{row}</tr>" for row in cells)


def with_interval(figure: str, low: str | None, high: str | None) -> str:
    """A figure with its bounds in small type; "never" to "never" goes without saying."""
    if low is None or high is None or figure == low == high == "never":
        return figure
    return f'{figure} <span class="bounds">{low} to {high}</span>'


def overview(summaries: Sequence[dict[str, Any]], units: Sequence[Unit]) -> str:
    """One row per arm and comparison, linked to its section where there are several."""
    several = len(summaries) > 1
    rows = []
    for index, (summary, unit) in enumerate(zip(summaries, units, strict=True), 1):
        link = f'<a href="#comparison-{index}">{escape(summary["title"])}</a>'
        for arm, against in summary["against_baseline"].items():
            if against["speed_up"]:
                row = _at_a_glance(summary["baseline"], arm, against, unit)
                rows.append([link, *row] if several else row)
    head = ["arms", "baseline's best", "reached", "times as fast", "accuracy over the window"]
    first = ["comparison"] if several else []
    return table("At a glance, with 95 % intervals", [*first, *head, "faster or slower"], rows)


def _at_a_glance(base: str, arm: str, against: dict[str, Any], unit: Unit) -> list[str]:
    peak = against["speed_up"]["peak"]["interpolated"]
    return [
        f"{escape(arm)} against {escape(base)}",
        f"{100 * peak['level']:.2f} %",
        duration(peak["seconds"], unit),
        _ratio(peak),
        _percent_difference(against["differences"]["accuracy"]["window"]) + " points",
        verdict(against["speed_up"]),
    ]


def main_tables(summary: dict[str, Any], unit: Unit) -> str:
    """Return the tables that compare arms with the baseline."""
    return _speed_ups(summary, unit) + _differences(summary, unit)


def more_tables(summary: dict[str, Any], unit: Unit) -> str:
    """Return the tables of each arm by itself."""
    return "".join(
        (
            _measures(summary, unit),
            _step_seconds(summary),
            _fit(summary["step_seconds_fit"]),
            _settings(summary),
        )
    )


def _speed_ups(summary: dict[str, Any], unit: Unit) -> str:
    rows = []
    for arm, against in summary["against_baseline"].items():
        for level, grids in against["speed_up"].items():
            for grid, found in grids.items():
                never = found["frac_never"]
                rows.append(
                    [
                        escape(arm),
                        f"{level}, {grid}",
                        f"{100 * found['level']:.2f} %",
                        duration(found["baseline_seconds"], unit),
                        with_interval(
                            duration(found["seconds"], unit),
                            *_bounds(found, "seconds", lambda value: duration(value, unit)),
                        ),
                        _ratio(found),
                        "–" if never is None else f"{100 * never:.1f} %",
                    ]
                )
    base = summary["baseline"]
    head = ("arm", "level", "accuracy", f"{base} reaches it", "the arm reaches it")
    return table(
        f"When each arm reaches the best mean accuracy of {base}",
        (*head, "times as fast", "draws that never do"),
        rows,
    )


def _ratio(found: dict[str, Any]) -> str:
    return with_interval(times(found["ratio"]), *_bounds(found, "ratio", times))


def _bounds(found: dict[str, Any], key: str, show: Any) -> tuple[str | None, str | None]:
    if found[f"{key}_low"] is None:
        return None, None
    return show(found[f"{key}_low"]), show(found[f"{key}_high"])


def _percent_difference(difference: dict[str, Any], scale: float = 100.0) -> str:
    value = minus(f"{scale * difference['value']:+.2f}")
    if difference["low"] is None:
        return value
    low, high = (minus(f"{scale * difference[bound]:+.2f}") for bound in ("low", "high"))
    shown = with_interval(value, low, high)
    return f"<strong>{shown}</strong>" if is_told(difference) else shown


def _differences(summary: dict[str, Any], unit: Unit) -> str:
    rows = []
    for arm, against in summary["against_baseline"].items():
        for measure, found in against["differences"].items():
            scale = 100.0 if measure in PERCENT else 1.0
            window = found["window"]
            rows.append(
                [
                    escape(arm),
                    LABELS[measure] + (", points" if measure in PERCENT else ""),
                    _percent_difference(window, scale),
                    _percent_difference(found["end"], scale),
                    duration(window["until_seconds"], unit),
                    f"{window['num_runs']} {'pairs' if window['paired'] else 'runs, not paired'}",
                ]
            )
    head = ("arm", "measure", "mean over the window", "at its end", "window until", "runs")
    caption = f"Arm minus {summary['baseline']}; bold where the interval leaves out 0"
    return table(caption, head, rows)


def _measures(summary: dict[str, Any], unit: Unit) -> str:
    rows = []
    for arm, numbers in summary["arms"].items():
        for measure, found in numbers["measures"].items():
            rows.append(
                [
                    escape(arm),
                    LABELS[measure],
                    _estimate(found["final"], measure),
                    duration(found["final_seconds"], unit),
                    _estimate(found["peak"], measure),
                    duration(found["peak_seconds"], unit),
                    str(found["final"]["num_runs"]),
                ]
            )
    head = ("arm", "measure", "final", "at", "highest mean", "at", "runs")
    return table("Final and highest values, 95 % intervals over runs", head, rows)


def _estimate(estimate: dict[str, Any], measure: str) -> str:
    def show(value: float) -> str:
        if measure in PERCENT:
            return f"{100 * value:.2f} %"
        return f"{value:.1f}" if measure == "mean_length" else f"{value:.3f}"

    if estimate["low"] is None:
        return show(estimate["value"])
    return with_interval(show(estimate["value"]), show(estimate["low"]), show(estimate["high"]))


def _step_seconds(summary: dict[str, Any]) -> str:
    rows = []
    names = list(dict.fromkeys(p for arm in summary["arms"].values() for p in arm["phases"]))
    for arm, numbers in summary["arms"].items():
        found = numbers["seconds_per_step"]
        if found is None:
            continue
        bounds = (
            (None, None)
            if found["low"] is None
            else (f"{found['low']:.2f}", f"{found['high']:.2f}")
        )
        phases = [
            f"{numbers['phases'][name]:.2f}" if name in numbers["phases"] else "–" for name in names
        ]
        rows.append([escape(arm), with_interval(f"{found['value']:.2f}", *bounds), *phases])
    return table("Seconds per optimizer step", ("arm", "in all", *names), rows)


def _fit(found: dict[str, Any]) -> str:
    fit = found["fit"]
    if fit is None:
        return f'<p class="aside">No fit of seconds per step: {escape(found["why"])}.</p>'
    rows = [
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
    head = ("size", "measured", "fitted", "residual")
    return table(f"Least squares: {formula}{exact}", head, rows)


def _settings(summary: dict[str, Any]) -> str:
    arms = list(summary["arms"])
    rows = [
        [escape(key), *(escape(str(row.get(arm))) for arm in arms)]
        for key, row in summary["settings_that_differ"].items()
    ]
    return table("Settings in which the arms differ", ("setting", *arms), rows)
