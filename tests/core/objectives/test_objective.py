"""Objectives against their definitions: identities between papers, gradients, groups, NaN."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives import OBJECTIVES, KeptBatch
from podsrl.core.objectives.ratio import sapg
from podsrl.core.objectives.regression import (
    agro,
    astar_po,
    log_partition,
    optimal_value,
    qrpo,
    quantiles,
    rebel,
    residual,
    vargrad,
)

OWN = ("agro", "astar_po", "qrpo", "rebel", "vargrad", "sapg")
BY_GROUP = ("agro", "rebel", "vargrad")
BINARY_K4 = [0.0, 0.0, 0.0, 1.0]


def make(
    log_ratios: list[float] | Tensor, rewards: list[float] | Tensor, **changes: Any
) -> KeptBatch:
    """One token per row; the log-ratio to the reference, which is the old policy too."""
    ratio_B = torch.as_tensor(log_ratios, dtype=torch.float64)
    rewards_B = torch.as_tensor(rewards, dtype=torch.float64)
    log_probs_B1 = ratio_B[:, None] - 2.0
    settings: dict[str, Any] = {
        "log_probs_BT": log_probs_B1,
        "old_log_probs_BT": torch.full_like(log_probs_B1, -2.0),
        "mask_BT": torch.ones_like(log_probs_B1),
        "rewards_B": rewards_B,
        "advantages_B": rewards_B - rewards_B.nanmean(),
        "group_B": torch.zeros(len(rewards_B), dtype=torch.int64),
        "reference_log_probs_BT": torch.full_like(log_probs_B1, -2.0),
        **changes,
    }
    return KeptBatch(**settings)


def run(name: str, batch: KeptBatch, **options: float | None) -> Tensor:
    return OBJECTIVES[name].function(batch, **{**OBJECTIVES[name].options, **options})[0]


class Policy:
    """A softmax over six answers, so that g_i = grad log pi(y_i) is the gradient of a policy."""

    def __init__(self, seed: int, num_rows: int = 5) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()
        self.reference = torch.randn(6, generator=rng, dtype=torch.float64)
        self.answer_B = torch.randint(6, (num_rows,), generator=rng)
        self.rewards_B = torch.rand(num_rows, generator=rng, dtype=torch.float64)
        self.reference_BK = torch.rand(1, 8, generator=rng, dtype=torch.float64).repeat(num_rows, 1)

    def batch(self, *, at_reference: bool = False, **changes: Any) -> KeptBatch:
        log_probs_B = self.logits.log_softmax(0)[self.answer_B]
        reference_B = self.reference.log_softmax(0)[self.answer_B]
        if at_reference:
            reference_B = log_probs_B.detach()
        return make(
            log_probs_B - reference_B,
            self.rewards_B,
            extras={"reference_rewards": self.reference_BK},
            **changes,
        )

    def score(self, weight_B: Tensor) -> Tensor:
        """Mean over rows of weight_i * g_i."""
        log_probs_B = self.logits.log_softmax(0)[self.answer_B]
        return torch.autograd.grad((weight_B * log_probs_B).mean(), self.logits)[0]

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.logits, retain_graph=True)[0]


def leave_one_out(values_B: Tensor) -> Tensor:
    """v_i minus the mean of the others."""
    num = len(values_B)
    return values_B - (values_B.sum() - values_B) / (num - 1)


# ---- the residual and the variance family


def test_residual() -> None:
    # 1 - 0.1 * 0.5 = 0.95;  0 - 0.1 * (-2) = 0.2
    assert residual(make([0.5, -2.0], [1.0, 0.0]), beta=0.1).tolist() == pytest.approx([0.95, 0.2])


def test_log_ratio_is_the_sum_over_the_tokens_that_count() -> None:
    batch = make(
        [0.0, 0.0],
        [0.0, 1.0],
        log_probs_BT=torch.tensor([[-1.0, -2.0, 9.0], [-1.0, 7.0, torch.nan]]),
        old_log_probs_BT=torch.zeros(2, 3),
        reference_log_probs_BT=torch.tensor([[-1.5, -2.5, 0.0], [-3.0, 0.0, torch.inf]]),
        mask_BT=torch.tensor([[1, 1, 0], [1, 0, 0]]),
    )
    # row 0: (-1 + 1.5) + (-2 + 2.5) = 1;  row 1: -1 + 3 = 2;  to the old policy -3 and -1
    assert batch.log_ratio_B().tolist() == [1.0, 2.0]
    assert batch.log_ratio_B("old").tolist() == [-3.0, -1.0]


def test_agro_by_hand() -> None:
    # beta 0.1: u = (0 - 0.1, 1 + 0.2) = (-0.1, 1.2); mean 0.55, variance 2 * 0.65^2 = 0.845
    loss, metrics = agro(make([1.0, -2.0], [0.0, 1.0]), beta=0.1)
    assert loss.item() == pytest.approx(0.4225)
    assert metrics["residual_variance"].item() == pytest.approx(0.845)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_of_agro_is_minus_beta_times_leave_one_out_of_u(seed: int) -> None:
    policy = Policy(seed)
    batch = policy.batch()
    loss, _ = agro(batch, beta=0.3)
    u_B = residual(batch, beta=0.3).detach()
    torch.testing.assert_close(policy.gradient(loss), -0.3 * policy.score(leave_one_out(u_B)))


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_agro_at_the_reference_is_minus_beta_times_rloo(seed: int) -> None:
    policy = Policy(seed)
    loss, _ = agro(policy.batch(at_reference=True), beta=0.3)
    rloo = policy.score(leave_one_out(policy.rewards_B))
    torch.testing.assert_close(policy.gradient(loss), -0.3 * rloo)


@pytest.mark.parametrize("name", ["agro", "vargrad"])
def test_zero_loss_exactly_at_reward_over_beta_plus_a_constant(name: str) -> None:
    rewards = torch.tensor([0.0, 0.25, 1.0, 1.0])
    optimum = (rewards - 0.7) / 0.2
    assert run(name, make(optimum, rewards), beta=0.2).item() == pytest.approx(0.0, abs=1e-12)
    assert run(name, make(optimum + 5, rewards), beta=0.2).item() == pytest.approx(0.0, abs=1e-12)
    moved = optimum + torch.tensor([0.0, 0.0, 0.0, 0.1])
    assert run(name, make(moved, rewards), beta=0.2).item() > 1e-5


@pytest.mark.parametrize("name", BY_GROUP)
def test_a_constant_added_to_the_rewards_of_a_prompt_changes_nothing(name: str) -> None:
    policy = Policy(1, num_rows=6)
    group_B = torch.tensor([0, 1, 0, 1, 0, 1])
    loss = run(name, policy.batch(group_B=group_B))
    before = policy.gradient(loss)
    policy.rewards_B = policy.rewards_B + torch.tensor([3.0, -7.0] * 3)
    shifted = run(name, policy.batch(group_B=group_B))
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(policy.gradient(shifted), before)


@pytest.mark.parametrize("seed", range(3))
def test_vargrad_is_the_variance_of_u_over_beta_squared(seed: int) -> None:
    policy, beta = Policy(seed), 0.25
    batch = policy.batch()
    loss, _ = vargrad(batch, beta=beta)
    u_B = residual(batch, beta=beta)
    torch.testing.assert_close(loss, u_B.var() / beta**2)
    torch.testing.assert_close(loss, 2 / beta**2 * agro(batch, beta=beta)[0])
    # Trajectory balance (log Z + lr - r / beta)^2 with the log Z that minimises it, times k/(k-1).
    balance_B = batch.log_ratio_B() - policy.rewards_B / beta
    best = (balance_B - balance_B.mean()).square().mean()
    torch.testing.assert_close(loss, best * 5 / 4)


def test_vargrad_is_zero_at_the_policy_proportional_to_reference_times_exp_reward() -> None:
    policy, beta = Policy(2, num_rows=6), 0.5
    policy.answer_B = torch.arange(6)
    policy.logits = (policy.reference + policy.rewards_B / beta).requires_grad_()
    assert vargrad(policy.batch(), beta=beta)[0].item() == pytest.approx(0.0, abs=1e-12)


# ---- REBEL


@pytest.mark.parametrize("seed", range(3))
def test_rebel_is_the_mean_over_all_pairs(seed: int) -> None:
    policy, eta = Policy(seed), 0.7
    batch = policy.batch()
    ratios, rewards = batch.log_ratio_B("old").tolist(), policy.rewards_B.tolist()
    paper, code = [], []
    for i, j in itertools.combinations(range(5), 2):
        difference, reward_difference = ratios[i] - ratios[j], rewards[i] - rewards[j]
        paper.append((difference / eta - reward_difference) ** 2)
        code.append((difference - eta * reward_difference) ** 2)
    loss = rebel(batch, rebel_eta=eta)[0].item()
    assert loss == pytest.approx(sum(paper) / 10)
    # The published code's loss is eta^2 times the paper's.
    assert eta**2 * loss == pytest.approx(sum(code) / 10)


def test_rebel_is_four_agro_with_the_reference_for_the_last_iterate() -> None:
    policy, beta = Policy(3), 0.4
    batch = policy.batch()
    four = 4 * agro(batch, beta=beta)[0]
    loss = rebel(batch, rebel_eta=1 / beta)[0]
    torch.testing.assert_close(loss, four)
    torch.testing.assert_close(policy.gradient(loss), policy.gradient(four))


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_gradient_of_rebel_at_the_old_policy_is_minus_four_over_eta_rloo(eta: float) -> None:
    policy = Policy(4)
    loss, _ = rebel(policy.batch(at_reference=True), rebel_eta=eta)
    rloo = policy.score(leave_one_out(policy.rewards_B))
    torch.testing.assert_close(policy.gradient(loss), -4 / eta * rloo)


def test_rebel_of_a_binary_pair_asks_for_a_margin_of_eta() -> None:
    # margin 0.3 - (-0.5) = 0.8, eta 2: (0.8 - 2)^2 / 4 = 0.36, for either order of the pair
    assert rebel(make([0.3, -0.5], [1, 0]), rebel_eta=2.0)[0].item() == pytest.approx(0.36)
    assert rebel(make([-0.5, 0.3], [0, 1]), rebel_eta=2.0)[0].item() == pytest.approx(0.36)


def test_rebel_of_equal_rewards_pulls_log_ratios_together() -> None:
    # rewards equal: the squared margin 1 over eta^2 = 4
    assert rebel(make([1.0, 0.0], [1, 1]), rebel_eta=2.0)[0].item() == pytest.approx(0.25)


def test_rebel_is_minimised_by_the_mirror_descent_step() -> None:
    policy, eta = Policy(5, num_rows=6), 1.5
    policy.answer_B = torch.arange(6)
    policy.logits = (policy.reference + eta * policy.rewards_B).requires_grad_()
    assert rebel(policy.batch(), rebel_eta=eta)[0].item() == pytest.approx(0.0, abs=1e-12)


# ---- A*-PO


@pytest.mark.parametrize("num_right", range(9))
@pytest.mark.parametrize("value_beta", [0.05, 0.5, 4.0])
def test_optimal_value_of_binary_rewards_has_a_closed_form(
    num_right: int, value_beta: float
) -> None:
    rewards = torch.tensor([[1.0] * num_right + [0.0] * (8 - num_right)], dtype=torch.float64)
    q = num_right / 8
    closed = value_beta * math.log(1 - q + q * math.exp(1 / value_beta))
    assert optimal_value(rewards, value_beta=value_beta).item() == pytest.approx(closed)


def test_optimal_value_at_its_limits() -> None:
    rewards = torch.tensor([BINARY_K4], dtype=torch.float64)
    at = {b: round(optimal_value(rewards, value_beta=b).item(), 4) for b in (0.5, 1e4, 1e-3, 1e-6)}
    # mean for large b, maximum for small: 1 - 1e-3 * log 4 = 0.9986
    assert at == {0.5: 0.4772, 1e4: 0.2500, 1e-3: 0.9986, 1e-6: 1.0}
    assert optimal_value(torch.zeros(1, 8), value_beta=0.5).item() == 0.0
    assert optimal_value(torch.ones(1, 8), value_beta=0.5).item() == pytest.approx(1.0)


def test_optimal_value_leaves_out_nan() -> None:
    nan = math.nan
    rewards = torch.tensor([[0.0, 1.0, nan, nan], [nan] * 4])
    value = optimal_value(rewards, value_beta=0.5)
    assert value[0].item() == pytest.approx(0.5 * math.log((1 + math.exp(2)) / 2))
    assert value[1].isnan()


def test_astar_po_by_hand() -> None:
    extras = {"reference_rewards": torch.tensor([BINARY_K4] * 2)}
    loss, metrics = astar_po(make([0.0, 3.0], [1, 0], extras=extras), beta=0.1, value_beta=0.5)
    # V* = 0.47720: (1 - 0.47720)^2 = 0.27332, (-0.3 - 0.47720)^2 = 0.60404, mean 0.43868
    assert loss.item() == pytest.approx(0.43868, abs=1e-5)
    assert metrics["optimal_value"].item() == pytest.approx(0.4772, abs=1e-4)


def test_gradient_of_astar_po_at_the_reference() -> None:
    policy = Policy(6)
    batch = policy.batch(at_reference=True)
    loss, _ = astar_po(batch, beta=0.2, value_beta=0.5)
    value = optimal_value(policy.reference_BK, value_beta=0.5)
    expected = policy.score(-2 * 0.2 * (policy.rewards_B - value))
    torch.testing.assert_close(policy.gradient(loss), expected)


# ---- QRPO


def test_quantiles_count_rewards_up_to_and_including() -> None:
    rewards, reference = torch.tensor([[0.0, 1.0, -1.0, 0.5]]), torch.tensor([BINARY_K4])
    assert quantiles(rewards, reference, ties="upper").tolist() == [[0.75, 1.0, 0.0, 0.75]]
    nan = math.nan
    with_nan = torch.tensor([[0.0, 1.0, nan, nan]])
    assert quantiles(torch.tensor([[0.0]]), with_nan, ties="upper").tolist() == [[0.5]]
    assert quantiles(torch.tensor([[0.0]]), with_nan).tolist() == [[0.25]]


def test_mid_quantiles_count_half_of_the_equal_rewards() -> None:
    # against (0, 0, 0, 1): 0 has 0 below and 3 up to it, so 1.5 / 4; 1 has 3 and 4, so 3.5 / 4
    rewards, reference = torch.tensor([[0.0, 1.0, -1.0, 0.5, 2.0]]), torch.tensor([BINARY_K4])
    assert quantiles(rewards, reference).tolist() == [[0.375, 0.875, 0.0, 0.75, 1.0]]
    # one reference rollout: below, at and above it
    assert quantiles(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0]])).tolist() == [
        [0.0, 0.5, 1.0]
    ]
    with pytest.raises(ValueError, match="ties is 'lower'; choose one of mid, upper"):
        quantiles(rewards, reference, ties="lower")


@pytest.mark.parametrize("num_right", range(1, 8))
def test_right_and_wrong_are_half_a_quantile_apart_whatever_the_rate(num_right: int) -> None:
    reference = torch.tensor([[1.0] * num_right + [0.0] * (8 - num_right)])
    both = torch.tensor([[0.0, 1.0]])
    assert quantiles(both, reference).diff().item() == 0.5
    assert quantiles(both, reference, ties="upper").diff().item() == num_right / 8


def test_mid_quantiles_are_upper_ones_with_ties_broken_at_random() -> None:
    rng = torch.Generator().manual_seed(0)
    reference = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    own = reference.clone()
    total = torch.zeros_like(own)
    for _ in range(2000):
        # the rollout itself among the reference's, its place among equals drawn uniformly
        noise = 1e-6 * torch.rand(1, 8, generator=rng, dtype=torch.float64)
        above = 1e-6 * torch.rand(1, 8, generator=rng, dtype=torch.float64)
        total += quantiles(own + above, reference + noise, ties="upper")
    torch.testing.assert_close(total / 2000, quantiles(own, reference), rtol=0, atol=0.02)


def test_without_ties_mid_tends_to_upper() -> None:
    rewards = torch.rand(1, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = [quantiles(rewards, rewards, ties=ties) for ties in ("mid", "upper")]
    torch.testing.assert_close(both[1] - both[0], torch.full_like(rewards, 1 / 1000))
    z = [log_partition(rewards, beta=0.3, ties=ties).item() for ties in ("mid", "upper")]
    assert z[1] - z[0] == pytest.approx(1 / 1000)
    assert z[0] == pytest.approx(analytic(0.3), abs=5e-3)


@pytest.mark.parametrize(
    ("num_right", "mid", "upper"),
    [
        (0, (5.0, 0.0), (0.0, 0.0)),
        (1, (2.03, -2.97), (0.98, -0.27)),
        (2, (1.37, -3.63), (1.17, -1.33)),
        (4, (0.69, -4.31), (0.69, -4.31)),
        (8, (0.0, -5.0), (0.0, -10.0)),
    ],
)
def test_targets_of_right_and_wrong_answers_in_nats(
    num_right: int, mid: tuple[float, float], upper: tuple[float, float]
) -> None:
    """What log-ratios are pulled to at beta 0.1 where so many of 8 reference rollouts are right."""
    reference = torch.tensor([[1.0] * num_right + [0.0] * (8 - num_right)], dtype=torch.float64)
    both = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for ties, expected in (("mid", mid), ("upper", upper)):
        log_z = log_partition(reference, beta=0.1, ties=ties)
        targets = (quantiles(both, reference, ties=ties) - log_z) / 0.1
        assert targets[0].tolist() == pytest.approx(expected, abs=5e-3)


def analytic(beta: float) -> float:
    """The paper's beta log Z, for rewards without ties: beta log(beta (exp(1 / beta) - 1))."""
    return beta * math.log(beta * (math.exp(1 / beta) - 1))


def test_log_partition_without_ties_tends_to_the_papers() -> None:
    rewards = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for beta in (0.1, 0.3, 1.0):
        assert log_partition(rewards, beta=beta).item() == pytest.approx(analytic(beta), abs=5e-3)


def test_log_partition_of_ties_is_not_the_papers() -> None:
    # q(wrong) = 0.75, q(right) = 1: 0.3 log((3 e^2.5 + e^(10/3)) / 4) = 0.8345 against 0.6279
    rewards = torch.tensor([BINARY_K4], dtype=torch.float64)
    upper = {"ties": "upper"}
    assert log_partition(rewards, beta=0.3, **upper).item() == pytest.approx(0.8345, abs=1e-4)
    # mid: 0.3 log((3 e^1.25 + e^(0.875 / 0.3)) / 4)
    assert log_partition(rewards, beta=0.3).item() == pytest.approx(0.5938, abs=1e-4)
    assert analytic(0.3) == pytest.approx(0.6279, abs=1e-4)
    # at beta 0.01: 1 - 0.01 log 4 = 0.9861 against 1 + 0.01 log 0.01 = 0.9539
    offset = log_partition(rewards, beta=0.01, **upper).item() - analytic(0.01)
    assert offset == pytest.approx(0.0322, abs=1e-4)
    # no overflow where exp(1 / beta) has one
    at_the_edge = log_partition(rewards.float(), beta=1e-4, **upper).item()
    assert at_the_edge == pytest.approx(0.9999, abs=1e-4)


def test_the_published_approximation_of_log_z() -> None:
    """beta log beta + 1, which the published code always takes."""
    for beta, error in ((0.1, 4.5e-6), (0.3, 1.09e-2), (1.0, 0.4587)):
        assert beta * math.log(beta) + 1 - analytic(beta) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("ties", ["mid", "upper"])
@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_the_target_policy_of_qrpo_has_total_probability_one(beta: float, ties: str) -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    own = quantiles(rewards, rewards, ties=ties)
    exponent = (own - log_partition(rewards, beta=beta, ties=ties)) / beta
    assert exponent.exp().mean().item() == pytest.approx(1.0)


def test_qrpo_by_hand_and_at_its_optimum() -> None:
    extras = {"reference_rewards": torch.tensor([BINARY_K4] * 2, dtype=torch.float64)}
    # q - beta log Z: 0.875 - 0.59379 and 0.375 - 0.59379; upper 1 - 0.83448 and 0.75 - 0.83448
    for ties, right, wrong in (("mid", 0.28121, -0.21879), ("upper", 0.16552, -0.08448)):
        options = {"beta": 0.3, "qrpo_ties": ties}
        loss, _ = qrpo(make([0.0, 0.0], [1, 0], extras=extras), **options)
        assert loss.item() == pytest.approx((right**2 + wrong**2) / 2, abs=1e-5)
        optimum = [right / 0.3, wrong / 0.3]
        assert qrpo(make(optimum, [1, 0], extras=extras), **options)[0].item() < 1e-9


def test_gradient_of_qrpo_at_the_reference() -> None:
    policy, beta = Policy(7), 0.2
    loss, _ = qrpo(policy.batch(at_reference=True), beta=beta)
    quantile_B = quantiles(policy.rewards_B[:, None], policy.reference_BK)[:, 0]
    target_B = quantile_B - log_partition(policy.reference_BK, beta=beta)
    torch.testing.assert_close(policy.gradient(loss), policy.score(-2 * beta * target_B))


# ---- SAPG


def sapg_token(rho: float, mu: float, advantage: float) -> tuple[float, float]:
    """Minus the loss of one token at epsilon 0.1, and its derivative by the log-probability."""
    log_prob = torch.tensor([[math.log(rho)]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(log_prob).detach()
    batch = make(
        [0.0],
        [1.0],
        log_probs_BT=log_prob,
        old_log_probs_BT=zero + math.log(mu),
        reference_log_probs_BT=None,
        advantages_B=torch.tensor([advantage], dtype=torch.float64),
        extras={"behaviour_log_probs": zero},
    )
    loss, _ = sapg(batch, epsilon=0.1, epsilon_high=None)
    loss.backward()
    assert log_prob.grad is not None
    return -loss.item(), -log_prob.grad.item()


@pytest.mark.parametrize("rho", [0.2, 0.95, 1.05, 4.2, 4.48, 5.47])
@pytest.mark.parametrize("mu", [0.5, 1.0, 4.48])
@pytest.mark.parametrize("advantage", [1.0, -2.0])
def test_sapg_clips_around_mu(rho: float, mu: float, advantage: float) -> None:
    clipped = min(max(rho, mu * 0.9), mu * 1.1)
    expected = min(rho * advantage, clipped * advantage)
    assert sapg_token(rho, mu, advantage)[0] == pytest.approx(expected)


def test_sapg_by_hand() -> None:
    # 4.48 * 1.1 = 4.928 < 5.47; clipped at 1.1 it would be 1.1
    assert sapg_token(5.47, 4.48, 1.0) == pytest.approx((4.928, 0.0))
    assert sapg_token(5.47, 1.0, 1.0) == pytest.approx((1.1, 0.0))


def test_no_token_of_sapg_is_clipped_at_the_old_policy() -> None:
    # rho = mu = 4.48: derivative rho * A, where a clip at 1.1 has none
    for advantage in (1.0, -1.0):
        value = 4.48 * advantage
        assert sapg_token(4.48, 4.48, advantage) == pytest.approx((value, value))


def test_sapg_at_mu_1_is_ppo() -> None:
    rng = torch.Generator().manual_seed(0)
    old_BT = -torch.rand(4, 6, generator=rng, dtype=torch.float64)
    new_BT = old_BT + torch.randn(4, 6, generator=rng, dtype=torch.float64) / 3
    mask_BT = (torch.arange(6) < torch.tensor([[6], [2], [4], [1]])).long()
    advantage_B1 = torch.randn(4, 1, generator=rng, dtype=torch.float64)
    ratio_BT = (new_BT - old_BT).exp()
    surrogate_BT = torch.minimum(ratio_BT * advantage_B1, ratio_BT.clamp(0.8, 1.3) * advantage_B1)
    ppo = -(surrogate_BT * mask_BT).sum() / mask_BT.sum()
    settings = {
        "log_probs_BT": new_BT,
        "old_log_probs_BT": old_BT,
        "mask_BT": mask_BT,
        "advantages_B": advantage_B1[:, 0],
        "reference_log_probs_BT": None,
    }
    without = make([0.0] * 4, [0.0] * 4, **settings)
    loss, metrics = sapg(without, epsilon=0.2, epsilon_high=0.3)
    torch.testing.assert_close(loss, ppo)
    clipped_BT = (ratio_BT.clamp(0.8, 1.3) * advantage_B1 < ratio_BT * advantage_B1) & (mask_BT > 0)
    assert metrics["frac_clipped"].item() == pytest.approx((clipped_BT.sum() / 13).item())
    assert clipped_BT.any() and metrics["mu"].item() == 1.0
    # Tokens without a behaviour log-prob, as vLLM gives for some, were sampled by the old policy.
    unknown = make(
        [0.0] * 4, [0.0] * 4, **settings, extras={"behaviour_log_probs": old_BT * math.nan}
    )
    torch.testing.assert_close(sapg(unknown, epsilon=0.2, epsilon_high=0.3)[0], ppo)


# ---- any groups, any micro-batches, rows without reward

SIZES = (1, 2, 5, 4)


def ragged(seed: int = 0, *, nan_rows: tuple[int, ...] = ()) -> dict[str, Any]:
    """Twelve shuffled rows of four groups of 1, 2, 5 and 4, three tokens each at most."""
    rng = torch.Generator().manual_seed(seed)
    group_B = torch.repeat_interleave(torch.tensor([7, 3, 90, 4]), torch.tensor(SIZES))
    num_rows = len(group_B)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64)

    order = torch.randperm(num_rows, generator=rng)
    rewards_B = draw(num_rows)
    rewards_B[list(nan_rows)] = math.nan
    length_B1 = torch.randint(1, 4, (num_rows, 1), generator=rng)
    fields = {
        "log_probs_BT": -draw(num_rows, 3),
        "old_log_probs_BT": -draw(num_rows, 3),
        "reference_log_probs_BT": -draw(num_rows, 3),
        "mask_BT": (torch.arange(3) < length_B1).long(),
        "rewards_B": rewards_B,
        "advantages_B": (draw(num_rows) - 0.5).where(~rewards_B.isnan(), 0.0),
        "group_B": group_B,
        "reference_rewards": draw(4, 8).repeat_interleave(torch.tensor(SIZES), 0).round(decimals=1),
    }
    return {name: value[order] for name, value in fields.items()}


def as_batch(fields: dict[str, Any], rows: Any = slice(None), **changes: Any) -> KeptBatch:
    taken = {name: value[rows] for name, value in fields.items()}
    extras = {"reference_rewards": taken.pop("reference_rewards")}
    return KeptBatch(**taken, extras=extras, **changes)


@pytest.mark.parametrize("name", OWN)
def test_losses_of_micro_batches_average_to_that_of_the_batch(name: str) -> None:
    fields = ragged()
    fields["log_probs_BT"].requires_grad_()
    whole = run(name, as_batch(fields))
    (gradient,) = torch.autograd.grad(whole, fields["log_probs_BT"])
    per_batch = {"num_rows": 12 / 3, "num_tokens": fields["mask_BT"].sum() / 3}
    group_B = fields["group_B"]
    parts = [(group_B == 7) | (group_B == 3), group_B == 90, group_B == 4]
    losses = [run(name, as_batch(fields, rows, **per_batch)) for rows in parts]
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, fields["log_probs_BT"])[0], gradient)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", BY_GROUP)
def test_a_group_weighs_as_many_rows_as_it_has(name: str) -> None:
    fields = ragged(1)
    total = 0.0
    for group, size in zip((7, 3, 90, 4), SIZES, strict=True):
        total += size * run(name, as_batch(fields, fields["group_B"] == group)).item()
    assert run(name, as_batch(fields)).item() == pytest.approx(total / 12)


@pytest.mark.parametrize("name", OWN)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    fields = ragged(2)
    backwards = torch.arange(12).flip(0)
    torch.testing.assert_close(run(name, as_batch(fields, backwards)), run(name, as_batch(fields)))


@pytest.mark.parametrize("name", OWN)
def test_rows_without_a_reward_are_left_out(name: str) -> None:
    fields = ragged(3, nan_rows=(4, 5, 11))
    log_probs = fields["log_probs_BT"].requires_grad_()
    scored = ~fields["rewards_B"].isnan()
    per_batch = {"num_rows": 12.0, "num_tokens": fields["mask_BT"].sum()}
    loss = run(name, as_batch(fields))
    torch.testing.assert_close(loss, run(name, as_batch(fields, scored, **per_batch)))
    gradient = torch.autograd.grad(loss, log_probs)[0]
    assert gradient.isfinite().all() and gradient[scored].abs().sum() > 0
    assert gradient[~scored].abs().sum() == 0


@pytest.mark.parametrize("name", [name for name in OWN if name != "sapg"])
def test_rows_without_tokens_are_left_out(name: str) -> None:
    fields = ragged(4)
    fields["mask_BT"][3] = 0
    rest = torch.arange(12) != 3
    expected = run(name, as_batch(fields, rest, num_rows=12.0))
    torch.testing.assert_close(run(name, as_batch(fields)), expected)


@pytest.mark.parametrize("name", ["astar_po", "qrpo"])
def test_prompts_whose_reference_has_no_reward_are_left_out(name: str) -> None:
    fields = ragged(5)
    log_probs = fields["log_probs_BT"].requires_grad_()
    fields["reference_rewards"][fields["group_B"] == 90] = math.nan
    rest = fields["group_B"] != 90
    loss = run(name, as_batch(fields))
    torch.testing.assert_close(loss, run(name, as_batch(fields, rest, num_rows=12.0)))
    assert torch.autograd.grad(loss, log_probs)[0].isfinite().all()


@pytest.mark.parametrize("name", OWN)
def test_metrics_are_scalars_without_gradient(name: str) -> None:
    fields = ragged(6)
    fields["log_probs_BT"].requires_grad_()
    _, metrics = OBJECTIVES[name].function(as_batch(fields), **OBJECTIVES[name].options)
    assert metrics
    for value in metrics.values():
        assert value.ndim == 0 and not value.requires_grad and value.isfinite()


@pytest.mark.parametrize("name", OWN)
def test_half_precision_log_probs_are_summed_in_float32(name: str) -> None:
    fields = {k: v.float() if v.is_floating_point() else v for k, v in ragged(7).items()}
    exact = run(name, as_batch(fields))
    fields["log_probs_BT"] = fields["log_probs_BT"].bfloat16()
    fields["old_log_probs_BT"] = fields["old_log_probs_BT"].bfloat16()
    rough = run(name, as_batch(fields))
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.1, abs=0.02)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_BT has shape \(2, 3\), not \(2, 1\)"):
        make([0.0, 0.0], [0, 1], mask_BT=torch.ones(2, 3))
    with pytest.raises(ValueError, match="reference_rewards has 3 rows, log-probs have 2"):
        make([0.0, 0.0], [0, 1], extras={"reference_rewards": torch.zeros(3, 8)})
