"""What the kept rollouts teach on average, as gradients of a softmax policy, by enumeration.

The policy is softmax over a few answers, so log-prob gradients are e_y - pi. Averages run over
every order of a sampled group (hence every tie order, the rule's hash being fixed by position) or
over every group that can be sampled, with its probability: no Monte Carlo.
"""

import functools
import itertools
import math

import pytest
import torch
from torch import Tensor

from podsrl.core.advantage import advantages
from podsrl.core.select import select
from podsrl.core.stratified import frac_unrepresented, stratified_weights

LOGITS = torch.tensor([0.7, -0.4, 0.1, -0.9], dtype=torch.float64)
POLICY_Y = LOGITS.softmax(0)
SCORES_YY = torch.eye(4, dtype=torch.float64) - POLICY_Y  # row y: gradient of log pi(y)
# Answers 0 and 3 are right, 1 and 2 wrong.
RIGHT_Y = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
GRADED_Y = torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
P_RIGHT = (POLICY_Y * RIGHT_Y).sum()
GRAD_P_Y = (POLICY_Y * RIGHT_Y) @ SCORES_YY
GRAD_LOGIT_Y = GRAD_P_Y / (P_RIGHT * (1 - P_RIGHT))


def update(answers: Tensor, rewards_Y: Tensor, keep: int, **options):
    """(1 / m) sum over the kept of A times the gradient of log pi, as the trainer would step."""
    rewards = tuple(rewards_Y[answers].tolist())
    kept_M, advantages_M = kept_and_advantages(rewards, keep, **options)
    return advantages_M @ SCORES_YY[answers[kept_M]] / keep


@functools.cache
def kept_and_advantages(rewards: tuple[float, ...], keep: int, rule="max_variance", **options):
    """What is kept of a group, and the advantages: the same for every group with these rewards."""
    rewards_1N = torch.tensor([rewards], dtype=torch.float64)
    kept_1M = select(rewards_1N, keep, rule, seed=3)
    return kept_1M[0], advantages(rewards_1N, kept_1M, **options)[0]


def over_orders(answers: list[int], rewards_Y: Tensor, keep: int, **options):
    """Mean update over all orders of one sampled group."""
    orders = [torch.tensor(order) for order in sorted(set(itertools.permutations(answers)))]
    return sum(update(order, rewards_Y, keep, **options) for order in orders) / len(orders)


def over_groups(num_rollouts: int, keep: int, accept=lambda num_right: True, **options):
    """Mean update over all groups that can be sampled with an accepted number of right ones."""
    total_Y, mass = torch.zeros(4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(4), repeat=num_rollouts):
        answers = torch.tensor(group)
        if accept(RIGHT_Y[answers].sum()):
            probability = POLICY_Y[answers].prod()
            total_Y += probability * update(answers, RIGHT_Y, keep, **options)
            mass += probability
    return total_Y / mass


def angle_cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


GROUP = [0, 1, 2, 2, 3, 1]  # right: 0 and 3; wrong: 1, 2, 2, 1


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("keep", [2, 4])
def test_stratified_update_of_the_kept_is_the_update_of_all(estimator, keep):
    options = {"source": "all", "estimator": estimator}
    full_Y = update(torch.tensor(GROUP), RIGHT_Y, len(GROUP), **options)
    weighted_Y = over_orders(GROUP, RIGHT_Y, keep, weights="stratified", **options)
    torch.testing.assert_close(weighted_Y, full_Y, rtol=1e-12, atol=1e-14)
    # Without weights it is another vector: two of four kept are right, one third of all is.
    plain_Y = over_orders(GROUP, RIGHT_Y, keep, **options)
    assert (plain_Y - full_Y).norm() > 0.1 * full_Y.norm()


def test_unweighted_kept_rewards_teach_a_multiple_for_binary_rewards():
    # Given the sample, the classes' mean gradients count equally: 1/2 sqrt((m-1)/m) (g_1 - g_0).
    answers, keep = torch.tensor(GROUP), 4
    is_right = RIGHT_Y[answers].bool()
    gap_Y = SCORES_YY[answers[is_right]].mean(0) - SCORES_YY[answers[~is_right]].mean(0)
    # |A| = (1/2) / (std + 1e-4) with std = (1/2) sqrt(m / (m - 1)).
    size = 0.5 / (0.5 * math.sqrt(keep / (keep - 1)) + 1e-4)
    torch.testing.assert_close(over_orders(GROUP, RIGHT_Y, keep), size / 2 * gap_Y)


@pytest.mark.parametrize("keep", [2, 4])
def test_expected_updates_of_binary_rewards(keep):
    # With m/2 of both classes sampled: 1/2 sqrt((m-1)/m) grad logit p, and 1/4 grad logit p.
    def both_suffice(num_right):
        return keep // 2 <= num_right <= keep + 1 - keep // 2

    got_Y = over_groups(keep + 1, keep, both_suffice)
    expected_Y = 0.5 * math.sqrt((keep - 1) / keep) * GRAD_LOGIT_Y
    torch.testing.assert_close(got_Y, expected_Y, rtol=2.5e-4, atol=0)  # EPSILON in the division
    got_Y = over_groups(keep + 1, keep, both_suffice, estimator="dr_grpo")
    torch.testing.assert_close(got_Y, GRAD_LOGIT_Y / 4, rtol=1e-12, atol=0)


def test_expected_stratified_update_is_that_of_plain_policy_gradient():
    # The group's own mean as baseline costs (n - 1) / n; RLOO's does not.
    options = {"source": "all", "weights": "stratified"}
    got_Y = over_groups(4, 2, estimator="dr_grpo", **options)
    torch.testing.assert_close(got_Y, 3 / 4 * GRAD_P_Y, rtol=1e-12, atol=0)
    got_Y = over_groups(4, 2, estimator="rloo", **options)
    torch.testing.assert_close(got_Y, GRAD_P_Y, rtol=1e-12, atol=0)
    unweighted_Y = over_groups(4, 2, estimator="dr_grpo", source="all")
    assert (unweighted_Y - 3 / 4 * GRAD_P_Y).norm() > 0.1 * GRAD_P_Y.norm()


GRADED_GROUP = [0, 1, 2, 2, 2, 3]  # rewards 1, 0, 0.5, 0.5, 0.5, 1


def test_graded_rewards_keep_their_direction_only_with_weights():
    options = {"source": "all", "estimator": "dr_grpo", "rule": "percentile"}
    keep = 4  # sorted places 0, 2, 3, 5: one 0, two 0.5, one 1
    full_Y = update(torch.tensor(GRADED_GROUP), GRADED_Y, 6, source="all", estimator="dr_grpo")
    weighted_Y = over_orders(GRADED_GROUP, GRADED_Y, keep, weights="stratified", **options)
    torch.testing.assert_close(weighted_Y, full_Y, rtol=1e-12, atol=1e-14)
    assert angle_cosine(over_orders(GRADED_GROUP, GRADED_Y, keep, **options), full_Y) < 0.99


def test_an_unrepresented_class_is_missing_from_the_update():
    # max_variance keeps the 0 and one of the 1s; nobody stands for the three 0.5.
    options = {"source": "all", "estimator": "dr_grpo"}
    answers = torch.tensor(GRADED_GROUP)
    full_Y = update(answers, GRADED_Y, 6, **options)
    weighted_Y = over_orders(GRADED_GROUP, GRADED_Y, 2, weights="stratified", **options)
    # Mean reward 3.5 / 6; the three have advantage 1/2 - 3.5 / 6 = -1/12 each.
    missing_Y = -3 / 12 * SCORES_YY[2] / 6
    torch.testing.assert_close(weighted_Y + missing_Y, full_Y, rtol=1e-12, atol=1e-14)
    rewards_1N = GRADED_Y[answers].unsqueeze(0)
    is_kept_1N = torch.zeros(1, 6, dtype=torch.bool).scatter(1, select(rewards_1N, 2), True)
    assert frac_unrepresented(rewards_1N, is_kept_1N).item() == 0.5


def test_weights_by_hand():
    # Rewards (0, 0, 0, 1), 2 kept: (3/4) / (1/2) and (1/4) / (1/2).
    rewards = torch.tensor([[0.0, 0.0, -0.0, 1.0], [2.0, 2.0, 5.0, 5.0]])
    is_kept = torch.tensor([[True, False, False, True], [True, True, False, False]])
    # Second group: the 2s stand for themselves, (1/2) / 1, the 5s have nobody.
    expected = [[1.5, 0.0, 0.0, 0.5], [0.5, 0.5, 0.0, 0.0]]
    assert stratified_weights(rewards, is_kept).tolist() == expected
    assert frac_unrepresented(rewards, is_kept).item() == 2 / 8
    # All kept: no weights.
    assert (stratified_weights(rewards, torch.ones_like(is_kept)) == 1).all()


def test_weights_of_groups_that_keep_different_numbers():
    # 1 and 3 kept, on average 2: what a row weighs in a mean over rows. (4/4) / (1/2), (2/4) /
    # (1/2), (2/4) / (2/2).
    rewards = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    is_kept = torch.tensor([[True, False, False, False], [True, False, True, True]])
    expected = [[2.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.5, 0.5]]
    assert stratified_weights(rewards, is_kept).tolist() == expected


def test_failed_rewards_neither_learn_nor_count_as_a_class():
    rewards = torch.tensor([[math.nan, 0.0, math.nan, 1.0]])
    is_kept = torch.tensor([[True, True, False, True]])
    # n = 4 and m = 3: each of the two scored ones stands for itself, (1/4) / (1/3).
    weights = stratified_weights(rewards, is_kept)
    torch.testing.assert_close(weights[0, [1, 3]], torch.tensor([0.75, 0.75]))
    assert frac_unrepresented(rewards, is_kept).item() == 0
    kept = torch.tensor([[0, 1, 3]])
    got = advantages(rewards, kept, source="all", weights="stratified", estimator="dr_grpo")
    torch.testing.assert_close(got, torch.tensor([[0.0, -0.375, 0.375]]))
