"""Objectives over the prefixes of a rollout, each of which could have been its end.

Shape letters: B kept rows, T completion tokens.
"""

import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch

Result = tuple[Tensor, dict[str, Tensor]]


def subtb(batch: KeptBatch, *, beta: float, subtb_lambda: float) -> Result:
    """Sub-trajectory balance: mean over pairs of prefixes i < j of a rollout of (c_j - c_i)^2.

    GFlowNet fine-tuning, arXiv 2310.04363, with log R(z end) = log pi_ref(z end) + r(z) / beta:

        c_t = log pi(z_1:t end) - log R(z_1:t end) = log (pi / pi_ref)(z_1:t end) - r_t / beta

    where `z_1:t end` is the rollout's first t tokens and an end token, and r_t what that answer
    is rewarded. A pair weighs subtb_lambda^(j - i - 1), and the weights of a rollout make 1. The
    published loss is a sum over what one adds to c from one token to the next, which is this
    difference; it is 0 for all rollouts where pi is proportional to R, and there alone.

    Args:
        batch: with reference log-probs; extras["end_log_probs"] and
            extras["reference_end_log_probs"], (B, T): log-probs of an end token in the place of
            token t, the former with gradient; extras["prefix_rewards"], (B, T): rewards of the
            answer that ends there, NaN where there is none.
        beta: > 0, in units of reward per nat.
        subtb_lambda: > 0; 1 weighs all pairs alike, large values leave the longest alone, which is
            trajectory balance with log Z = -c_0.

    Returns:
        The loss and `prefix_variance`, mean over rows of the variance of c * beta over prefixes.

    Edge cases:
        A rollout of T tokens, its end token included, has T prefixes, the empty one and not the
        last token: what was cut off has as many. Prefixes without a reward are left out; a rollout
        of fewer than two adds 0, and one without a reward too.

    Example: c = (0, 1, 3): 1, 4 and 9, so 14 / 3; with lambda 0.5 (1 + 4 + 9 / 2) / 2.5 = 3.8.
    """
    c_BT, known_BT = _terminated(batch, beta=beta)
    weight_BTT = _weights(known_BT, subtb_lambda, c_BT.dtype)
    squared_BTT = (c_BT[:, None, :] - c_BT[:, :, None]).square()
    sum_B = (weight_BTT * squared_BTT).sum(dim=(1, 2))
    loss = batch.mean_over_rows(sum_B / weight_BTT.sum(dim=(1, 2)).clamp(min=1e-30))
    return loss, {
        "prefix_variance": batch.mean_over_rows(_variance(beta * c_BT.detach(), known_BT))
    }


def _terminated(batch: KeptBatch, *, beta: float) -> tuple[Tensor, Tensor]:
    """c of each prefix, 0 where it is not known, and whether it is."""
    ratio_BT = batch.log_ratio_BT()
    before_BT = ratio_BT.cumsum(dim=1) - ratio_BT
    end_BT = batch.extras["end_log_probs"] - batch.extras["reference_end_log_probs"]
    rewards_BT = batch.extras["prefix_rewards"]
    known_BT = batch.keep_BT & ~rewards_BT.isnan()
    c_BT = before_BT + end_BT.to(ratio_BT.dtype) - rewards_BT.nan_to_num(nan=0.0) / beta
    return c_BT.where(known_BT, 0.0), known_BT


def _weights(known_BT: Tensor, subtb_lambda: float, dtype: torch.dtype) -> Tensor:
    """lambda^(j - i - 1) of each pair i < j of known prefixes, over that of the longest or 1."""
    place_T = torch.arange(known_BT.shape[1], device=known_BT.device)
    gap_TT = place_T[None, :] - place_T[:, None] - 1
    is_pair_BTT = known_BT[:, :, None] & known_BT[:, None, :] & (gap_TT >= 0)
    # Counted from the longest pair where lambda is above 1, whose powers would overflow.
    longest_B11 = gap_TT.where(is_pair_BTT, 0).amax(dim=(1, 2), keepdim=True)
    start = longest_B11 if subtb_lambda > 1 else torch.zeros_like(longest_B11)
    power_BTT = torch.as_tensor(subtb_lambda, dtype=dtype) ** (gap_TT - start)
    return power_BTT.where(is_pair_BTT, 0.0)


def _variance(values_BT: Tensor, known_BT: Tensor) -> Tensor:
    """Unbiased variance over the known places of each row, (B,); 0 where they are fewer than 2."""
    number_B1 = known_BT.sum(dim=1, keepdim=True)
    mean_B1 = values_BT.where(known_BT, 0.0).sum(1, keepdim=True) / number_B1.clamp(min=1)
    squared_BT = (values_BT - mean_B1).square().where(known_BT, 0.0)
    return squared_BT.sum(1) / (number_B1[:, 0] - 1).clamp(min=1)
