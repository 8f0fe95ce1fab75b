"""Words that train as another: loss and gradient of both, and the factor between them."""

import math

import pytest
import torch
from torch import Tensor

from podsrl.core.advantage import advantages
from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.pairs import bmc, dpo, rbrm, sdpo, tdpo2
from podsrl.core.objectives.ratio import sapg
from podsrl.core.objectives.regression import agro, vargrad

M = 16


def batch_of(*, at_reference: bool = False, at_old: bool = False) -> KeptBatch:
    """Two prompts of 16 kept rollouts, up to 5 tokens, with rewards 0 and 1, as `pods` keeps."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    old_BT = -3 * draw(2 * M, 5)
    log_probs_BT = (old_BT if at_old else old_BT + draw(2 * M, 5) - 0.5).clone().requires_grad_()
    reference_BT = log_probs_BT.detach() if at_reference else -3 * draw(2 * M, 5)
    rewards_PM = torch.tensor([[0.0, 1.0] * (M // 2), [0.0] * (M - 3) + [1.0] * 3]).double()
    kept_PM = torch.arange(M).expand(2, M)
    return KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=old_BT,
        mask_BT=(torch.arange(5) < torch.randint(1, 6, (2 * M, 1), generator=random)).long(),
        rewards_B=rewards_PM.flatten(),
        advantages_B=advantages(rewards_PM, kept_PM).flatten(),
        group_B=torch.arange(2).repeat_interleave(M),
        reference_log_probs_BT=reference_BT,
        extras={
            "sequential_kl": draw(2 * M),
            "completion_ids": torch.randint(3, 6, (2 * M, 5), generator=random),
        },
    )


def gradient(loss: Tensor, batch: KeptBatch) -> Tensor:
    return torch.autograd.grad(loss, batch.log_probs_BT, retain_graph=True)[0]


def assert_same(one: Tensor, other: Tensor, batch: KeptBatch, *, factor: float = 1.0) -> None:
    torch.testing.assert_close(one, factor * other, rtol=1e-12, atol=0)
    found, expected = gradient(one, batch), factor * gradient(other, batch)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_sapg_without_another_sampler_is_the_clipped_surrogate_of_grpo() -> None:
    batch = batch_of()
    ratio_BT = (batch.log_probs_BT - batch.old_log_probs_BT).exp()
    advantage_B1 = batch.advantages_B[:, None]
    both = ratio_BT * advantage_B1, ratio_BT.clamp(0.8, 1.2) * advantage_B1
    grpo = -(torch.minimum(*both) * batch.mask_BT).sum() / batch.mask_BT.sum()
    assert ((ratio_BT - 1).abs() > 0.2).any()  # some tokens are clipped
    assert_same(sapg(batch, epsilon=0.2, epsilon_high=None)[0], grpo, batch)


def test_vargrad_is_200_times_agro_at_its_beta() -> None:
    # 2 / 0.1^2 = 200
    batch = batch_of()
    assert_same(vargrad(batch, beta=0.1)[0], agro(batch, beta=0.1)[0], batch, factor=200.0)


@pytest.mark.parametrize("at_reference", [True, False])
def test_rbrm_of_rewards_0_and_1_is_dpo(at_reference: bool) -> None:
    # With C = sigmoid(7.5) = 0.99945 a pair's gradient is sigmoid(-x) - (1 - C) in dpo's place of
    # sigmoid(-x): at the reference (x = 0) 2 C - 1 = 0.9989 of it, in the same direction.
    batch = batch_of(at_reference=at_reference)
    plain = gradient(dpo(batch, beta=0.1)[0], batch)
    weighted = gradient(rbrm(batch, beta=0.1, rbrm_alpha=7.5)[0], batch)
    cosine = torch.nn.functional.cosine_similarity(plain.flatten(), weighted.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1.0, abs=1e-6)
    ratio = (weighted.norm() / plain.norm()).item()
    if at_reference:
        assert ratio == pytest.approx(2 / (1 + math.exp(-7.5)) - 1, abs=1e-12)
    assert 0.998 < ratio < 0.9995


def test_sdpo_of_one_turn_is_dpo() -> None:
    batch = batch_of()
    assert_same(sdpo(batch, beta=0.1)[0], dpo(batch, beta=0.1)[0], batch)


def test_tdpo2_and_bmc_without_their_weight_are_dpo() -> None:
    batch = batch_of()
    plain = dpo(batch, beta=0.1)[0]
    assert_same(tdpo2(batch, beta=0.1, tdpo_alpha=0.0)[0], plain, batch)
    assert_same(bmc(batch, beta=0.1, bmc_delta=0.0)[0], plain, batch)


@pytest.mark.parametrize("rewards", [[0.0, 1.0] * 8, [0.0] * 13 + [1.0] * 3, list(range(16))])
def test_rloo_is_16_15_of_dr_grpo(rewards: list[float]) -> None:
    rewards_PN, kept_PM = torch.tensor([rewards]).double(), torch.arange(M)[None]
    plain = advantages(rewards_PN, kept_PM, estimator="dr_grpo")
    found = advantages(rewards_PN, kept_PM, estimator="rloo")
    torch.testing.assert_close(found, 16 / 15 * plain, rtol=1e-12, atol=1e-15)
