"""Objectives that weigh advantages by importance ratios.

Shape letters: B kept rows, T completion tokens.
"""

import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch


def sapg(
    batch: KeptBatch, *, epsilon: float, epsilon_high: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate for rollouts of another policy: the ratio is clipped around mu, not 1.

    SAPG, arXiv 2407.20230: rho = pi / pi_behaviour and mu = pi_old / pi_behaviour of each token;
    minus the mean over tokens of min(rho * A, clip(rho, mu (1 - eps), mu (1 + eps)) * A), and the
    weight of off-policy rollouts 1. mu = 1 is PPO. At the start of an update rho = mu, so that no
    token is clipped; the published code clips at 1 +- eps, where a token with rho > 1 + eps and
    A > 0 has no gradient from the start. The paper's several policies and shared backbone are not
    part of this.

    Args:
        batch: with advantages; extras["behaviour_log_probs"], (B, T), of the policy that sampled
            each token. Where these are absent, or NaN, the policy at the start of the update
            sampled the token: mu = 1.
        epsilon, epsilon_high: how far below and above mu the ratio may go, relative; None: alike.

    Returns:
        The loss, a sum over tokens divided by `num_tokens`, and metrics: `mu` (mean over tokens),
        `frac_clipped`.

    Edge cases:
        Rows with a NaN reward have advantage 0 and add nothing.

    Example: a token with mu 4.48, rho 5.47, A 1, epsilon 0.1: min(5.47, 4.93), so -4.93.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    ratio_BT = batch.log_ratio_BT("old").exp()
    mu_BT = _mu(batch, ratio_BT)
    advantage_B1 = batch.advantages_B.to(ratio_BT.dtype)[:, None]
    # rho = mu * (pi / pi_old), and mu > 0 can be drawn out of both arguments of the minimum.
    free_BT = ratio_BT * advantage_B1
    clipped_BT = ratio_BT.clamp(1 - epsilon, 1 + high) * advantage_B1
    loss = -batch.mean_over_tokens(mu_BT * torch.minimum(free_BT, clipped_BT))
    is_clipped_BT = (clipped_BT < free_BT).to(ratio_BT.dtype)
    return loss, {
        "mu": batch.mean_over_tokens(mu_BT),
        "frac_clipped": batch.mean_over_tokens(is_clipped_BT.detach()),
    }


def _mu(batch: KeptBatch, like_BT: Tensor) -> Tensor:
    behaviour_BT = batch.extras.get("behaviour_log_probs")
    if behaviour_BT is None:
        return torch.ones_like(like_BT)
    difference_BT = (batch.old_log_probs_BT - behaviour_BT).masked_fill(~batch.keep_BT, 0.0)
    return difference_BT.nan_to_num(nan=0.0).exp().to(like_BT.dtype)
