"""Objectives over pairs of a better and a worse kept rollout of one prompt.

All of them ask that the policy raise the chosen rollout over the rejected one, against the
reference; they differ in what they add to the margin or how they weigh it. The formulas are in
pair_losses.py; here they are put on a `KeptBatch`. Pairs come from the kept rollouts alone, which
for `max_variance` are the extremes of the n sampled ones: at m = 2 the best and the worst.

A group weighs its number of kept rows, whatever its number of pairs, and nothing if it has none.
"""

from dataclasses import replace

from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.pair_losses import (
    bmc_margins,
    confidences,
    differing_tokens,
    dpo_losses,
    rbrm_losses,
    tdpo1_losses,
    tdpo2_losses,
)
from podsrl.core.objectives.pairing import Pairs, pair_rows
from podsrl.core.objectives.segments import segment_margins, turns

Result = tuple[Tensor, dict[str, Tensor]]

# How the turns are found that `sdpo` compares.
SEGMENTS = ("value_drop", "fixed")

# Metrics that are means over pairs, and the metric that counts these.
MEANS_OVER_PAIRS = ("pair_accuracy", "pair_margin", "pair_confidence", "head_agrees")
NUM_PAIRS = "num_pairs"


def dpo(batch: KeptBatch, *, beta: float, pair_mode: str = "extremes") -> Result:
    """-log sigmoid(beta * margin), the mean over each group's pairs.

    Direct preference optimization, arXiv 2305.18290. The margin is the log-ratio to the reference,
    summed over tokens, of the chosen minus the rejected rollout.

    Args:
        batch: with reference log-probs; a group's kept rows complete.
        beta: > 0, per nat: how fast a pair counts as settled.
        pair_mode: `extremes` or `all`; see `pair_rows`.

    Returns:
        The loss, mean over rows, and metrics: `num_pairs`; `frac_no_pair`, the share of possible
        pairs lost to equal rewards; `pair_accuracy`, the share of pairs with a margin above 0;
        `pair_margin`, the mean of beta * margin. The last two are NaN without any pair; logs leave
        them out then.

    Edge cases:
        Equal rewards make no pair; a batch without pairs has loss 0 and gradient 0.

    Example: two rows with rewards (1, 0) and log-ratios (0, 0): log 2 = 0.6931.
    """
    pairs = pairs_of(batch, pair_mode)
    margin_K = pairs.difference(batch.log_ratio_B())
    return mean_over_pairs(batch, pairs, dpo_losses(margin_K, beta=beta), beta * margin_K)


def tdpo1(batch: KeptBatch, *, beta: float, pair_mode: str = "extremes") -> Result:
    """DPO with the difference of sequential divergences in the margin: TDPO1, arXiv 2404.11999.

    Needs `batch.extras["sequential_kl"]`, (B,) with gradient, from `sequential_kl`. Arguments and
    result are those of `dpo`; the formula is in `tdpo1_losses`.
    """
    pairs = pairs_of(batch, pair_mode)
    margin_K = pairs.difference(batch.log_ratio_B())
    kl_margin_K = pairs.difference(batch.extras["sequential_kl"])
    losses_K = tdpo1_losses(margin_K, kl_margin_K, beta=beta)
    loss, metrics = mean_over_pairs(batch, pairs, losses_K, beta * margin_K)
    return loss, metrics | _kl_metric(batch)


def tdpo2(
    batch: KeptBatch, *, beta: float, tdpo_alpha: float, pair_mode: str = "extremes"
) -> Result:
    """TDPO1 weighted by alpha, without gradient through the chosen rollout's divergence: TDPO2.

    arXiv 2404.11999. Needs `batch.extras["sequential_kl"]` as `tdpo1` does. alpha = 0 is `dpo`.
    Arguments and result are otherwise those of `dpo`; the formula is in `tdpo2_losses`.
    """
    pairs = pairs_of(batch, pair_mode)
    margin_K = pairs.difference(batch.log_ratio_B())
    kl_B = batch.extras["sequential_kl"]
    losses_K = tdpo2_losses(margin_K, kl_B, pairs, beta=beta, alpha=tdpo_alpha)
    loss, metrics = mean_over_pairs(batch, pairs, losses_K, beta * margin_K)
    return loss, metrics | _kl_metric(batch)


def bmc(batch: KeptBatch, *, beta: float, bmc_delta: float, pair_mode: str = "extremes") -> Result:
    """DPO in which tokens that tell the two rollouts apart weigh more where they are unsure.

    The modelling phase of BMC, arXiv 2408.07471; the formula is in `bmc_margins`. Its bridging
    phase puts other rollouts into the batch beforehand (`bridge_starts`); which two are a pair is
    then in `batch.extras["segment_pair"]`, (B,) int64, equal for the two rows of a pair and for no
    others.

    Needs `batch.extras["completion_ids"]`, (B, T). Which tokens differ is found on the host by
    difflib, which reads the ids back once per micro-batch: here, and not when the rollouts are
    sampled, because only here are the pairs known for both pair modes and any order of rows.
    Arguments and result are otherwise those of `dpo`; delta = 0 is `dpo`.
    """
    pairs = _given_pairs(batch, pair_mode)
    differs = differing_tokens(batch.extras["completion_ids"], batch.mask_BT, pairs)
    log_ratios_BT = batch.log_ratio_BT()
    margin_K = bmc_margins(batch.log_probs_BT, log_ratios_BT, pairs, differs, delta=bmc_delta)
    return mean_over_pairs(batch, pairs, dpo_losses(margin_K, beta=beta), beta * margin_K)


def rbrm(
    batch: KeptBatch, *, beta: float, rbrm_alpha: float, pair_mode: str = "extremes"
) -> Result:
    """DPO on labels believed with confidence C, from the difference of the rewards.

    Pairs weighted by confidence (RBRM, arXiv 2503.10093); the formulas are in `confidences` and
    `rbrm_losses`. The paper's reward model on hidden states has its place in
    `batch.extras["head_log_odds"]`, (B,): what a head gives each rollout; without it the rewards
    say alone. Which of two is chosen is the rewards' to say in any case. Arguments and result are
    otherwise those of `dpo`; with a head there are the metrics `pair_confidence`, the mean of C,
    and `head_agrees`, the share of pairs whose chosen rollout the head gives more.

    Example: rewards (1, 0) at alpha 7.5: C = sigmoid(7.5) = 0.9994, nearly `dpo`.
    """
    pairs = pairs_of(batch, pair_mode)
    margin_K = pairs.difference(batch.log_ratio_B())
    reward_margin_K = pairs.difference(batch.scored_rewards_B).to(margin_K.dtype)
    head_margin_K = None
    if "head_log_odds" in batch.extras:
        head_margin_K = pairs.difference(batch.extras["head_log_odds"]).to(margin_K.dtype)
    confidence_K = confidences(reward_margin_K, alpha=rbrm_alpha, head_margin_K=head_margin_K)
    losses_K = rbrm_losses(margin_K, confidence_K, beta=beta)
    loss, metrics = mean_over_pairs(batch, pairs, losses_K, beta * margin_K)
    if head_margin_K is not None:
        metrics["pair_confidence"] = pairs.mean(confidence_K)
        metrics["head_agrees"] = pairs.mean((head_margin_K > 0).to(losses_K.dtype))
    return loss, metrics


def sdpo(
    batch: KeptBatch,
    *,
    beta: float,
    sdpo_segment: str = "fixed",
    sdpo_first_turn: int | None = None,
    sdpo_num_turns: int | None = None,
    pair_mode: str = "extremes",
) -> Result:
    """DPO on a segment of the turns of a dialogue.

    Segment-level DPO, arXiv 2501.01821; the formula is in `segment_margins`. Not the SDPO of
    arXiv 2601.20802 (self-distillation), which is TRL's. Turns are the runs of ones of the mask. On
    rollouts of one turn it is `dpo`.

    `fixed`: the same turns of every pair, `sdpo_first_turn` (None: the first) and so many on (None:
    to the end). `value_drop`: of each pair its own, found with `largest_fall` before the update;
    needs `batch.extras`, each (B,) int64: `segment_pair`, equal for the two rows of a pair and for
    no others, `segment_first` and `segment_num`. Arguments and result are otherwise those of `dpo`.
    """
    pairs = _given_pairs(batch, pair_mode)
    first: int | Tensor = sdpo_first_turn or 0
    num: int | Tensor | None = sdpo_num_turns
    if sdpo_segment == "value_drop":
        first, num = batch.extras["segment_first"], batch.extras["segment_num"]
    margin_K, pairs = segment_margins(
        batch.log_ratio_BT(), turns(batch.mask_BT), pairs, first=first, num=num
    )
    return mean_over_pairs(batch, pairs, dpo_losses(margin_K, beta=beta), beta * margin_K)


def veripo(
    batch: KeptBatch, *, beta: float, veripo_drop_solved: float, pair_mode: str = "extremes"
) -> Result:
    """`dpo` in which prompts that all n rollouts solve weigh 1 - `veripo_drop_solved`.

    The pair stage of VerIPO, arXiv 2505.19000 (second-hand); the trainer alternates it with TRL's
    loss. The paper leaves that share of the solved prompts out at random, of which this is the
    expectation. Needs `batch.extras["accuracy"]`, (B,): mean of the first reward function over all
    n rollouts of the row's prompt; 1 is solved. Where that reward is all there is, a solved prompt
    has no pairs. Arguments and result are otherwise those of `dpo`.
    """
    pairs = pairs_of(batch, pair_mode)
    margin_K = pairs.difference(batch.log_ratio_B())
    weight_B = 1 - veripo_drop_solved * (batch.extras["accuracy"] >= 1).to(margin_K.dtype)
    losses_K = weight_B[pairs.rejected_K] * dpo_losses(margin_K, beta=beta)
    return mean_over_pairs(batch, pairs, losses_K, beta * margin_K)


def pairs_of(batch: KeptBatch, pair_mode: str) -> Pairs:
    """The pairs of the rows that have a reward and tokens."""
    rewards_B = batch.rewards_B.masked_fill(~batch.counts_B, float("nan"))
    return pair_rows(rewards_B, batch.group_B, mode=pair_mode)


def _given_pairs(batch: KeptBatch, pair_mode: str) -> Pairs:
    """Those of `pairs_of`, but only of rows that are said to be a pair where any are."""
    pairs = pairs_of(batch, pair_mode)
    if "segment_pair" not in batch.extras:
        return pairs
    two_by_two = replace(batch, group_B=batch.extras["segment_pair"])
    return replace(pairs_of(two_by_two, pair_mode), num_possible=pairs.num_possible)


def mean_over_pairs(
    batch: KeptBatch, pairs: Pairs, losses_K: Tensor, scaled_margin_K: Tensor
) -> Result:
    """Mean over each group's pairs, then over rows, and the metrics that `dpo` names.

    Every row carries the mean of its group's pairs, so that a group of k rows weighs k / num_rows
    as it does in the other objectives, and micro-batches of whole groups change nothing.
    """
    sum_B, _ = batch.group_mean(pairs.sum_by_rejected(losses_K))
    num_B, _ = batch.group_mean(pairs.sum_by_rejected(losses_K.new_ones(losses_K.shape)))
    loss = batch.mean_over_rows(sum_B / num_B.masked_fill(num_B == 0, 1.0))
    margin_K = scaled_margin_K.detach()
    num = pairs.real_K.sum().to(losses_K.dtype)
    metrics = {
        "num_pairs": num,
        "frac_no_pair": 1 - num / pairs.num_possible,
        "pair_accuracy": pairs.mean((margin_K > 0).to(losses_K.dtype)),
        "pair_margin": pairs.mean(margin_K),
    }
    return loss, metrics


def _kl_metric(batch: KeptBatch) -> dict[str, Tensor]:
    kl_B = batch.extras["sequential_kl"].detach()
    return {"sequential_kl": batch.mean_over_rows(kl_B)}
