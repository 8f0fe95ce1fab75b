"""The tables of a report: what stands in them; page.html.j2 lays them out."""

from collections.abc import Sequence
from typing import Any

from podsrl.report.axis import duration, headline, time_unit
from podsrl.report.curves import PERCENT, STEPS, Unit
from podsrl.report.sentences import in_words, is_told, minus, times, verdict
from podsrl.report.table import Cell, Row, Table, with_bounds

LABELS = {
    "accuracy": "accuracy",
    "held_out_reward": "reward, held out",
    "both_rate": "right and in format",
    "format_rate": "in format",
    "mean_length": "length, tokens",
    "frac_cut_off": "cut off by the limit",
    "reward": "reward, all sampled",
    "kept_reward": "reward, kept",
}


def overview(summaries: Sequence[dict[str, Any]], units: Sequence[Unit]) -> Table:
    """Return one row per comparison, baseline and arm; several comparisons are links.

    Against the baseline, then against every other arm that selects nothing.
    """
    several = len(summaries) > 1
    timed = any(found for summary in summaries for found in _time_ratios(summary))
    rows: list[Row] = []
    for index, (summary, unit) in enumerate(zip(summaries, units, strict=True), 1):
        link = Cell(text=summary["title"], href=f"#comparison-{index}")
        every = {summary["baseline"]: summary["against_baseline"], **summary["against_others"]}
        for base, arms in every.items():
            for arm, against in arms.items():
                if against["speed_up"]:
                    row = _at_a_glance(base, arm, against, unit, timed=timed)
                    rows.append([link, *row] if several else row)
    head = ["against", "arm", "best of the other", "reached", _ratio_head(units)]
    head += ["times as fast by time"] if timed else []
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


def _time_ratios(summary: dict[str, Any]) -> list[bool]:
    """Of every arm, whether its ratio of time is known besides that of steps."""
    return [
        "time_ratio" in headline(against["speed_up"])[1]
        for against in summary["against_baseline"].values()
        if against["speed_up"]
    ]


def _ratio_head(units: Sequence[Unit]) -> str:
    return "times as fast" + (" by steps" if all(unit == STEPS for unit in units) else "")


def _at_a_glance(base: str, arm: str, against: dict[str, Any], unit: Unit, *, timed: bool) -> Row:
    _, found = headline(against["speed_up"])
    time_ratio: Row = [_ratio(found, "time_ratio")] if timed else []
    return [
        base,
        arm,
        f"{100 * found['level']:.2f} %",
        duration(found["reached"], unit),
        with_bounds(found, times, key="ratio"),
        *time_ratio,
        _difference(against["differences"]["accuracy"]["window"], "accuracy"),
        verdict(against["speed_up"], unit),
    ]


def _ratio(found: dict[str, Any], key: str) -> str | Cell:
    """A ratio with its bounds; a dash where it is not known."""
    return with_bounds(found, times, key=key) if found.get(key) is not None else "–"


def speed_ups(summary: dict[str, Any], unit: Unit) -> Table:
    """Return when each arm reaches the baseline's best, by level and by grid."""
    timed = any(_time_ratios(summary))
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
                        duration(found["baseline_reached"], unit),
                        with_bounds(found, lambda value: duration(value, unit), key="reached"),
                        with_bounds(found, times, key="ratio"),
                        *([_ratio(found, "time_ratio")] if timed else []),
                        "–" if never is None else f"{100 * never:.1f} %",
                    ]
                )
    base = summary["baseline"]
    head = ("arm", "level", "accuracy", f"{base} reaches it", "the arm reaches it")
    return Table(
        caption=f"When each arm reaches the best mean accuracy of {base}",
        head=(
            *head,
            _ratio_head([unit]),
            *(["times as fast by time"] if timed else []),
            "draws that never do",
        ),
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
            label = LABELS[measure] + (", points" if measure in PERCENT else "")
            rows.append([arm, label, *_differences(found, measure, unit)])
        if "at_equal_time" in against:
            found = against["at_equal_time"]
            seconds = time_unit(found["end"]["until"])
            row = _differences(found, "accuracy", seconds)
            rows.append([arm, "accuracy, points, at equal time", *row])
    return Table(
        caption=f"Arm minus {summary['baseline']}; bold where the interval leaves out 0",
        head=("arm", "measure", "mean over the window", "at its end", "window until", "runs"),
        rows=rows,
    )


def _differences(found: dict[str, Any], measure: str, unit: Unit) -> Row:
    window = found["window"]
    return [
        _difference(window, measure),
        _difference(found["end"], measure),
        duration(window["until"], unit),
        f"{window['num_runs']} {'pairs' if window['paired'] else 'runs, not paired'}",
    ]


def predictions(summary: dict[str, Any]) -> Table:
    """Return what was predicted of each arm beside what was measured."""
    found = summary["predictions"] or {"arms": {}, "num_inside": 0, "num_told": 0, "ratio": ""}
    rows: list[Row] = [
        [
            arm,
            with_bounds(row, times),
            _ratio(row, "measured"),
            {True: "inside", False: "outside", None: "cannot be told"}[row["inside"]],
        ]
        for arm, row in found["arms"].items()
    ]
    by = "by steps" if found["ratio"] == "steps" else "by time"
    return Table(
        caption=f"Times as fast {by}: {found['num_inside']} of {found['num_told']} predictions lie "
        "inside the interval of what was measured",
        head=("arm", "predicted", "measured", "prediction"),
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
                    duration(found["final_at"], unit),
                    _estimate(found["peak"], measure),
                    duration(found["peak_at"], unit),
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
    alone = any(arm["seconds_per_step_alone"] for arm in arms.values())
    rows: list[Row] = [
        [
            name,
            *([_alone(arm["seconds_per_step_alone"])] if alone else []),
            with_bounds(arm["seconds_per_step"], "{:.2f}".format),
            *(f"{arm['phases'][key]:.2f}" if key in arm["phases"] else "–" for key in names),
        ]
        for name, arm in arms.items()
        if arm["seconds_per_step"] is not None
    ]
    head = ("arm", *(["measured alone"] if alone else []), "in all", *names)
    return Table(caption="Seconds per optimizer step", head=head, rows=rows)


def _alone(found: dict[str, Any] | None) -> str | Cell:
    return "–" if found is None else with_bounds(found, "{:.3f}".format)


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
