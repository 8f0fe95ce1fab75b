"""Predicted gains from pilots with known rates, and what is said of them."""

import json
import math

import pytest
import torch

from podsrl.core import theory
from podsrl.plan.fit import Costs, Line
from podsrl.plan.gain import _graded, advise, candidates, success_rates
from podsrl.plan.noise import UNKNOWN, Noise
from podsrl.plan.pilot import Pilot
from podsrl.plan.tell import as_json, draw, lines, notes_on, pilot_line

FREE_MEMORY = Line(0.0, 0.0)
KNOWN = Noise(0.3, 0.1, 0.9, 12, 48, "all parameters")


def costs(a: float, b: float, c: float) -> Costs:
    return Costs(Line(a, b), Line(0.0, c), FREE_MEMORY)


def pilot_of(counts: list[int], size: int = 16, noise: Noise = KNOWN) -> Pilot:
    rewards = (torch.arange(size) < torch.tensor(counts)[:, None]).double()
    return Pilot(rewards, noise, len(counts), size, 0, 60.0)


def advice_on(pilot: Pilot, prices: Costs, num_kept: int = 16, memory_gib: float = 8.0):
    rates = success_rates(pilot)
    return rates, advise(rates, pilot.noise, prices, num_kept, memory_gib, dead_rows_free=False)


def test_arms_to_compare():
    pairs = candidates(8)
    assert pairs[0] == (8, 8)
    assert {(4, 4), (64, 64), (16, 8), (64, 8), (256, 32)} <= set(pairs)
    assert len(pairs) == len(set(pairs)) == 5 + 4 * 5
    assert (2, 2) in candidates(2) and (16, 2) in candidates(2)
    assert all(m <= n <= 8 * m for n, m in pairs)


def test_gains_of_alike_prompts_are_those_of_their_rate():
    _, advice = advice_on(pilot_of([4] * 200), costs(1.0, 0.1, 0.2))
    by_arm = {gain.arm: gain for gain in advice.gains}
    p = torch.tensor([0.25])
    grpo, pods = theory.moments(16, 16, p), theory.moments(64, 16, p)
    # 1 + 1.6 + 3.2 = 5.8 s against 1 + 6.4 + 3.2 = 10.6 s
    assert by_arm["grpo 16/16"].seconds == pytest.approx(5.8)
    assert by_arm["pods 64/16"].seconds == pytest.approx(10.6)
    steps = float(theory.steps_ratio(pods, grpo, 0.3)[0])
    value, low, high = by_arm["pods 64/16"].time_ratio
    assert value == pytest.approx(steps * 5.8 / 10.6, rel=0.01)
    assert low < value < high
    widest = [float(theory.steps_ratio(pods, grpo, rho)[0]) * 5.8 / 10.6 for rho in (0.9, 0.1)]
    assert low < widest[0] and high > widest[1]
    assert by_arm["grpo 16/16"].time_ratio == pytest.approx((1.0, 1.0, 1.0))
    assert by_arm["pods 64/16"].frac_dead[0] < 1e-6
    assert by_arm["grpo 4/4"].frac_dead[0] == pytest.approx(0.75**4 + 0.25**4, rel=0.03)


def test_pods_pays_where_successes_are_rare_and_updates_dear():
    rates, advice = advice_on(pilot_of([0] * 30 + [1] * 24 + [2] * 10), costs(0.0, 0.01, 1.0))
    assert advice.pays and advice.verdict.startswith("PODS pays here: pods ")
    assert advice.best.time_ratio[1] == max(gain.time_ratio[1] for gain in advice.gains) > 1
    assert rates.described["mean_rate"][0] == pytest.approx(44 / 64 / 16, rel=0.1)


def test_it_says_that_pods_cannot_win():
    # Half are right and an update costs a fifth of sampling: k / (1 + 2 k) = 1/7 < 1/2.
    _, advice = advice_on(pilot_of([8] * 64), costs(0.0, 1.0, 0.2), num_kept=4)
    assert not advice.pays
    assert advice.verdict.startswith("PODS cannot win here: grpo 4/4 is the better choice")
    # The same, and steps so dear that larger groups are for nothing.
    _, advice = advice_on(
        pilot_of([8] * 64, noise=Noise(0.01, 0.005, 0.02, 9, 36, "")), costs(400.0, 1.0, 0.2), 4
    )
    assert advice.verdict.startswith(
        "PODS cannot win here: GRPO with larger groups is the better choice: grpo 64/64"
    )
    assert advice.best.arm == "grpo 64/64"


def test_it_says_that_pods_will_hardly_pay_where_it_might():
    _, advice = advice_on(pilot_of([2] * 64, noise=UNKNOWN), costs(0.0, 1.0, 0.5))
    assert advice.verdict == "PODS will hardly pay here: grpo 16/16 is the better choice"
    _, advice = advice_on(pilot_of([2] * 64), costs(0.0, 1.0, 0.5))
    assert advice.verdict.startswith(
        "PODS will hardly pay here: GRPO with smaller groups is the better choice: grpo 8/8"
    )


def test_groups_that_do_not_fit_are_no_candidates():
    prices = Costs(Line(1.0, 0.1), Line(0.0, 1.0), Line(0.0, 0.5))  # 32 rows need 16 GiB
    _, advice = advice_on(pilot_of([3] * 20), prices, memory_gib=10.0)
    assert {gain.num_kept for gain in advice.gains} == {4, 8, 16}


def test_dead_rows_that_cost_nothing_help_grpo_more():
    pilot, prices = pilot_of([0] * 50 + [2] * 14), costs(0.0, 0.01, 1.0)
    rates = success_rates(pilot)
    paid, free = (
        advise(rates, KNOWN, prices, 16, 8.0, dead_rows_free=value) for value in (False, True)
    )
    ratios = [
        next(g.time_ratio[0] for g in advice.gains if g.arm == "pods 64/16")
        for advice in (paid, free)
    ]
    assert ratios[1] < 0.7 * ratios[0]


def test_graded_prediction_agrees_with_the_fit_on_0_and_1():
    torch.manual_seed(0)
    rewards = torch.bernoulli(torch.full((64, 512), 0.15, dtype=torch.float64))
    pilot = Pilot(rewards, KNOWN, 64, 512, 0, 0.0)
    prices = costs(1.0, 0.1, 0.2)
    measured, fitted = (
        advise(rates, KNOWN, prices, 16, 8.0, dead_rows_free=True)
        for rates in (_graded(pilot), success_rates(pilot))
    )
    for one, other in zip(measured.gains, fitted.gains, strict=True):
        assert one.time_ratio[0] == pytest.approx(other.time_ratio[0], rel=0.06), one.arm
        assert one.frac_dead[0] == pytest.approx(other.frac_dead[0], abs=0.04), one.arm


def test_graded_rewards_are_told_as_such():
    rewards = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)).double()
    pilot = Pilot(rewards, KNOWN, 16, 8, 0, 0.0)
    rates, advice = advice_on(pilot, costs(1.0, 0.1, 0.2))
    assert rates.described["rewards"] == "graded"
    # Four draws of eight rewards are all one reward once in 8^3.
    assert all(gain.frac_dead[0] < 0.02 for gain in advice.gains)
    assert "rewards are graded" in notes_on(pilot)[0]
    low, high = rates.described["mean_reward"][1:]
    assert low < float(rewards.mean()) < high


@pytest.mark.parametrize("counts", [[0] * 64, [16] * 64, [5], [0] * 32 + [16] * 32])
def test_edge_cases_are_told_in_words_json_and_a_figure(counts, tmp_path):
    pilot = pilot_of(counts, noise=UNKNOWN)
    rates, advice = advice_on(pilot, costs(1.0, 0.1, 0.2), num_kept=4)
    content = json.loads(json.dumps(as_json(pilot, rates, advice), allow_nan=False))
    assert len(content["gains"]) == len(candidates(4))
    assert content["pilot"]["rho"]["high"] is None  # infinity
    text = "\n".join([pilot_line(pilot), *lines(pilot, rates, advice)])
    assert f"{16 * len(counts)} rollouts of {len(counts)} prompts" in text
    assert ("no rollout of the pilot was right" in text) == (sum(counts) == 0)
    assert ("every rollout of the pilot was right" in text) == (min(counts) == 16)
    assert "rho is unknown" in text and advice.verdict in text
    draw(advice, tmp_path / "new" / "gains.png")
    assert (tmp_path / "new" / "gains.png").stat().st_size > 5000


def test_prompts_of_constant_graded_rewards_leave_the_baseline():
    rewards = torch.tensor([[0.0] * 8, [0.5] * 8, [1.0] * 8], dtype=torch.float64)
    pilot = Pilot(rewards, UNKNOWN, 3, 8, 0, 0.0)
    rates, advice = advice_on(pilot, costs(1.0, 0.1, 0.2))
    assert advice.best.arm == "grpo 16/16" and not advice.pays
    assert math.isnan(advice.best.time_ratio[1])
    json.dumps(as_json(pilot, rates, advice), allow_nan=False)


def test_failed_rewards_are_counted():
    pilot = Pilot(torch.ones(2, 4).double(), KNOWN, 3, 4, 1, 0.0)
    assert any("1 prompts are left out" in note for note in notes_on(pilot))
    assert pilot.num_right_P.tolist() == [4, 4]
    assert Pilot(torch.zeros(2, 4).double(), KNOWN, 2, 4, 0, 0.0).num_right_P.tolist() == [0, 0]
    two = Pilot(torch.tensor([[-1.0, 0.5, 0.5]]).double(), KNOWN, 1, 3, 0, 0.0)
    assert two.is_binary and two.num_right_P.tolist() == [2]
