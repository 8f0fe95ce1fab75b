"""Times to a level, ratios, intervals, differences and fits, on numbers worked out by hand."""

import math

import numpy as np
import pytest

from helpers.arms import curve
from podsrl.report.collapse import collapses
from podsrl.report.differences import band, differences, estimate, final_and_peak, lead
from podsrl.report.speedup import first_reach, speed_up
from podsrl.report.summary import fit_step_seconds


def reach(times, values, level, interpolated):
    found = first_reach(
        np.array(times), np.array([values]), np.array([level]), interpolated=interpolated
    )
    return float(found[0])


@pytest.mark.parametrize(
    ("level", "grid", "interpolated"),
    [
        (0.5, 2.0, 1.25),  # 1 + (0.5 - 0.4) / (0.8 - 0.4)
        (0.8, 2.0, 2.0),
        (0.4, 1.0, 1.0),
        (0.1, 0.0, 0.0),  # there from the start
        (0.9, math.inf, math.inf),
    ],
)
def test_first_reach(level, grid, interpolated):
    times, values = [0.0, 1.0, 2.0, 3.0], [0.2, 0.4, 0.8, 0.6]
    assert reach(times, values, level, False) == grid
    assert reach(times, values, level, True) == pytest.approx(interpolated)


def test_the_first_time_counts_and_not_the_last():
    assert reach([0.0, 1.0, 2.0, 3.0], [0.0, 0.6, 0.3, 0.9], 0.6, True) == 1.0


def test_speed_up_of_one_run_each():
    # Peak 0.6 at 3; arm: 0.5 at 1, 0.7 at 2: grid 2, between at 1.5.
    base, arm = curve([[0.0, 0.2, 0.4, 0.6]]), curve([[0.0, 0.5, 0.7, 0.7]])
    found = speed_up(base, arm, interpolated=False)
    assert found["level"] == 0.6
    assert (found["baseline_reached"], found["reached"], found["ratio"]) == (3.0, 2.0, 1.5)
    assert found["ratio_low"] is found["frac_never"] is None
    between = speed_up(base, arm, interpolated=True)
    assert between["reached"] == pytest.approx(1.5)
    assert between["ratio"] == pytest.approx(2.0)


def test_share_of_the_peak_moves_both_times():
    # Half of 0.6 is 0.3: baseline at 1.5, arm at 0.6.
    base, arm = curve([[0.0, 0.2, 0.4, 0.6]]), curve([[0.0, 0.5, 0.7, 0.7]])
    found = speed_up(base, arm, share=0.5, interpolated=True)
    assert found["baseline_reached"] == pytest.approx(1.5)
    assert found["reached"] == pytest.approx(0.6)


def test_an_arm_against_itself_is_as_fast():
    same = curve([[0.0, 0.3, 0.5], [0.1, 0.2, 0.6], [0.0, 0.4, 0.4]])
    found = speed_up(same, same, interpolated=True)
    assert found["ratio"] == 1.0
    assert found["ratio_low"] <= 1.0 <= found["ratio_high"]


def test_never_is_a_value_of_the_interval():
    # The arm reaches 0.5 in the draws where its mean does: both of its runs being the second.
    # Of two runs drawn twice that is 1 of 4; never in 3 of 4.
    base = curve([[0.0, 0.5], [0.0, 0.5]])
    arm = curve([[0.0, 0.1], [0.0, 0.9]])
    found = speed_up(base, arm, interpolated=False)
    assert found["ratio"] == 1.0  # mean 0.5
    worse = curve([[0.0, 0.0], [0.0, 0.9]])
    found = speed_up(base, worse, interpolated=False)
    assert (found["reached"], found["ratio"]) == (math.inf, 0.0)
    assert found["frac_never"] == pytest.approx(0.75, abs=0.02)
    assert (found["ratio_low"], found["ratio_high"]) == (0.0, 1.0)
    assert (found["reached_low"], found["reached_high"]) == (1.0, math.inf)


@pytest.mark.parametrize("paired", [True, False])
def test_bootstrap_equals_all_resamples_counted_out(paired):
    # Two runs each: 3 x 3 kinds of draws with weights 1/4, 1/2, 1/4; of pairs its diagonal.
    base = curve([[0.0, 0.2, 0.6], [0.0, 0.4, 0.4]])
    arm = curve([[0.0, 0.5, 0.6], [0.0, 0.3, 0.7]], seeds=["0", "1"] if paired else ["2", "3"])
    chances = {}
    for i, first in ((0, 0.25), (0.5, 0.5), (1, 0.25)):
        for j, second in ((i, 1.0),) if paired else ((0, 0.25), (0.5, 0.5), (1, 0.25)):
            b = (1 - i) * base.values_SK[0] + i * base.values_SK[1]
            a = (1 - j) * arm.values_SK[0] + j * arm.values_SK[1]
            ratio = reach(base.at_K, b, b.max(), True) / reach(arm.at_K, a, b.max(), True)
            chances[round(ratio, 9)] = chances.get(round(ratio, 9), 0) + first * second
    ordered = sorted(chances)
    totals = np.cumsum([chances[ratio] for ratio in ordered])
    low = ordered[int(np.searchsorted(totals, 0.025))]
    high = ordered[int(np.searchsorted(totals, 0.975))]
    found = speed_up(base, arm, interpolated=True, num_draws=50_000)
    assert found["ratio_low"] == pytest.approx(low)
    assert found["ratio_high"] == pytest.approx(high)


def test_a_baseline_that_is_best_untrained():
    base, arm = curve([[0.5, 0.4]]), curve([[0.5, 0.6]])
    assert speed_up(base, arm, interpolated=True)["ratio"] == 1.0  # both there at 0
    late = curve([[0.4, 0.6]])
    assert speed_up(base, late, interpolated=True)["ratio"] == 0.0  # 0 s against 0.5 s
    assert speed_up(late, curve([[0.7, 0.1]]), interpolated=True)["ratio"] == math.inf


def test_estimate_and_band():
    # s = 0.1, t(2) = 4.303, half = 4.303 x 0.1 / sqrt(3) = 0.2484.
    found = estimate(np.array([0.4, 0.5, 0.6]))
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] == pytest.approx(0.2516, abs=1e-4)
    low, high = band(curve([[0.4], [0.5], [0.6]]))
    assert low[0] == pytest.approx(0.2516, abs=1e-4)
    assert high[0] == pytest.approx(0.7484, abs=1e-4)
    assert band(curve([[0.4]])) is None


def test_final_and_peak():
    found = final_and_peak(curve([[0.2, 0.6, 0.4], [0.2, 0.8, 0.5]], every=10.0))
    assert found["final"]["value"] == pytest.approx(0.45)
    assert found["peak"]["value"] == pytest.approx(0.7)
    assert (found["final_at"], found["peak_at"]) == (20.0, 10.0)


def test_paired_difference_leaves_out_time_zero():
    # Seed a: (0.1 + 0.3) / 2 = 0.2; seed b: (0.2 + 0.2) / 2 = 0.2; ends 0.3 and 0.2.
    base = curve([[0.0, 0.1, 0.2], [0.0, 0.5, 0.6]], seeds=["a", "b"])
    arm = curve([[0.9, 0.7, 0.8], [0.9, 0.2, 0.5]], seeds=["b", "a"])
    found = differences(base, arm)
    assert found["window"]["paired"]
    assert found["window"]["value"] == pytest.approx(0.2)
    assert found["window"]["high"] - found["window"]["low"] == pytest.approx(0.0, abs=1e-12)
    # 0.25 -+ 12.706 x 0.0707 / sqrt(2) = 0.25 -+ 0.635
    assert found["end"]["value"] == pytest.approx(0.25)
    assert found["end"]["low"] == pytest.approx(0.25 - 0.6353, abs=1e-3)


def test_pairs_are_found_by_seed_in_any_order():
    # 0.3 - 0.1, 0.7 - 0.5, 0.5 - 0.3: all 0.2, so the interval has no width.
    base = curve([[0.0, 0.1], [0.0, 0.5], [0.0, 0.3]], seeds=["a", "b", "c"])
    arm = curve([[0.0, 0.5], [0.0, 0.3], [0.0, 0.7]], seeds=["c", "a", "b"])
    found = differences(base, arm)["end"]
    assert (found["low"], found["high"]) == pytest.approx((0.2, 0.2))


def test_runs_that_do_not_pair_are_compared_by_welch():
    # Variances 0.02 / 2 and 0.08 / 2: error sqrt(0.05) = 0.2236; degrees 0.05^2 / (0.01^2 + 0.04^2)
    # = 1.47, rounded down to 1, t = 12.706.
    base = curve([[0.0, 0.1], [0.0, 0.3]], seeds=["a", "b"])
    arm = curve([[0.0, 0.4], [0.0, 0.8]], seeds=["c", "d"])
    found = differences(base, arm)["window"]
    assert not found["paired"]
    assert found["value"] == pytest.approx(0.4)
    assert found["high"] == pytest.approx(0.4 + 12.706 * 0.2236, abs=1e-2)
    assert differences(base, curve([[0.0, 0.4]], seeds=["c"]))["end"]["low"] is None


def test_the_window_ends_where_the_shorter_arm_does():
    base = curve([[0.0, 0.1, 0.2, 0.9]])
    found = differences(base, curve([[0.0, 0.2, 0.4]]))
    assert found["window"]["until"] == 2.0
    assert found["window"]["value"] == pytest.approx(0.15)


def test_fit_of_step_seconds():
    # 1 + n / 16 + m / 8
    exact = {(16, 16): 4.0, (64, 16): 7.0, (64, 64): 13.0}
    fit = fit_step_seconds(exact)
    assert fit["a"] == pytest.approx(1.0)
    assert fit["b"] == pytest.approx(1 / 16)
    assert fit["c"] == pytest.approx(1 / 8)
    assert fit["exact"]
    more = fit_step_seconds({**exact, (32, 32): 9.0})
    assert not more["exact"]
    assert sum(row["residual"] for row in more["residuals"]) == pytest.approx(0.0, abs=1e-9)
    assert max(abs(row["residual"]) for row in more["residuals"]) > 0.1


def test_no_fit_without_three_independent_sizes():
    assert fit_step_seconds({(16, 16): 4.0, (64, 16): 7.0}) is None
    assert fit_step_seconds({(16, 16): 4.0, (32, 32): 7.0, (64, 64): 13.0}) is None


@pytest.mark.parametrize(
    ("accuracy", "format_rate", "died"),
    [
        ([0.6, 0.8, 0.78], [0.8, 0.9, 0.02], ["format"]),
        ([0.6, 0.8, 0.1], [0.8, 0.9, 0.9], ["accuracy"]),
        ([0.6, 0.8, 0.78], [0.8, 0.9, 0.5], []),  # half of 0.9 is 0.45
        ([0.6, 0.8, 0.3], [0.8, 0.9, 0.02], []),  # both died
        ([0.0, 0.05, 0.0], [0.8, 0.9, 0.9], []),  # was never alive
    ],
)
def test_collapse(accuracy, format_rate, died):
    found = collapses(curve([accuracy]), curve([format_rate]))
    assert [run["died"] for run in found] == died


def test_lead_over_time_by_hand():
    # Seeds 0 and 1 are pairs: differences 0, 0; 0.1, 0.3; 0.2, 0.2. Mean 0.2 and s = 0.1414 at 1 s,
    # t = 12.706 for one degree of freedom: 0.2 -+ 12.706 x 0.1414 / sqrt(2) = 0.2 -+ 1.2706.
    base = curve([[0.2, 0.3, 0.4], [0.2, 0.3, 0.5]])
    arm = curve([[0.2, 0.4, 0.6], [0.2, 0.6, 0.7]])
    found = lead(base, arm)
    assert found["at"] == [0.0, 1.0, 2.0]
    assert found["value"] == pytest.approx([0.0, 0.2, 0.2])
    assert found["low"] == pytest.approx([0.0, -1.0706, 0.2], abs=1e-4)
    assert found["high"] == pytest.approx([0.0, 1.4706, 0.2], abs=1e-4)


def test_lead_ends_with_the_shorter_arm_and_one_run_has_no_bounds():
    found = lead(curve([[0.2, 0.3, 0.4]]), curve([[0.2, 0.5]], seeds=["7"]))
    assert found["at"] == [0.0, 1.0]
    assert found["value"] == pytest.approx([0.0, 0.2])
    assert found["low"] == found["high"] == [None, None]
