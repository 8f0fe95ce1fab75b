"""What was predicted of a comparison before it ran, beside what it measured."""

from typing import Any

from podsrl.report.axis import headline
from podsrl.report.curves import ComparisonCurves


def compare_predictions(
    comparison: ComparisonCurves, against: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    """Return the predicted ratio of each arm beside the measured one; None without predictions.

    against: the numbers of each arm against the baseline. A prediction is `inside` where its value
    lies in the 95 % interval of what was measured, None where there is no such interval: with one
    run in an arm, or for a ratio of times where steps were measured and seconds per step were not.

    Example: 1.2 predicted and 1.1 (0.9 to 1.3) measured is inside.
    """
    predictions = comparison.predictions
    if predictions is None or predictions["baseline"] != comparison.baseline:
        return None
    rows = {
        arm: predicted | _measured(predictions["ratio"], comparison, against.get(arm, {}))
        for arm, predicted in predictions["arms"].items()
    }
    for row in rows.values():
        low, high = row["measured_low"], row["measured_high"]
        row["inside"] = None if low is None else low <= row["value"] <= high
    told = [row["inside"] for row in rows.values() if row["inside"] is not None]
    return {
        "ratio": predictions["ratio"],
        "arms": rows,
        "num_inside": sum(told),
        "num_told": len(told),
    }


def _measured(
    wanted: str, comparison: ComparisonCurves, against: dict[str, Any]
) -> dict[str, float | None]:
    key = "ratio" if wanted == comparison.clock or comparison.clock == "seconds" else "time_ratio"
    speed_ups = against.get("speed_up")
    found = headline(speed_ups)[1] if speed_ups else {}
    return {
        "measured": found.get(key),
        "measured_low": found.get(f"{key}_low"),
        "measured_high": found.get(f"{key}_high"),
    }


def note_on(comparison: ComparisonCurves) -> list[str]:
    """What a reader must know of predictions that cannot be compared."""
    predictions = comparison.predictions
    if predictions is None:
        return []
    if predictions["baseline"] != comparison.baseline:
        return [
            f"The predictions are against {predictions['baseline']}, which is not the baseline "
            "here, so they are left out."
        ]
    known = {comparison.baseline, *predictions["arms"]} <= set(comparison.step_times)
    if predictions["ratio"] == "time" and comparison.clock == "steps" and not known:
        return [
            "Ratios of time were predicted and steps measured: seconds per step are missing "
            "(podsrl compare FILE --time_steps)."
        ]
    return []
