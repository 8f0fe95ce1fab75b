"""Every number of the report, as plain dicts: what summary.json holds."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from podsrl.report.axis import levels, over_of
from podsrl.report.collapse import collapses
from podsrl.report.curves import MEASURES, Arm, ComparisonCurves, Curve, curve_of
from podsrl.report.differences import (
    Estimate,
    differences,
    estimate,
    final_and_peak,
    lead,
)
from podsrl.report.predictions import compare_predictions, note_on
from podsrl.report.speedup import speed_up
from podsrl.runs.step_times import StepTime

DIFFERENCES = (
    "accuracy",
    "held_out_reward",
    "both_rate",
    "format_rate",
    "mean_length",
    "reward",
)
PROMPT_SETTINGS = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")


def summarise(comparison: ComparisonCurves) -> dict[str, Any]:
    """Return the numbers of one comparison; docs/report.md defines each.

    Times are in seconds, or in steps where `clock` says steps. A measure that was not recorded is
    absent. Infinite times and ratios are the text "never" and "at once" (see `plain`).
    """
    arms = {name: arm for name, arm in comparison.arms.items() if arm.used}
    base = arms.get(comparison.baseline or "")
    against = _against_baseline(comparison, arms, base)
    summary = {
        "title": comparison.title,
        "transfer": comparison.transfer,
        "clock": comparison.clock,
        "baseline": comparison.baseline if base else None,
        "about": comparison.about,
        "notes": [*comparison.notes, *_gaps(comparison), *note_on(comparison)],
        "settings_that_differ": _different_settings(comparison),
        "arms": {name: _arm(arm, comparison) for name, arm in arms.items()},
        "against_baseline": against,
        "against_others": _against_others(comparison, arms, base),
        "predictions": compare_predictions(comparison, against),
        "step_seconds_fit": _fit(list(arms.values()), comparison.step_times),
    }
    plained = plain(summary)
    assert isinstance(plained, dict)
    return plained


def plain(value: Any) -> Any:
    """Return the value in types that JSON has; infinity, which JSON lacks, is "never".

    An infinite ratio of times is "at once": the arm was there from the start, the baseline not.
    """
    if isinstance(value, dict):
        return {
            str(key): "at once" if "ratio" in str(key) and _infinite(item) else plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return "never" if _infinite(value) else value


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _gaps(comparison: ComparisonCurves) -> list[str]:
    """What the reader must know about missing runs and thin evidence."""
    notes = []
    for name, arm in comparison.arms.items():
        if not arm.used:
            notes.append(f"{name}: no run was evaluated, so it is in no figure.")
            continue
        if not any(run.finished for run in arm.used):
            notes.append(f"{name}: no run has finished; its figures end where its shortest run is.")
        if len(arm.used) == 1:
            notes.append(f"{name}: one run, so its figures have no interval.")
    few = [name for name, arm in comparison.arms.items() if 1 < len(arm.used) < 5]
    if few:
        notes.append(
            f"Bootstrap intervals over fewer than 5 runs are too narrow: {', '.join(few)}."
        )
    return notes


def _different_settings(comparison: ComparisonCurves) -> dict[str, dict[str, Any]]:
    """Setting -> arm -> value, for the settings in which arms differ."""
    keys = dict.fromkeys(key for arm in comparison.arms.values() for key in arm.settings)
    table = {
        key: {name: arm.settings.get(key) for name, arm in comparison.arms.items()} for key in keys
    }
    return {key: row for key, row in table.items() if len({str(v) for v in row.values()}) > 1}


def _arm(arm: Arm, comparison: ComparisonCurves) -> dict[str, Any]:
    over = over_of(comparison)
    curves = {
        measure: curve for measure in MEASURES if (curve := curve_of(arm, measure, over=over))
    }
    return {
        "num_rollouts": arm.size[0] if arm.size else None,
        "num_generations": arm.size[1] if arm.size else None,
        "selection_rule": arm.settings.get("selection_rule"),
        "seeds": [run.seed for run in arm.used],
        "measures": {measure: final_and_peak(curve) for measure, curve in curves.items()},
        "curves": {
            measure: {"at": curve.at_K.tolist(), "mean": curve.mean_K.tolist()}
            for measure, curve in curves.items()
        },
        "seconds_per_step": _seconds_per_step(arm),
        "seconds_per_step_alone": comparison.step_times.get(arm.name),
        "phases": _phases(arm),
        "collapses": _collapses(curves),
    }


def _collapses(curves: dict[str, Curve]) -> list[Any]:
    if "accuracy" not in curves or "format_rate" not in curves:
        return []
    return list(collapses(curves["accuracy"], curves["format_rate"]))


def _seconds_per_step(arm: Arm) -> Estimate | None:
    """Training seconds over steps at each run's last evaluation."""
    ends = [run.points[-1] for run in arm.used]
    values = [(end["seconds"] or 0.0) / step for end in ends if (step := end.get("step"))]
    return estimate(np.array(values)) if values else None


def _phases(arm: Arm) -> dict[str, float]:
    runs = [run.phases for run in arm.used if run.phases]
    names = dict.fromkeys(name for phases in runs for name in phases)
    return {name: sum(phases.get(name, 0.0) for phases in runs) / len(runs) for name in names}


def _against_baseline(
    comparison: ComparisonCurves, arms: dict[str, Arm], base: Arm | None
) -> dict[str, dict[str, Any]]:
    others = {name: arm for name, arm in arms.items() if base and arm is not base}
    return {name: _against(comparison, base, arm) for name, arm in others.items() if base}


def _against(comparison: ComparisonCurves, base: Arm, arm: Arm) -> dict[str, Any]:
    result: dict[str, Any] = {"speed_up": {}, "differences": {}, "lead": None}
    over = over_of(comparison)
    for measure in DIFFERENCES:
        theirs, ours = (curve_of(one, measure, over=over) for one in (base, arm))
        if theirs is None or ours is None:
            continue
        result["differences"][measure] = differences(theirs, ours)
        if measure == "accuracy":
            step_times = _step_times(comparison, base, arm)
            result["lead"] = lead(theirs, ours)
            result["speed_up"] = _speed_ups(theirs, ours, comparison, step_times)
            if step_times:
                timed = (
                    replace(curve, at_K=curve.at_K * found["value"])
                    for curve, found in zip((theirs, ours), step_times, strict=True)
                )
                result["at_equal_time"] = differences(*timed)
    return result


def _step_times(
    comparison: ComparisonCurves, base: Arm, arm: Arm
) -> tuple[StepTime, StepTime] | None:
    """Of the baseline and the arm, where both are known."""
    known = comparison.step_times
    return (known[base.name], known[arm.name]) if {base.name, arm.name} <= set(known) else None


def _speed_ups(
    theirs: Curve,
    ours: Curve,
    comparison: ComparisonCurves,
    step_times: tuple[StepTime, StepTime] | None,
) -> dict[str, dict[str, Any]]:
    """Level -> grid, or interpolated -> when both arms get there."""
    return {
        name: {
            grid: speed_up(
                theirs,
                ours,
                share=share,
                interpolated=grid == "interpolated",
                step_times=step_times,
                paired=comparison.paired,
            )
            for grid in ("grid", "interpolated")
        }
        for name, share in levels(comparison.share).items()
    }


def _against_others(
    comparison: ComparisonCurves, arms: dict[str, Arm], base: Arm | None
) -> dict[str, dict[str, Any]]:
    """Baseline -> arm -> as against the baseline, for every other arm that selects nothing.

    The usual questions are against GRPO on as many rollouts as are kept, and on as many as are
    sampled; the baseline is but one of them.
    """
    others = {name: arm for name, arm in arms.items() if arm.size and arm.size[0] == arm.size[1]}
    return {
        name: {
            its: _against(comparison, other, arm)
            for its, arm in arms.items()
            if arm not in (base, other)
        }
        for name, other in others.items()
        if base and other is not base
    }


def _fit(arms: list[Arm], step_times: dict[str, StepTime]) -> dict[str, Any]:
    """The fit of seconds per step, of those measured alone where they are, or why there is none."""
    prompts = {_prompts_per_step(arm) for arm in arms}
    if len(prompts) > 1:
        return {"fit": None, "why": "the arms take different numbers of prompts per step"}
    seconds: dict[tuple[int, int], list[float]] = {}
    for arm in arms:
        found = step_times.get(arm.name) or _seconds_per_step(arm)
        if arm.size and found:
            seconds.setdefault(arm.size, []).append(found["value"])
    fit = fit_step_seconds({size: sum(values) / len(values) for size, values in seconds.items()})
    if fit is None:
        return {"fit": None, "why": "it takes three (n, m) that are not on one line"}
    return {"fit": fit, "why": None}


def fit_step_seconds(seconds: dict[tuple[int, int], float]) -> dict[str, object] | None:
    """Return the least-squares fit seconds per step = a + b n + c m over (n, m) -> seconds.

    None with fewer than three (n, m), or where they lie on a line, so that a, b, c are not
    determined. With exactly three the residuals are 0 by construction.

    Example: (16, 16): 4, (64, 16): 7, (64, 64): 13 give a = 1, b = 1/16, c = 1/8.
    """
    sizes = sorted(seconds)
    # m follows n on a line if, for one, all arms keep a quarter: then b and c cannot be told apart,
    # and least squares would still return a pair of them.
    design = np.array([[1.0, n, m] for n, m in sizes])
    if len(sizes) < 3 or np.linalg.matrix_rank(design) < 3:
        return None
    measured = np.array([seconds[size] for size in sizes])
    weights = np.linalg.lstsq(design, measured, rcond=None)[0]
    residuals = measured - design @ weights
    return {
        "a": float(weights[0]),
        "b": float(weights[1]),
        "c": float(weights[2]),
        "residuals": [
            {"num_rollouts": n, "num_generations": m, "seconds": float(s), "residual": float(r)}
            for (n, m), s, r in zip(sizes, measured, residuals, strict=True)
        ],
        "exact": len(sizes) == 3,
    }


def _prompts_per_step(arm: Arm) -> float | None:
    batch, accumulation, m = (arm.settings.get(key) for key in PROMPT_SETTINGS)
    if batch is None or m is None:
        return None
    return batch * (accumulation or 1) / m
