"""How much sooner one arm reaches what another reached.

Pure functions on arrays. Axes: S runs (seeds) of an arm, K common times, D bootstrap draws. A time
is in seconds or, of arms compared at equal steps, in optimizer steps. An infinite time means "never
within what was measured"; a ratio of 0 means the same.
"""

from typing import NotRequired, TypedDict

import numpy as np

from podsrl.intervals import Z
from podsrl.report.curves import Curve
from podsrl.runs.step_times import StepTime

NUM_DRAWS = 10_000


class SpeedUp(TypedDict):
    """When two arms reach a level of the baseline's mean curve, and the ratio of the times."""

    level: float
    baseline_reached: float
    reached: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    reached_low: float | None
    reached_high: float | None
    frac_never: float | None
    paired: bool
    time_ratio: NotRequired[float]
    """Of steps times seconds per step, where these are known; with bounds as `ratio`."""
    time_ratio_low: NotRequired[float | None]
    time_ratio_high: NotRequired[float | None]


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
    step_times: tuple[StepTime, StepTime] | None = None,
    paired: bool = True,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> SpeedUp:
    """Return how many times sooner the arm's mean curve reaches the baseline's peak, or a share.

    The level is `share` times the highest point of the baseline's mean curve; both arms' times
    are the first at which their mean curves reach it, and ratio = baseline / arm. 0 means the arm
    never does; where both are there at time 0 the ratio is 1. The interval is the 95 % percentile
    interval (Efron 1979) over `num_draws` draws of runs with replacement, each with its own level;
    if `paired`, arms of the same seeds are drawn together, seed by seed, others independently.
    Draws that never reach the level count as never and are not dropped (`frac_never`). With one run
    in either arm there is no interval; with fewer than about five it is too narrow.

    step_times: seconds per step of baseline and arm, where the curves are over steps. `time_ratio`
    is then that of steps times seconds; each draw of runs has its own seconds of either arm, from
    the log-normal whose 95 % interval is the measured one.

    Example: baseline 0.2, 0.4, 0.6 and arm 0.2, 0.6, 0.7 at 0, 1, 2 h: level 0.6, ratio 2. At 0, 1,
    2 steps of 1 and 1.5 s: time ratio 2 / 1.5 = 1.33.
    """
    result = _measured(baseline, arm, share, interpolated, step_times)
    result["paired"] = paired and result["paired"]
    if min(len(baseline.seeds), len(arm.seeds)) > 1:
        draws = np.random.default_rng(seed)
        drawn = _draw_runs(draws, baseline, arm, num_draws, paired=result["paired"])
        _, base_D, arm_D = _times(baseline, arm, *drawn, share, interpolated)
        result["ratio_low"], result["ratio_high"] = _percentiles(_ratio(base_D, arm_D))
        result["reached_low"], result["reached_high"] = _percentiles(arm_D)
        result["frac_never"] = float(np.isinf(arm_D).mean())
        if step_times:
            base_D, arm_D = (
                steps_D * _draw_seconds(draws, found, num_draws)
                for steps_D, found in zip((base_D, arm_D), step_times, strict=True)
            )
            bounds = _percentiles(_ratio(base_D, arm_D))
            result["time_ratio_low"], result["time_ratio_high"] = bounds
    return result


def _measured(
    baseline: Curve,
    arm: Curve,
    share: float,
    interpolated: bool,
    step_times: tuple[StepTime, StepTime] | None,
) -> SpeedUp:
    """The figures of the runs as they are, without intervals."""
    # A choice of runs is a row of weights over them, here the same for all; so the measured mean
    # and 10,000 means of drawn runs are the same matrix product.
    weights = [np.full((1, len(curve.seeds)), 1 / len(curve.seeds)) for curve in (baseline, arm)]
    level_D, base_D, arm_D = _times(baseline, arm, weights[0], weights[1], share, interpolated)
    result = SpeedUp(
        level=float(level_D[0]),
        baseline_reached=float(base_D[0]),
        reached=float(arm_D[0]),
        ratio=float(_ratio(base_D, arm_D)[0]),
        ratio_low=None,
        ratio_high=None,
        reached_low=None,
        reached_high=None,
        frac_never=None,
        paired=_are_pairs(baseline, arm),
    )
    if step_times:
        base_seconds, seconds = (found["value"] for found in step_times)
        result["time_ratio"] = float(_ratio(base_seconds * base_D, seconds * arm_D)[0])
        result["time_ratio_low"] = result["time_ratio_high"] = None
    return result


def _draw_runs(
    draws: np.random.Generator, baseline: Curve, arm: Curve, num_draws: int, *, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of weights over the runs of both."""
    base_DS = _draw(draws, len(baseline.seeds), num_draws)
    if paired:  # runs of one seed share the order of prompts: a draw takes both or neither
        return base_DS, base_DS[:, [baseline.seeds.index(seed) for seed in arm.seeds]]
    return base_DS, _draw(draws, len(arm.seeds), num_draws)


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


def _are_pairs(baseline: Curve, arm: Curve) -> bool:
    """Whether each run of one has its one run of the same seed in the other."""
    seeds = set(arm.seeds)
    return sorted(baseline.seeds) == sorted(arm.seeds) and len(seeds) == len(arm.seeds)


def _draw_seconds(draws: np.random.Generator, found: StepTime, num_draws: int) -> np.ndarray:
    deviation = np.log(found["high"] / found["low"]) / (2 * Z)
    return found["value"] * np.exp(deviation * draws.standard_normal(num_draws))


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
