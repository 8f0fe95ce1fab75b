"""Means over runs with their intervals, and by how much one arm differs from another.

Pure functions on arrays, as in speedup.py. Axes: S runs (seeds) of an arm, K common times.
"""

import math
from typing import Any, TypedDict

import numpy as np

from podsrl.intervals import mean_interval, t_quantile
from podsrl.report.curves import Curve


class Estimate(TypedDict):
    """A figure with its 95 % interval over runs; None for bounds that one run cannot give."""

    value: float
    low: float | None
    high: float | None
    num_runs: int


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean over runs with Student's t interval.

    Example: 0.4, 0.5, 0.6: mean 0.5, s = 0.1, t = 4.303, interval 0.252 to 0.748.
    """
    found = mean_interval([float(value) for value in values])
    return Estimate(
        value=found["value"], low=found["low"], high=found["high"], num_runs=len(values)
    )


def band(curve: Curve) -> tuple[np.ndarray, np.ndarray] | None:
    """Lower and upper 95 % t bounds of the mean at each time; None for one run."""
    num_runs = len(curve.seeds)
    if num_runs == 1:
        return None
    error_K = curve.values_SK.std(axis=0, ddof=1) / math.sqrt(num_runs)
    # Student's t and not the bootstrap: with the few runs of a comparison the bootstrap's band is
    # too narrow, and a mean at one time, unlike a time to a level, has a distribution to rely on.
    half_K = t_quantile(num_runs - 1) * error_K
    return curve.mean_K - half_K, curve.mean_K + half_K


def final_and_peak(curve: Curve) -> dict[str, Estimate | float]:
    """Return the value at the last time, and the highest point of the mean curve, with intervals.

    The interval of the peak is that of the runs at the peak's time; choosing the highest of K
    points favours noisy curves, and the interval does not know that.

    Example: one run 0.2, 0.5, 0.4 at 0, 1, 2 s: final 0.4, peak 0.5 at 1 s.
    """
    peak = int(curve.mean_K.argmax())
    return {
        "final": estimate(curve.values_SK[:, -1]),
        "final_at": float(curve.at_K[-1]),
        "peak": estimate(curve.values_SK[:, peak]),
        "peak_at": float(curve.at_K[peak]),
    }


def differences(baseline: Curve, arm: Curve) -> dict[str, dict[str, Any]]:
    """Return arm minus baseline, over the window and at its end, with 95 % intervals.

    The window is what both arms were measured over, without time 0; its mean is over the
    baseline's times, to which the arm's runs are interpolated. Runs with the same seed are paired
    (t interval of their differences) if there are two such pairs; otherwise all runs are compared
    by Welch's t interval (1947).

    Example: runs of one seed each give a value without bounds.
    """
    # All arms start from the same model, so time 0 can only draw the difference towards 0.
    at_K = baseline.at_K[(baseline.at_K > 0) & (baseline.at_K <= arm.at_K[-1])]
    if not len(at_K):
        at_K = baseline.at_K[:1]
    base_SK, arm_SK, pairs = _aligned(baseline, arm, at_K)
    reduced = {
        "window": (base_SK.mean(axis=1), arm_SK.mean(axis=1)),
        "end": (base_SK[:, -1], arm_SK[:, -1]),
    }
    return {
        when: {**_difference(base_S, arm_S, pairs), "until": float(at_K[-1])}
        for when, (base_S, arm_S) in reduced.items()
    }


def lead(baseline: Curve, arm: Curve) -> dict[str, list[float]]:
    """Return arm minus baseline at each of the baseline's times that both cover, time 0 included.

    `value`, and `low` and `high`, intervals as in `differences`, each for one time by itself.

    Example: baseline 0.2, 0.4 and arm 0.2, 0.7 at 0 and 1 s: values 0 and 0.3.
    """
    at_K = baseline.at_K[baseline.at_K <= arm.at_K[-1]]
    base_SK, arm_SK, pairs = _aligned(baseline, arm, at_K)
    found = [_difference(*columns, pairs) for columns in zip(base_SK.T, arm_SK.T, strict=True)]
    keys = ("value", "low", "high")
    return {"at": at_K.tolist(), **{key: [one[key] for one in found] for key in keys}}


def _aligned(
    baseline: Curve, arm: Curve, at_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Both arms' runs at these times, and the pairs of positions of runs with the same seed."""
    base_SK, arm_SK = (
        np.array([np.interp(at_K, curve.at_K, row) for row in curve.values_SK])
        for curve in (baseline, arm)
    )
    pairs = [
        (baseline.seeds.index(seed), index)
        for index, seed in enumerate(arm.seeds)
        if seed in baseline.seeds
    ]
    return base_SK, arm_SK, pairs


def _difference(
    base_S: np.ndarray, arm_S: np.ndarray, pairs: list[tuple[int, int]]
) -> dict[str, Any]:
    # Runs of one seed share the order of prompts, so their difference varies less than runs do.
    if len(pairs) > 1:
        found = estimate(np.array([arm_S[ours] - base_S[theirs] for theirs, ours in pairs]))
        return {**found, "paired": True}
    value = float(arm_S.mean() - base_S.mean())
    num_runs = len(base_S) + len(arm_S)
    low = high = None
    if min(len(base_S), len(arm_S)) > 1:
        half = _welch_half(base_S, arm_S)
        low, high = value - half, value + half
    return {"value": value, "low": low, "high": high, "num_runs": num_runs, "paired": False}


def _welch_half(base_S: np.ndarray, arm_S: np.ndarray) -> float:
    """Half the width of Welch's interval, degrees of freedom rounded down."""
    errors = [float(values.var(ddof=1)) / len(values) for values in (base_S, arm_S)]
    if sum(errors) == 0:  # degrees of freedom would be 0/0; there is nothing to be uncertain of
        return 0.0
    parts = [
        error**2 / (len(values) - 1) for error, values in zip(errors, (base_S, arm_S), strict=True)
    ]
    degrees = max(1, int(sum(errors) ** 2 / sum(parts)))
    return t_quantile(degrees) * math.sqrt(sum(errors))
