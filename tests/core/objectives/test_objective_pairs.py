"""Pair objectives: literal values, limiting cases and gradients, as numbers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.pair_losses import (
    bmc_margins,
    confidences,
    differing_tokens,
    dpo_losses,
    rbrm_losses,
)
from podsrl.core.objectives.pairing import pair_rows
from podsrl.core.objectives.pairs import bmc, dpo, rbrm, sdpo, tdpo1, tdpo2, veripo
from podsrl.core.objectives.regression import rebel
from podsrl.core.objectives.segments import segment_margins, turns

LOG2 = math.log(2)


def softplus(number: float) -> float:
    return math.log(1 + math.exp(number))


def make_batch(
    num_rows: int = 6, num_tokens: int = 5, *, seed: int = 0, at_reference: bool = False
) -> KeptBatch:
    """Groups of 4 and 2 rows with different rewards, random log-probs, lengths, ids and KL."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    log_probs_BT = -3 * random(num_rows, num_tokens)
    reference_BT = log_probs_BT.clone() if at_reference else -3 * random(num_rows, num_tokens)
    lengths_B1 = torch.randint(2, num_tokens + 1, (num_rows, 1), generator=generator)
    kl_B = 0 * random(num_rows) if at_reference else 4 * random(num_rows)
    return KeptBatch(
        log_probs_BT=log_probs_BT.requires_grad_(),
        old_log_probs_BT=log_probs_BT.detach(),
        mask_BT=(torch.arange(num_tokens) < lengths_B1).long(),
        rewards_B=torch.tensor([0.0, 1.0, 0.25, 0.5, 1.0, 0.0])[:num_rows],
        advantages_B=torch.zeros(num_rows),
        group_B=torch.tensor([7, 7, 7, 7, 2, 2])[:num_rows],
        reference_log_probs_BT=reference_BT,
        extras={
            "sequential_kl": kl_B.requires_grad_(),
            "completion_ids": torch.randint(3, 6, (num_rows, num_tokens), generator=generator),
        },
    )


OBJECTIVES = {
    "dpo": lambda batch, **o: dpo(batch, beta=0.3, **o),
    "tdpo1": lambda batch, **o: tdpo1(batch, beta=0.3, **o),
    "tdpo2": lambda batch, **o: tdpo2(batch, beta=0.3, tdpo_alpha=0.5, **o),
    "bmc": lambda batch, **o: bmc(batch, beta=0.3, bmc_delta=2.0, **o),
    "rbrm": lambda batch, **o: rbrm(batch, beta=0.3, rbrm_alpha=7.5, **o),
    "sdpo": lambda batch, **o: sdpo(batch, beta=0.3, **o),
}


def gradients(loss: Tensor, batch: KeptBatch) -> tuple[Tensor, Tensor]:
    """Gradients of the loss with respect to log-probs and divergences."""
    sources = [batch.log_probs_BT, batch.extras["sequential_kl"]]
    found = torch.autograd.grad(loss, sources, allow_unused=True, retain_graph=True)
    both = [torch.zeros_like(s) if g is None else g for g, s in zip(found, sources, strict=True)]
    return both[0], both[1]


def assert_same(one: Tensor, other: Tensor, batch: KeptBatch) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(one, batch), gradients(other, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["extremes", "all"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_log_two_at_the_reference(name, mode):
    loss, metrics = OBJECTIVES[name](make_batch(at_reference=True), pair_mode=mode)
    assert loss.item() == pytest.approx(LOG2, abs=1e-12)
    assert metrics["pair_margin"] == 0.0


def test_dpo_by_hand():
    # One pair, two tokens each: log-ratios (0.5, 0.5) and (-1, 0); beta 2: margin 2 * (1 + 1) = 4.
    # A third row of another prompt makes three rows, of which it has no pair and adds nothing.
    log_probs_BT = torch.tensor([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    reference_BT = torch.tensor([[-1.5, -2.5], [-1.0, -1.0], [-9.0, -1.0]])
    batch = KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=reference_BT,
        mask_BT=torch.ones(3, 2),
        rewards_B=torch.tensor([1.0, 0.0, 1.0]),
        advantages_B=torch.zeros(3),
        group_B=torch.tensor([0, 0, 1]),
        reference_log_probs_BT=reference_BT,
    )
    loss, metrics = dpo(batch, beta=2.0)
    assert loss.item() == pytest.approx(2 / 3 * softplus(-4), rel=1e-6)
    assert metrics["pair_margin"] == 4.0 and metrics["pair_accuracy"] == 1.0
    assert metrics["num_pairs"] == 1 and metrics["frac_no_pair"] == 0.0
    loss.backward()
    # 2/3 * sigmoid(-4) * beta, down for the chosen tokens and up for the rejected ones
    slope = 2 / 3 * 2 / (1 + math.exp(4))
    expected = torch.tensor([[-slope] * 2, [slope] * 2, [0.0] * 2])
    torch.testing.assert_close(log_probs_BT.grad, expected)


def test_a_group_weighs_its_rows_whatever_its_pairs():
    # At the reference every pair costs log 2. Group of four rewards (0, 0, 0, 1): one pair of two
    # in `extremes`, three of six in `all`; group of two equal rewards: none. 4/6 of log 2 each.
    batch = make_batch(at_reference=True)
    batch = replace(batch, rewards_B=torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5, 0.5]))
    for mode, num, share in (("extremes", 1, 1 - 1 / 3), ("all", 3, 1 - 3 / 7)):
        loss, metrics = dpo(batch, beta=0.3, pair_mode=mode)
        assert loss.item() == pytest.approx(LOG2 * 4 / 6, abs=1e-12)
        assert metrics["num_pairs"] == num
        assert metrics["frac_no_pair"].item() == pytest.approx(share)


@pytest.mark.parametrize("mode", ["extremes", "all"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_pair_gives_zero_with_a_graph(name, mode):
    batch = replace(make_batch(), rewards_B=torch.ones(6))
    loss, metrics = OBJECTIVES[name](batch, pair_mode=mode)
    assert loss.item() == 0.0
    loss.backward()
    assert batch.log_probs_BT.grad.abs().sum() == 0.0
    assert metrics["num_pairs"] == 0 and metrics["pair_accuracy"].isnan()


def part(batch: KeptBatch, rows: list[int]) -> KeptBatch:
    """The rows as a micro-batch of a larger batch: gradients flow to the whole batch's tensors."""
    assert batch.reference_log_probs_BT is not None
    return KeptBatch(
        log_probs_BT=batch.log_probs_BT[rows],
        old_log_probs_BT=batch.old_log_probs_BT[rows],
        mask_BT=batch.mask_BT[rows],
        rewards_B=batch.rewards_B[rows],
        advantages_B=batch.advantages_B[rows],
        group_B=batch.group_B[rows],
        reference_log_probs_BT=batch.reference_log_probs_BT[rows],
        num_rows=len(batch.rewards_B) / 2,
        extras={name: value[rows] for name, value in batch.extras.items()},
    )


@pytest.mark.parametrize("mode", ["extremes", "all"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_of_whole_groups_average_to_the_whole(name, mode):
    batch = make_batch(seed=3)
    whole, _ = OBJECTIVES[name](batch, pair_mode=mode)
    parts = [part(batch, rows) for rows in ([4, 5], [2, 0, 3, 1])]
    average = sum(OBJECTIVES[name](one, pair_mode=mode)[0] for one in parts) / 2
    assert_same(whole, average, batch)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name):
    batch = make_batch(seed=4)
    fixed_B = batch.extras["sequential_kl"].detach().clone()
    if name == "bmc":  # its weights follow the log-probs without a gradient, unless they are capped

        def loss(log_probs_BT, kl_B):
            return bmc(changed(batch, log_probs_BT, kl_B), beta=0.3, bmc_delta=1.0)[0]
    elif name == "tdpo2":  # has no gradient through the chosen divergence: vary only the rejected

        def loss(log_probs_BT, kl_B):
            rejected_B = torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
            kl_B = torch.where(rejected_B, kl_B, fixed_B)
            return OBJECTIVES[name](changed(batch, log_probs_BT, kl_B))[0]
    else:

        def loss(log_probs_BT, kl_B):
            return OBJECTIVES[name](changed(batch, log_probs_BT, kl_B))[0] + 0 * kl_B.sum()

    assert torch.autograd.gradcheck(loss, (batch.log_probs_BT, batch.extras["sequential_kl"]))


def changed(batch: KeptBatch, log_probs_BT: Tensor, kl_B: Tensor) -> KeptBatch:
    extras = {**batch.extras, "sequential_kl": kl_B}
    return replace(batch, log_probs_BT=log_probs_BT, extras=extras)


def test_swapping_chosen_and_rejected_negates_the_margin():
    # -log s(x) + log s(-x) = -x: the two losses differ by beta * margin
    for margin in (-3.0, 0.4, 20.0):
        one = dpo_losses(torch.tensor(margin), beta=0.5)
        other = dpo_losses(torch.tensor(-margin), beta=0.5)
        assert (other - one).item() == pytest.approx(0.5 * margin, abs=1e-6)
    batch = make_batch()
    swapped = replace(batch, rewards_B=-batch.rewards_B)
    margins = [dpo(b, beta=0.3, pair_mode="all")[1]["pair_margin"] for b in (batch, swapped)]
    assert margins[0].item() == pytest.approx(-margins[1].item()) != 0


def test_dpo_pair_loss_literal():
    # beta 0.1, margin 10: log(1 + exp(-1)) = 0.31326
    assert dpo_losses(torch.tensor(10.0), beta=0.1).item() == pytest.approx(0.313262, abs=1e-6)


@pytest.mark.parametrize("mode", ["extremes", "all"])
def test_tdpo2_at_alpha_zero_is_dpo(mode):
    batch = make_batch()
    loss, _ = tdpo2(batch, beta=0.3, tdpo_alpha=0.0, pair_mode=mode)
    assert_same(loss, dpo(batch, beta=0.3, pair_mode=mode)[0], batch)


def test_tdpo2_at_alpha_one_has_tdpo1s_value_and_rejected_gradient():
    batch = make_batch()
    one, _ = tdpo1(batch, beta=0.3)
    two, _ = tdpo2(batch, beta=0.3, tdpo_alpha=1.0)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    log_probs_1, kl_1 = gradients(one, batch)
    log_probs_2, kl_2 = gradients(two, batch)
    torch.testing.assert_close(log_probs_1, log_probs_2, rtol=1e-12, atol=1e-12)
    # rewards (0, 1, .25, .5) and (1, 0): chosen are rows 1, 3, 4, rejected 0, 2, 5
    torch.testing.assert_close(kl_1[[0, 2, 5]], kl_2[[0, 2, 5]], rtol=1e-12, atol=1e-12)
    assert kl_2[[1, 3, 4]].abs().max() == 0 and kl_1[[1, 3, 4]].abs().min() > 1e-3
    torch.testing.assert_close(kl_1[[1, 3, 4]], -kl_1[[0, 2, 5]][[0, 1, 2]], rtol=1e-9, atol=1e-12)


def test_tdpo_by_hand():
    # At equal log-ratios u = 0. KL of chosen 3, of rejected 1, beta 1/2:
    # TDPO1 -log s(-(1/2)(1 - 3)) = softplus(-1); TDPO2 at alpha 1/4: softplus(-1/4)
    batch = make_batch(2, at_reference=True)
    batch.extras["sequential_kl"] = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert tdpo1(batch, beta=0.5)[0].item() == pytest.approx(softplus(-1.0))
    loss, metrics = tdpo2(batch, beta=0.5, tdpo_alpha=0.25)
    assert loss.item() == pytest.approx(softplus(-0.25))
    assert metrics["sequential_kl"] == 2.0


def test_bmc_at_delta_zero_is_dpo():
    batch = make_batch()
    assert_same(bmc(batch, beta=0.3, bmc_delta=0.0)[0], dpo(batch, beta=0.3)[0], batch)
    assert not torch.allclose(bmc(batch, beta=0.3, bmc_delta=2.0)[0], dpo(batch, beta=0.3)[0])


def test_bmc_of_identical_responses_is_dpo():
    batch = make_batch()
    batch.extras["completion_ids"] = torch.arange(5).expand(6, 5)
    batch = replace(batch, mask_BT=torch.ones(6, 5))
    assert_same(bmc(batch, beta=0.3, bmc_delta=3.0)[0], dpo(batch, beta=0.3)[0], batch)


def test_bmc_weights_by_hand():
    # Probabilities 1/2, 1/4, 1/8 of three differing tokens, delta 3: 1 + min(1/p, 3) is 3, 4, 4.
    # Log-ratios are 1 each, 0 in the rejected row: margin 11. For delta <= 1 all weigh 1 + delta.
    log_probs_BT = torch.tensor([[0.5, 0.25, 0.125], [1.0, 1.0, 1.0]]).log()
    ratios_BT = torch.tensor([[1.0] * 3, [0.0] * 3])
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    everywhere = torch.ones(2, 3, dtype=torch.bool)

    def margin(delta: float, differs: Tensor) -> float:
        found_K = bmc_margins(log_probs_BT, ratios_BT, pairs, (differs, differs), delta=delta)
        return found_K[pairs.real_K].item()

    assert margin(3.0, everywhere) == pytest.approx(11.0)
    assert margin(1.0, everywhere) == pytest.approx(3 * 2.0)
    assert margin(0.5, everywhere) == pytest.approx(3 * 1.5)
    assert margin(3.0, ~everywhere) == pytest.approx(3.0)


def test_bmc_weights_have_no_gradient_and_are_shared_with_the_reference():
    log_probs_BT = torch.tensor([[0.5], [1.0]]).log().requires_grad_()
    reference_BT = torch.tensor([[0.1], [1.0]]).log()
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    differs = torch.ones(2, 1, dtype=torch.bool)
    ratios_BT = log_probs_BT - reference_BT
    margin_K = bmc_margins(log_probs_BT, ratios_BT, pairs, (differs, differs), delta=5.0)
    margin = margin_K[pairs.real_K]
    # weight 1 + 1/0.5 = 3 on log(0.5 / 0.1) = log 5, the policy's own weight in both terms
    assert margin.item() == pytest.approx(3 * math.log(5), rel=1e-6)
    margin.sum().backward()
    assert log_probs_BT.grad.flatten().tolist() == pytest.approx([3.0, -2.0])


def test_differing_tokens():
    ids_BT = torch.tensor([[5, 6, 7, 8], [5, 9, 7, 0], [1, 1, 1, 1]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])
    pairs = pair_rows(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 1]))
    chosen_KT, rejected_KT = differing_tokens(ids_BT, mask_BT, pairs)
    # (5 6 7 8) and (5 9 7): 6 was replaced by 9, 8 was added; the padding after 7 is no token.
    assert chosen_KT[pairs.real_K].tolist() == [[False, True, False, True]]
    assert rejected_KT[pairs.real_K].tolist() == [[False, True, False, False]]
    assert not chosen_KT[~pairs.real_K].any() and not rejected_KT[~pairs.real_K].any()


def test_differing_tokens_step_over_masked_ones():
    # The masked 9 of the first row is no token of the answer: (5, 7) and (5, 7) do not differ.
    ids_BT, mask_BT = torch.tensor([[5, 9, 7], [5, 7, 0]]), torch.tensor([[1, 0, 1], [1, 1, 0]])
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    assert not any(side.any() for side in differing_tokens(ids_BT, mask_BT, pairs))


def test_a_token_that_is_everywhere_is_still_matched():
    # difflib's own shortcut would call a token junk that fills a sequence of 200 or more.
    ids_BT = torch.full((2, 250), 5)
    ids_BT[:, 0] = torch.tensor([6, 7])
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    for differs_KT in differing_tokens(ids_BT, torch.ones(2, 250), pairs):
        assert differs_KT[pairs.real_K].nonzero()[:, 1].tolist() == [0]


def test_rbrm_limits():
    margin_K = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    sure_K, equal_K = torch.full((3,), 100.0).double(), torch.zeros(3).double()
    sure = rbrm_losses(margin_K, confidences(sure_K, alpha=7.5), beta=0.3)
    torch.testing.assert_close(sure, dpo_losses(margin_K, beta=0.3), rtol=1e-12, atol=1e-12)
    # C = 1/2: (softplus(-x) + softplus(x)) / 2 at x = beta * margin, lowest at 0, where it is log 2
    half_K = confidences(equal_K, alpha=7.5)
    half = rbrm_losses(margin_K, half_K, beta=0.3)
    assert half.tolist() == pytest.approx(
        [(softplus(-x) + softplus(x)) / 2 for x in (-0.6, 0.0, 0.9)]
    )
    torch.testing.assert_close(half, rbrm_losses(-margin_K, half_K, beta=0.3))
    assert half.argmin() == 1


def test_rbrm_confidence_and_where_it_costs_least():
    # alpha 7.5, reward margin 0.2: C = sigmoid(1.5) = 0.817574; least at margin 1.5 / beta = 5
    margin_K = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    confidence_K = confidences(torch.tensor([0.2]).double(), alpha=7.5)
    loss = rbrm_losses(margin_K, confidence_K, beta=0.3)
    c = 0.8175745
    assert loss.item() == pytest.approx(c * softplus(-1.5) + (1 - c) * softplus(1.5), abs=1e-6)
    loss.sum().backward()
    assert margin_K.grad.item() == pytest.approx(0.0, abs=1e-7)
    # A reward margin below 0 counts as no confidence: C = 1/2.
    low_K = confidences(torch.tensor([-1.0]).double(), alpha=7.5)
    low = rbrm_losses(margin_K, low_K, beta=0.3)
    assert low.item() == pytest.approx((softplus(-1.5) + softplus(1.5)) / 2)


def test_a_heads_log_odds_are_added_to_those_of_the_rewards():
    # 7.5 * .2 - .5 = 1: sigmoid(1) = .731059; 0 + 2: .880797; 0 - 2 is no confidence: 1/2.
    both = confidences(torch.tensor([0.2]), alpha=7.5, head_margin_K=torch.tensor([-0.5]))
    assert both.item() == pytest.approx(0.731059, abs=1e-6)
    alone = confidences(torch.ones(2), alpha=0.0, head_margin_K=torch.tensor([2.0, -2.0]))
    assert alone.tolist() == pytest.approx([0.880797, 0.5], abs=1e-6)


def with_head(odds: list[float] | None, **options: float) -> tuple[float, Tensor, dict[str, Any]]:
    """Loss, gradient and metrics of rbrm on two prompts with rewards 0 and 1."""
    log_probs_BT = torch.tensor([[-1.0], [-2.0], [-0.5], [-1.5]], requires_grad=True)
    batch = KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=log_probs_BT.detach(),
        mask_BT=torch.ones(4, 1),
        rewards_B=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        advantages_B=torch.zeros(4),
        group_B=torch.tensor([0, 0, 1, 1]),
        reference_log_probs_BT=torch.full((4, 1), -1.2),
        extras={} if odds is None else {"head_log_odds": torch.tensor(odds)},
    )
    if options:
        loss, metrics = rbrm(batch, beta=0.5, **options)
    else:
        loss, metrics = dpo(batch, beta=0.5)
    (gradient,) = torch.autograd.grad(loss, log_probs_BT)
    return loss.item(), gradient, metrics


def test_a_head_that_gives_all_the_same_is_no_head_and_a_sure_reward_is_dpo():
    same = [0.75] * 4
    loss, gradient, metrics = with_head(same, rbrm_alpha=7.5)
    bare, bare_gradient, bare_metrics = with_head(None, rbrm_alpha=7.5)
    assert loss == bare and torch.equal(gradient, bare_gradient)
    assert metrics["head_agrees"] == 0 and "head_agrees" not in bare_metrics
    # sigmoid(100) is 1 in this precision: to the bit dpo, with a head that says nothing.
    loss, gradient, _ = with_head(same, rbrm_alpha=100.0)
    dpo_loss, dpo_gradient, _ = with_head(None)
    assert loss == dpo_loss and torch.equal(gradient, dpo_gradient)


def test_on_rewards_of_0_and_1_a_head_makes_it_another_loss_than_dpo():
    _, dpo_gradient, _ = with_head(None)
    # Of the first pair the head is sure, with the second it disagrees.
    _, gradient, metrics = with_head([50.0, 0.0, 1.0, 0.0], rbrm_alpha=0.0)
    assert torch.equal(gradient[:2], dpo_gradient[:2])
    # C = 1/2 pulls beta * margin, .5 * (-1.5 + .5) = -.5, to 0: (sigmoid(-.5) - 1/2) * .5 / 2.
    pull = (1 / (1 + math.exp(0.5)) - 0.5) * 0.5 / 2
    assert gradient[3].item() == pytest.approx(pull, abs=1e-6)
    assert gradient[2].item() == pytest.approx(-pull, abs=1e-6)
    assert metrics["head_agrees"] == 0.5 and metrics["pair_confidence"] == 0.75


def test_turns_are_the_runs_of_the_mask():
    mask_BT = torch.tensor([[1, 1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 1, 0, 0]])
    assert turns(mask_BT).tolist() == [[0, 0, -1, 1, -1, -1, 2], [-1, 0, 0, 0, 0, -1, -1]]


def test_sdpo_of_one_turn_is_dpo():
    batch = make_batch()
    assert_same(sdpo(batch, beta=0.3)[0], dpo(batch, beta=0.3)[0], batch)
    one_turn = sdpo(batch, beta=0.3, sdpo_first_turn=0, sdpo_num_turns=1)[0]
    assert_same(one_turn, dpo(batch, beta=0.3)[0], batch)


def dialogue() -> tuple[Tensor, Tensor]:
    """Log-ratios and turns of two rollouts of three turns; the first turn is the same."""
    ratios_BT = torch.tensor([[1.0, 2.0, 0.0, 3.0, 0.0, 4.0], [1.0, 2.0, 0.0, 5.0, 0.0, -1.0]])
    return ratios_BT, turns(torch.tensor([[1, 1, 0, 1, 0, 1]] * 2))


def segment(first: int, num: int | None) -> float:
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    margin_K, kept = segment_margins(*dialogue(), pairs, first=first, num=num)
    assert kept.real_K.equal(pairs.real_K)
    return margin_K[kept.real_K].item()


def test_segments_of_a_dialogue():
    assert segment(0, 1) == 0.0  # shared turn: (1 + 2) - (1 + 2)
    assert segment(1, 1) == -2.0  # 3 - 5
    assert segment(2, 1) == 5.0  # 4 - (-1)
    assert segment(1, None) == segment(0, None) == 3.0  # the shared prefix cancels
    assert segment(0, None) == sum(segment(i, 1) for i in range(3))  # whole session = sum


def test_a_rollout_without_the_segment_is_in_no_pair():
    mask_BT = torch.tensor([[1, 0, 1], [1, 0, 0]])
    pairs = pair_rows(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))
    _, kept = segment_margins(torch.ones(2, 3), turns(mask_BT), pairs, first=1, num=None)
    assert pairs.real_K.sum() == 1 and kept.real_K.sum() == 0


@pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
def test_rebel_on_a_binary_pair_is_ipo(eta):
    # REBEL (margin / eta - 1)^2 = (margin - eta)^2 / eta^2, and IPO is (margin - 1/(2 beta))^2:
    # at beta = 1/(2 eta) they differ by 1/eta^2.
    batch = make_batch(2)
    batch = replace(batch, old_log_probs_BT=batch.reference_log_probs_BT)
    margin = (batch.log_ratio_B()[1] - batch.log_ratio_B()[0]).item()
    ipo = (margin - 1 / (2 * (1 / (2 * eta)))) ** 2
    assert abs(margin) > 0.1
    assert rebel(batch, rebel_eta=eta)[0].item() == pytest.approx(ipo / eta**2, rel=1e-6)


def test_rows_without_reward_or_tokens_are_in_no_pair():
    batch = make_batch()
    batch.mask_BT[1] = 0  # the best of the group of four
    batch = replace(batch, rewards_B=torch.tensor([0.0, 1.0, 0.25, 0.5, math.nan, 0.0]))
    loss, metrics = dpo(batch, beta=0.3)
    # Left in the group of four: rewards 0, 0.25, 0.5, so the pair of rows 3 and 0.
    ratio_B = batch.log_ratio_B()
    margin = 0.3 * (ratio_B[3] - ratio_B[0]).item()
    assert metrics["num_pairs"] == 1 and metrics["pair_margin"].item() == pytest.approx(margin)
    assert loss.item() == pytest.approx(
        3 / 6 * softplus(-margin)
    )  # a group of 3 counting rows of 6


def test_veripo_weighs_solved_prompts_less():
    # At the reference each group of (4, 2) rows costs log 2; the first is solved: 4 * 0.2 + 2 of 6.
    batch = make_batch(at_reference=True)
    batch.extras["accuracy"] = torch.tensor([1.0] * 4 + [0.5] * 2)
    loss, metrics = veripo(batch, beta=0.3, veripo_drop_solved=0.8)
    assert loss.item() == pytest.approx(LOG2 * (4 * 0.2 + 2) / 6, abs=1e-9)
    assert metrics["num_pairs"] == 3
    batch.extras["accuracy"] = torch.tensor([math.nan] * 4 + [0.5] * 2)
    assert_same(veripo(batch, beta=0.3, veripo_drop_solved=0.8)[0], dpo(batch, beta=0.3)[0], batch)
