"""Weights of rollouts that other policies sampled, by enumeration of small softmax policies."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.ratio import sapg, sapg_follower

V = 5  # tokens
ADVANTAGES_V = torch.tensor([1.5, -0.5, 0.2, -2.0, 0.7], dtype=torch.float64)


def make_logits(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return (2 * torch.randn(*shape, V, generator=random, dtype=torch.float64)).requires_grad_()


def batch_of(log_probs_BT: Tensor, behaviour_BT: Tensor, advantages_B: Tensor, **more: Any):
    """Rollouts at the start of an update; a sum over tokens is divided by 1."""
    rows = len(advantages_B)
    extras = {"behaviour_log_probs": behaviour_BT, **more}
    return KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=log_probs_BT.detach(),
        mask_BT=torch.ones_like(log_probs_BT, dtype=torch.long),
        rewards_B=torch.zeros(rows, dtype=torch.float64),
        advantages_B=advantages_B,
        group_B=torch.zeros(rows, dtype=torch.long),
        num_tokens=1,
        extras=extras,
    )


def sapg_gradient(logits: Tensor, batch: KeptBatch, **options: Any) -> Tensor:
    loss, _ = sapg(batch, epsilon=0.1, epsilon_high=None, **options)
    return torch.autograd.grad(-loss, logits, retain_graph=True)[0]


def policy_gradient(logits: Tensor) -> Tensor:
    """E_old[A grad log pi], of policies over one token."""
    log_probs_V = logits.log_softmax(-1)
    expected = (log_probs_V.exp().detach() * ADVANTAGES_V * log_probs_V).sum()
    return torch.autograd.grad(expected, logits)[0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3, 2.0])
def test_weighted_tokens_of_a_behaviour_have_the_gradient_of_the_policys_own(
    temperature: float,
) -> None:
    """E_b[mu A grad log pi] = E_old[A grad log pi]; each token's share of b is in its advantage."""
    logits = make_logits()
    log_probs_V = logits.log_softmax(-1)
    behaviour_V = (logits / temperature).log_softmax(-1).detach()
    advantages_V = behaviour_V.exp() * ADVANTAGES_V
    batch = batch_of(log_probs_V[:, None], behaviour_V[:, None], advantages_V)
    expected = policy_gradient(logits)
    torch.testing.assert_close(sapg_gradient(logits, batch), expected, rtol=1e-12, atol=1e-14)
    if temperature != 1.0:  # without weights, and with one that is capped, it is another
        plain = batch_of(log_probs_V[:, None], behaviour_V[:, None] * math.nan, advantages_V)
        for biased in (sapg_gradient(logits, plain), sapg_gradient(logits, batch, sapg_mu_max=1.0)):
            assert (biased - expected).abs().max() > 0.01


def test_a_mixture_of_behaviours_has_it_too() -> None:
    """Half of the rollouts at temperature 1, whose log-probs are not known (NaN), half at 1.3."""
    logits = make_logits()
    log_probs_V = logits.log_softmax(-1)
    hot_V = (logits / 1.3).log_softmax(-1).detach()
    batch = batch_of(
        log_probs_V.repeat(2)[:, None],
        torch.cat([hot_V * math.nan, hot_V])[:, None],
        torch.cat([log_probs_V.detach().exp(), hot_V.exp()]) / 2 * ADVANTAGES_V.repeat(2),
    )
    found = sapg_gradient(logits, batch)
    torch.testing.assert_close(found, policy_gradient(logits), rtol=1e-12, atol=1e-14)


def test_what_weights_by_token_leave_as_the_behaviour_has_it() -> None:
    """Of two tokens the first's prefix is empty; the second's is drawn, and the first is followed,
    by the behaviour: sum_t E_{prefix ~ b} E_{token ~ old}[E_{rest ~ b}[A] grad log pi(token)].
    """
    first, second = make_logits(), make_logits(V)  # second[a]: after the token a
    random = torch.Generator().manual_seed(1)
    advantages_VV = torch.randn(V, V, generator=random, dtype=torch.float64)

    def log_probs(temperature: float) -> tuple[Tensor, Tensor]:
        return (first / temperature).log_softmax(-1), (second / temperature).log_softmax(-1)

    one_V, two_VV = log_probs(1.0)
    b_one_V, b_two_VV = (each.detach() for each in log_probs(1.3))
    rows = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    a, c = rows.unbind(1)
    batch = batch_of(
        torch.stack([one_V[a], two_VV[a, c]], dim=1),
        torch.stack([b_one_V[a], b_two_VV[a, c]], dim=1),
        (b_one_V[a] + b_two_VV[a, c]).exp() * advantages_VV[a, c],
    )
    loss, _ = sapg(batch, epsilon=0.1, epsilon_high=None)
    found = torch.autograd.grad(-loss, (first, second), retain_graph=True)
    old_one_V, old_two_VV = one_V.detach().exp(), two_VV.detach().exp()
    followed_V = (b_two_VV.exp() * advantages_VV).sum(1)
    said = (old_one_V * followed_V * one_V).sum()
    said = said + (b_one_V.exp()[:, None] * old_two_VV * advantages_VV * two_VV).sum()
    expected = torch.autograd.grad(said, (first, second), retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    # The policy's own gradient weighs a whole rollout, by the product of both: another one.
    joint_VV = old_one_V[:, None] * old_two_VV * advantages_VV
    own = torch.autograd.grad((joint_VV * (one_V[:, None] + two_VV)).sum(), (first, second))
    assert max((x - y).abs().max() for x, y in zip(found, own, strict=True)) > 0.01


def test_weights_of_a_hotter_behaviour_are_bounded_those_of_a_colder_are_not() -> None:
    """pi / pi_T = pi^(1 - 1/T) sum pi^(1/T): at most V^(1 - 1/T) for T > 1."""
    log_probs_V = torch.log(torch.tensor([1 - 4e-6, *[1e-6] * 4], dtype=torch.float64))
    flat_V = torch.full((V,), 1 / V, dtype=torch.float64).log()
    for each_V in (log_probs_V, flat_V, make_logits().detach().log_softmax(-1)):
        mu_V = (each_V - (each_V / 1.3).log_softmax(-1)).exp()
        assert mu_V.max() <= V ** (1 - 1 / 1.3) + 1e-12
    cold_V = (log_probs_V - (log_probs_V / 0.5).log_softmax(-1)).exp()
    assert cold_V.max() > 9e5  # p^(1 - 2) = 1e6, times the sum of squares, nearly 1


def test_a_capped_token_goes_on_learning() -> None:
    """mu = 4.48 beyond both the clip at 1.1 and the cap of 3: it weighs 3, and is not clipped."""
    logits = make_logits()
    log_prob = logits.log_softmax(-1)[:1]
    batch = batch_of(
        log_prob[:, None], log_prob.detach()[:, None] - math.log(4.48), ADVANTAGES_V[:1]
    )
    loss, metrics = sapg(batch, epsilon=0.1, epsilon_high=None, sapg_mu_max=3.0)
    by_log_prob = torch.autograd.grad(loss, log_prob)[0]
    assert loss.item() == pytest.approx(-3 * 1.5) and by_log_prob.item() == pytest.approx(-3 * 1.5)
    assert {name: value.item() for name, value in metrics.items()} == {
        "mu": pytest.approx(3.0),
        "frac_mu_capped": 1.0,
        "frac_clipped": 0.0,
    }


def test_effective_sample_size_of_each_behaviour() -> None:
    """Weights 1 and 3 are worth 16 / 10 of two tokens; a row of advantage 0 counts in neither.

    The log-probs of such a row are 0 where they were not computed: its weight must not be e^200.
    """
    log_probs_BT = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
    behaviour_BT = -torch.tensor([[math.nan], [0.0], [math.log(3)], [200.0]]).double()
    one_hot_BK = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]).double()
    advantages_B = torch.tensor([1.0, 1.0, -1.0, 0.0]).double()
    batch = batch_of(log_probs_BT, behaviour_BT, advantages_B, behaviour=one_hot_BK)
    loss, metrics = sapg(batch, epsilon=0.1, epsilon_high=None)
    assert loss.item() == pytest.approx(-(1 + 1 - 3))
    assert torch.autograd.grad(loss, log_probs_BT)[0].flatten().tolist() == pytest.approx(
        [-1, -1, 3, 0]
    )
    assert [metrics[f"num_tokens/{k}"].item() for k in range(3)] == [1, 2, 0]
    assert metrics["mu_frac_effective/0"].item() == 1.0
    assert metrics["mu_frac_effective/1"].item() == pytest.approx(0.8)
    assert metrics["mu_frac_effective/2"].isnan()


# ---- followers


def test_a_followers_rollouts_leave_the_leaders_gradient_what_it_is() -> None:
    """Half of the rollouts a follower's, of other weights: E over both is E_old[A grad log pi].

    Capped it is another; and the follower's weights have no part in the leader's loss.
    """
    leader = make_logits()
    follower = (0.7 * make_logits().detach() + 0.5 * ADVANTAGES_V).requires_grad_()
    own_V, other_V = leader.log_softmax(-1), follower.log_softmax(-1)
    batch = batch_of(
        own_V.repeat(2)[:, None],
        torch.cat([own_V.detach() * math.nan, other_V])[:, None],
        torch.cat([own_V.detach().exp(), other_V.detach().exp()]) / 2 * ADVANTAGES_V.repeat(2),
    )
    found = sapg_gradient(leader, batch)
    torch.testing.assert_close(found, policy_gradient(leader), rtol=1e-12, atol=1e-14)
    capped = sapg_gradient(leader, batch, sapg_mu_max=1.0)
    assert (capped - found).abs().max() > 0.01
    loss, _ = sapg(batch, epsilon=0.1, epsilon_high=None)
    mu_is_a_number = batch_of(
        own_V.repeat(2)[:, None],
        torch.cat([own_V.detach() * math.nan, other_V.detach()])[:, None],
        batch.advantages_B,
    )
    assert torch.equal(loss, sapg(mu_is_a_number, epsilon=0.1, epsilon_high=None)[0])


def test_a_follower_of_equal_weights_has_mu_1() -> None:
    logits = make_logits()
    log_probs_V1 = logits.log_softmax(-1)[:, None]
    equal = batch_of(log_probs_V1, log_probs_V1.detach(), ADVANTAGES_V)
    plain = batch_of(log_probs_V1, log_probs_V1.detach() * math.nan, ADVANTAGES_V)
    loss, metrics = sapg(equal, epsilon=0.1, epsilon_high=None, sapg_mu_max=3.0)
    # A sum over five tokens, divided by 1.
    assert metrics["mu"].item() == V and metrics["frac_mu_capped"].item() == 0
    assert torch.equal(loss, sapg(plain, epsilon=0.1, epsilon_high=None)[0])


def test_what_a_follower_learns_by_hand() -> None:
    """rho 1, A 2, 3 nats, bonus .1: -2.3. A dead row adds its entropy; padding adds nothing."""
    log_probs_BT = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    entropies_BT = torch.tensor([[3.0, 9.0], [1.0, 1.0]]).double().requires_grad_()
    behaviour_BT = torch.full_like(entropies_BT, -7.0)  # not read: it is its own behaviour
    batch = batch_of(log_probs_BT, behaviour_BT, torch.tensor([2.0, 0.0]).double())
    batch.mask_BT[0, 1] = 0
    options = {"epsilon": 0.1, "epsilon_high": None}
    loss, metrics = sapg_follower(batch, entropies_BT, entropy_bonus=0.1, **options)
    assert loss.item() == pytest.approx(-2 - 0.1 * (3 + 1 + 1))
    assert metrics["entropy"].item() == 5 and metrics["frac_clipped"].item() == 0
    by_entropy, by_log_prob = torch.autograd.grad(loss, (entropies_BT, log_probs_BT))
    assert by_entropy.tolist() == [[-0.1, 0], [-0.1, -0.1]]
    assert by_log_prob.tolist() == [[-2, 0], [0, 0]]
    without, _ = sapg_follower(batch, entropies_BT, entropy_bonus=0.0, **options)
    assert without.item() == -2


def test_the_bonus_climbs_the_entropy() -> None:
    """dH / dlogit_i = -p_i (log p_i + H); rollouts without an advantage leave nothing else."""
    logits = make_logits()
    log_probs_V = logits.log_softmax(-1)
    entropy = -(log_probs_V.exp() * log_probs_V).sum()
    batch = batch_of(log_probs_V[:1, None], log_probs_V.detach()[:1, None], torch.zeros(1).double())
    loss, _ = sapg_follower(
        batch, entropy.expand(1, 1), entropy_bonus=0.5, epsilon=0.1, epsilon_high=None
    )
    found = torch.autograd.grad(-loss, logits, retain_graph=True)[0]
    expected = -0.5 * log_probs_V.exp() * (log_probs_V + entropy)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)
