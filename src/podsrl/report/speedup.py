"""How much sooner one arm reaches what another reached, and by how much they differ.

Pure functions on arrays. Axes: S runs (seeds) of an arm, K common times, D bootstrap draws.
Infinite seconds mean "never within what was measured"; a ratio of 0 means the same.
"""

import math
from typing import Any, TypedDict

import numpy as np

from podsrl.intervals import mean_interval, t_quantile
from podsrl.report.curves import Curve

NUM_DRAWS = 10_000


class Estimate(TypedDict):
    """A figure with its 95 % interval over runs; None for bounds that one run cannot give."""

    value: float
    low: float | None
    high: float | None
    num_runs: int


class SpeedUp(TypedDict):
    """When two arms reach a level of the baseline's mean curve, and the ratio of the times."""

    level: float
    baseline_seconds: float
    seconds: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    seconds_low: float | None
    seconds_high: float | None
    frac_never: float | None


def first_reach(
    at_K: np.ndarray, curves_DK: np.ndarray, level_D: np.ndarray, *, interpolated: bool
) -> np.ndarray:
    """Return the first time each curve is at its level or above, infinity where it never is.

    On the raw grid this is a time of the grid; interpolated, it is where the straight line from
    the point before crosses the level. A curve that starts at the level has the first time.

    Example: times 0, 1, 2, curve 0.2, 0.4, 0.8, level 0.5: 2 on the grid, 1.25 interpolated.
    """
    above_DK = curves_DK >= level_D[:, None]
    # The first True. In a row without any it is 0, which the last line of this function undoes.
    index_D = above_DK.argmax(axis=1)
    reach_D = at_K[index_D]
    if interpolated:
        # A curve at the level from the start has no point before: both ends of its line are
        # point 0, it does not rise, and the time comes out as that of point 0 whatever the share.
        before_D = np.maximum(index_D - 1, 0)
        rows_D = np.arange(len(curves_DK))
        low_D, high_D = curves_DK[rows_D, before_D], curves_DK[rows_D, index_D]
        rise_D = np.where(high_D > low_D, high_D - low_D, 1.0)
        share_D = np.clip((level_D - low_D) / rise_D, 0.0, 1.0)
        reach_D = at_K[before_D] + share_D * (reach_D - at_K[before_D])
    return np.where(above_DK.any(axis=1), reach_D, np.inf)


def speed_up(
    baseline: Curve,
    arm: Curve,
    *,
    share: float = 1.0,
    interpolated: bool,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> SpeedUp:
    """Return how many times sooner the arm's mean curve reaches the baseline's peak, or a share.

    The level is `share` times the highest point of the baseline's mean curve; both arms' times
    are the first at which their mean curves reach it, and ratio = baseline / arm. 0 means the arm
    never does; where both are there at time 0 the ratio is 1. The interval is the 95 % percentile
    interval (Efron 1979) over `num_draws` draws of runs with replacement, in both arms alike, each
    with its own level; draws that never reach it count as never and are not dropped
    (`frac_never`). With one run in either arm there is no interval; with fewer than about five it
    is too narrow.

    Example: baseline 0.2, 0.4, 0.6 and arm 0.2, 0.6, 0.7 at 0, 1, 2 h: level 0.6, ratio 2.
    """
    # A choice of runs is a row of weights over them, here the same for all; so the measured mean
    # and 10,000 means of drawn runs are the same matrix product.
    one = np.ones((1, len(baseline.seeds))) / len(baseline.seeds)
    other = np.ones((1, len(arm.seeds))) / len(arm.seeds)
    level_D, base_D, arm_D = _times(baseline, arm, one, other, share, interpolated)
    result = SpeedUp(
        level=float(level_D[0]),
        baseline_seconds=float(base_D[0]),
        seconds=float(arm_D[0]),
        ratio=float(_ratio(base_D, arm_D)[0]),
        ratio_low=None,
        ratio_high=None,
        seconds_low=None,
        seconds_high=None,
        frac_never=None,
    )
    if min(len(baseline.seeds), len(arm.seeds)) > 1:
        # One generator for both: the arms are drawn independently, as separate samples of runs.
        draws = np.random.default_rng(seed)
        base_DS, arm_DS = (_draw(draws, len(c.seeds), num_draws) for c in (baseline, arm))
        _, base_D, arm_D = _times(baseline, arm, base_DS, arm_DS, share, interpolated)
        result["ratio_low"], result["ratio_high"] = _percentiles(_ratio(base_D, arm_D))
        result["seconds_low"], result["seconds_high"] = _percentiles(arm_D)
        result["frac_never"] = float(np.isinf(arm_D).mean())
    return result


def _times(
    baseline: Curve,
    arm: Curve,
    base_DS: np.ndarray,
    arm_DS: np.ndarray,
    share: float,
    interpolated: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Level, baseline's time and arm's time for each row of weights over runs."""
    base_DK, arm_DK = base_DS @ baseline.values_SK, arm_DS @ arm.values_SK
    # Each draw has its own peak: a level fixed at the measured one would leave out that the
    # baseline's best is uncertain, too.
    level_D = share * base_DK.max(axis=1)
    return (
        level_D,
        first_reach(baseline.at_K, base_DK, level_D, interpolated=interpolated),
        first_reach(arm.at_K, arm_DK, level_D, interpolated=interpolated),
    )


def _draw(draws: np.random.Generator, num_runs: int, num_draws: int) -> np.ndarray:
    # Drawing S runs with replacement is multinomial in how often each of them comes.
    return draws.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=num_draws) / num_runs


def _ratio(base_D: np.ndarray, arm_D: np.ndarray) -> np.ndarray:
    """Baseline's time over the arm's; 1 where both are 0, 0 where the arm's is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((base_D == 0) & (arm_D == 0), 1.0, base_D / arm_D)


def _percentiles(values_D: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 %, each a value that was drawn: a mean with infinity would be none."""
    # The usual interpolation between two draws is infinity or NaN where one of them is infinite.
    low, high = np.quantile(values_D, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


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
        "final_seconds": float(curve.at_K[-1]),
        "peak": estimate(curve.values_SK[:, peak]),
        "peak_seconds": float(curve.at_K[peak]),
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
        when: {**_difference(base_S, arm_S, pairs), "until_seconds": float(at_K[-1])}
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
    return {"seconds": at_K.tolist(), **{key: [one[key] for one in found] for key in keys}}


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
