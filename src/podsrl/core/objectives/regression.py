"""Objectives that regress log-ratios on rewards: one residual, five papers.

    u = r - beta * log(pi / pi_ref)        r reward, log-ratio summed over the rollout's tokens

At the optimum of "reward minus beta * KL to the reference", u is the same for all rollouts of a
prompt. Each objective here asks for that in its way, and does so whatever policy the rollouts came
from. So a selection rule does not move the optimum where the policy can represent it; where it
cannot, errors on the kept rollouts (for max_variance: the extremes) weigh more.

In all of them rows without a reward or without tokens are left out, groups may have any sizes, a
group of k rows weighs k, and the sum is divided by the batch's `num_rows`. They return the loss and
metrics (scalar tensors without gradient). In their formulas r is the reward, lr = log(pi / pi_ref).

Shape letters: B kept rows, K rollouts of the reference per prompt.
"""

import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch

Result = tuple[Tensor, dict[str, Tensor]]


def residual(batch: KeptBatch, *, beta: float) -> Tensor:
    """u = r - beta * lr of each row, (B,); where the reward is NaN, as if it were 0.

    Example: reward 1, log-ratio 0.5, beta 0.1: 0.95.
    """
    log_ratio_B = batch.log_ratio_B()
    return batch.scored_rewards_B.to(log_ratio_B.dtype) - beta * log_ratio_B


def agro(batch: KeptBatch, *, beta: float) -> Result:
    """Half the (unbiased) variance of u within each group.

    Any-Generation Reward Optimization, arXiv 2503.19612, known second-hand: no code was released.
    The gradient is -beta times the leave-one-out policy gradient of u. On-policy, the paper adds a
    term for the gradient through sampling; kept rollouts are no sample of the policy, so this is
    the off-policy form.

    Edge cases: a group with one row adds 0. beta is above 0, in units of reward per nat.

    Example: rewards (0, 1), log-ratios 0: half of the variance 1/2, so 0.25.
    """
    variance = batch.mean_over_rows(batch.group_variance(residual(batch, beta=beta)))
    return variance / 2, {"residual_variance": variance.detach()}


def vargrad(batch: KeptBatch, *, beta: float) -> Result:
    """Variance within each group of u / beta = r / beta - lr.

    Trajectory balance, (log Z + lr - r / beta)^2, with log Z the group's mean: the GFlowNet
    objective (arXiv 2310.04363) in the form that needs no reward at prefixes. Equal to
    2 / beta^2 times `agro`, so that the two differ by gradient clipping and beta alone.

    Edge cases: as `agro`.

    Example: rewards (0, 1), log-ratios 0, beta 0.5: (1/2) / 0.25 = 2.
    """
    variance = batch.mean_over_rows(batch.group_variance(residual(batch, beta=beta)))
    return variance / beta**2, {"residual_variance": variance.detach()}


def rebel(batch: KeptBatch, *, rebel_eta: float) -> Result:
    """Mean over all pairs of a group of ((lr_old - lr_old') / eta - (r - r'))^2.

    REBEL, arXiv 2404.16767; lr_old = log(pi / pi_old) is to the policy at the start of the update,
    so no reference is read. The mean over pairs is twice the variance of lr_old / eta - r, which
    is how it is computed. The published code multiplies by eta^2 and takes best and worst of five
    samples; the latter is m = 2 here.

    Edge cases: a group with one row adds 0; a constant group pulls its log-ratios together.

    Example: rewards (0, 1) before the first update: 1.
    """
    log_ratio_B = batch.log_ratio_B("old")
    error_B = log_ratio_B / rebel_eta - batch.scored_rewards_B.to(log_ratio_B.dtype)
    loss = 2 * batch.mean_over_rows(batch.group_variance(error_B))
    return loss, {"log_ratio_old": batch.mean_over_rows(log_ratio_B.detach())}


def astar_po(batch: KeptBatch, *, beta: float, value_beta: float) -> Result:
    """Squared advantage error (u - V*)^2, with V* from rollouts of the reference.

    A*-PO, arXiv 2505.20686: V* = b log mean exp(r / b) over the reference's rewards for the prompt,
    b = `value_beta` (beta_1 there, 0.5), beta = beta_2 (1e-3 there). The published code takes the
    mean for b = 0, of which the limit is the maximum; here b is above 0.

    Reads extras["reference_rewards"], (B, K). Prompts whose reference rewards are all NaN are left
    out. A policy cannot be rewarded for what V* already expects: with all reference rollouts
    right, V* = 1 and right rollouts teach nothing but to stay.

    Example: reward 1, log-ratio 0, reference rewards (0, 0, 0, 1), b 0.5: V* = 0.4772, so 0.2733.
    """
    u_B = residual(batch, beta=beta)
    value_B = optimal_value(batch.extras["reference_rewards"], value_beta=value_beta).to(u_B.dtype)
    known_B = ~value_B.isnan()
    value_B = value_B.nan_to_num(nan=0.0)
    loss = batch.mean_over_rows((u_B - value_B).square() * known_B)
    return loss, {"optimal_value": batch.mean_over_rows(value_B)}


def qrpo(batch: KeptBatch, *, beta: float, qrpo_ties: str = "mid") -> Result:
    """Squared error (q - beta log Z - beta * lr)^2, q the reward's quantile under the reference.

    QRPO, arXiv 2507.08068, algorithm 1, for rewards with ties: `quantiles` says what q is then. The
    paper's Z assumes rewards without ties; here it is the mean of exp(q / beta) over the
    reference's own rollouts, which is right for ties (0/1 rewards) too and tends to
    beta (exp(1 / beta) - 1), the paper's, without them.

    Reads extras["reference_rewards"], (B, K). Prompts whose reference rewards are all NaN are left
    out. A reward above all of the reference's has the quantile 1.

    Args:
        batch: with reference log-probs and those rewards.
        beta: > 0, in units of quantile per nat.
        qrpo_ties: a key of `TIES`.

    Example: reward 1, log-ratio 0, reference rewards (0, 0, 0, 1), beta 0.3: q = 0.875, Z the mean
    of exp(0.375 / 0.3) three times and exp(0.875 / 0.3) once, beta log Z = 0.5938, so 0.0791. With
    "upper" q = 1, Z the mean of exp(0.75 / 0.3) thrice and exp(1 / 0.3), 0.8345, so 0.0274.
    """
    log_ratio_B = batch.log_ratio_B()
    reference_BK = batch.extras["reference_rewards"]
    quantile_B1 = quantiles(batch.scored_rewards_B[:, None], reference_BK, ties=qrpo_ties)
    log_z_B1 = log_partition(reference_BK, beta=beta, ties=qrpo_ties)[:, None]
    target_B = (quantile_B1 - log_z_B1)[:, 0].to(log_ratio_B.dtype)
    known_B = ~target_B.isnan()
    error_B = target_B.nan_to_num(nan=0.0) - beta * log_ratio_B
    loss = batch.mean_over_rows(error_B.square() * known_B)
    quantile_B = quantile_B1[:, 0].nan_to_num(nan=0.0).to(log_ratio_B.dtype)
    return loss, {"reward_quantile": batch.mean_over_rows(quantile_B)}


def optimal_value(reference_rewards_BK: Tensor, *, value_beta: float) -> Tensor:
    """V* = b log mean exp(r / b) over the last axis, (B,), b = `value_beta` > 0.

    The value, under KL regularisation of strength b, of the best policy. NaN rewards are left out;
    NaN where all are. Between the mean (b large) and the maximum (b small), without overflow.

    Example: rewards (0, 0, 0, 1), b 0.5: 0.5 log((3 + e^2) / 4) = 0.4772.
    """
    return value_beta * _log_mean_exp(reference_rewards_BK / value_beta)


TIES = ("mid", "upper")


def quantiles(rewards_BR: Tensor, reference_rewards_BK: Tensor, *, ties: str = "mid") -> Tensor:
    """Quantile of each reward among the reference's, (B, R), between 0 and 1.

    "upper" is the share of the reference's rewards that are at most the reward, as in QRPO's
    published code; "mid" the mean of that share and of the share that are below it: what the former
    is on average where ties are broken at random. Without ties the two differ by at most 1/(2 K).
    With 0/1 rewards and the share p of the reference's right, right and wrong are 1/2 apart in
    "mid", whatever p is, and p apart in "upper".

    NaN reference rewards are left out; NaN where all are. NaN rewards have quantile 0. Raises
    `ValueError` for another word than those of `TIES`.

    Example: rewards (0, 1) against (0, 0, 0, 1): (0.375, 0.875), with "upper" (0.75, 1).
    """
    if ties not in TIES:
        raise ValueError(f"ties is {ties!r}; choose one of {', '.join(TIES)}.")
    rewards_BR1, reference_B1K = rewards_BR[:, :, None], reference_rewards_BK[:, None]
    count_BR = (reference_B1K <= rewards_BR1).sum(dim=-1)
    wide = torch.promote_types(reference_rewards_BK.dtype, torch.float32)
    count_BR = count_BR.to(wide)
    if ties == "mid":
        count_BR = (count_BR + (reference_B1K < rewards_BR1).sum(dim=-1)) / 2
    return count_BR / (~reference_B1K.isnan()).sum(dim=-1).to(wide)


def log_partition(reference_rewards_BK: Tensor, *, beta: float, ties: str = "mid") -> Tensor:
    """beta log Z = beta log mean exp(q / beta) over the reference's own quantiles, (B,).

    Example: rewards (0, 0, 0, 1), beta 0.3: 0.5938; with ties "upper" 0.8345.
    """
    own_BK = quantiles(reference_rewards_BK, reference_rewards_BK, ties=ties)
    own_BK = own_BK.masked_fill(reference_rewards_BK.isnan(), torch.nan)
    return beta * _log_mean_exp(own_BK / beta)


def _log_mean_exp(values_BK: Tensor) -> Tensor:
    known_BK = ~values_BK.isnan()
    summed_B = values_BK.masked_fill(~known_BK, -torch.inf).logsumexp(dim=1)
    # 0 known values: -inf - (-inf), NaN.
    return summed_B - known_BK.sum(dim=1).to(values_BK.dtype).log()
