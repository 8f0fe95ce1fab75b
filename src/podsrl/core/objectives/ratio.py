"""Objectives that weigh advantages by importance ratios.

Shape letters: B kept rows, T completion tokens.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch

# Metrics of `sapg` that are means over the tokens of one behaviour, and its number of tokens.
MU_EFFECTIVE, NUM_TOKENS = "mu_frac_effective", "num_tokens"


def sapg(
    batch: KeptBatch,
    *,
    epsilon: float,
    epsilon_high: float | None,
    sapg_mu_max: float = math.inf,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate for rollouts of another policy: the ratio is clipped around mu, not 1.

    SAPG, arXiv 2407.20230: rho = pi / pi_behaviour and mu = pi_old / pi_behaviour of each token;
    minus the mean over tokens of min(rho * A, clip(rho, mu (1 - eps), mu (1 + eps)) * A), and the
    weight of off-policy rollouts 1. mu = 1 is PPO. At the start of an update rho = mu, so that no
    token is clipped; the published code clips at 1 +- eps, where a token with rho > 1 + eps and
    A > 0 has no gradient from the start. It is the paper's leader with its followers' data; what a
    follower learns by is `sapg_follower`.

    A token's mu mends which token was drawn, not at which prefix, nor what followed: given these,
    E_b[mu A grad log pi] = E_old[A grad log pi].

    Args:
        batch: with advantages; extras["behaviour_log_probs"], (B, T), of the policy that sampled
            each token. Where these are absent, or NaN, the policy at the start of the update
            sampled the token: mu = 1. extras["behaviour"], (B, K), is 1 at the behaviour of each
            row; absent where there is one.
        epsilon, epsilon_high: how far below and above mu the ratio may go, relative; None: alike.
        sapg_mu_max: mu is at most this. A token that its behaviour hardly ever draws would
            otherwise outweigh the batch, once it is drawn.

    Returns:
        The loss, a sum over tokens divided by `num_tokens`, and metrics: `mu`, `frac_mu_capped`,
        `frac_clipped` (means over tokens) and, of each behaviour k, `num_tokens/k` that teach and
        `mu_frac_effective/k`, the effective sample size (sum mu)^2 / sum mu^2 over their number.

    Edge cases:
        Rows with a NaN reward have advantage 0 and add nothing. Rows of advantage 0 count with
        mu = 1 in the metrics: their log-probs may not have been computed. Without a token that
        teaches a behaviour's effective share is NaN.

    Example: a token with mu 4.48, rho 5.47, A 1, epsilon 0.1: min(5.47, 4.93), so -4.93. With
    sapg_mu_max 3: 3 min(1.22, 1.1), so -3.3. Weights 1 and 3 are worth 16 / 10 of 2 tokens: 0.8.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    ratio_BT = batch.log_ratio_BT("old").exp()
    free_mu_BT = _mu(batch, ratio_BT)
    mu_BT = free_mu_BT.clamp(max=sapg_mu_max)
    advantage_B1 = batch.advantages_B.to(ratio_BT.dtype)[:, None]
    # rho = mu * (pi / pi_old), and mu > 0 can be drawn out of both arguments of the minimum.
    free_BT = ratio_BT * advantage_B1
    clipped_BT = ratio_BT.clamp(1 - epsilon, 1 + high) * advantage_B1
    loss = -batch.mean_over_tokens(mu_BT * torch.minimum(free_BT, clipped_BT))
    is_clipped_BT = (clipped_BT < free_BT).to(ratio_BT.dtype)
    return loss, {
        "mu": batch.mean_over_tokens(mu_BT),
        "frac_mu_capped": batch.mean_over_tokens((free_mu_BT > sapg_mu_max).to(mu_BT.dtype)),
        "frac_clipped": batch.mean_over_tokens(is_clipped_BT.detach()),
        **_of_behaviours(batch, mu_BT),
    }


def sapg_follower(
    batch: KeptBatch,
    entropies_BT: Tensor,
    *,
    entropy_bonus: float,
    epsilon: float,
    epsilon_high: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a follower learns by, on rollouts of its own: PPO's loss less a bonus for its entropy.

    SAPG, arXiv 2407.20230: `sapg` at mu = 1 minus `entropy_bonus` times the mean over tokens of the
    entropy of the follower's next-token distribution, in nats. The bonus keeps followers apart
    from the leader, who has none.

    Args:
        batch: of the follower's rollouts alone, log-probs of the follower, advantages among its
            own rewards. `extras` are not read: it is its own behaviour.
        entropies_BT: of the follower at each token, with gradient; anything where `mask_BT` is 0.
        entropy_bonus: reward per nat; 0 for none.
        epsilon, epsilon_high: as of `sapg`.

    Returns:
        The loss, sums over tokens divided by `num_tokens`, and metrics `entropy`, `frac_clipped`.

    Edge cases: rows of advantage 0 add their entropy, and nothing else.

    Example: one token of rho 1, A 2 and entropy 3 nats, bonus 0.1: -2 - 0.3 = -2.3.
    """
    own = replace(batch, extras={})
    loss, metrics = sapg(own, epsilon=epsilon, epsilon_high=epsilon_high)
    entropy = batch.mean_over_tokens(entropies_BT)
    named = {"entropy": entropy.detach(), "frac_clipped": metrics["frac_clipped"]}
    return loss - entropy_bonus * entropy if entropy_bonus else loss, named


def _mu(batch: KeptBatch, like_BT: Tensor) -> Tensor:
    behaviour_BT = batch.extras.get("behaviour_log_probs")
    if behaviour_BT is None:
        return torch.ones_like(like_BT)
    difference_BT = (batch.old_log_probs_BT - behaviour_BT).where(_teaches_BT(batch), 0.0)
    return difference_BT.nan_to_num(nan=0.0).exp().to(like_BT.dtype)


def _of_behaviours(batch: KeptBatch, mu_BT: Tensor) -> dict[str, Tensor]:
    """How many tokens of each behaviour teach, and what share of them is left of their weights."""
    behaviour_BK = batch.extras.get("behaviour")
    if behaviour_BK is None:
        return {}
    teaches_BT = _teaches_BT(batch).to(mu_BT.dtype)
    sums_B3 = torch.stack([(teaches_BT * mu_BT**power).sum(dim=1) for power in range(3)], dim=1)
    number_K, sum_K, squares_K = (behaviour_BK.T.to(mu_BT.dtype) @ sums_B3).unbind(dim=1)
    effective_K = sum_K.square() / (number_K * squares_K)
    return {
        **{f"{NUM_TOKENS}/{k}": number for k, number in enumerate(number_K)},
        **{f"{MU_EFFECTIVE}/{k}": share for k, share in enumerate(effective_K)},
    }


def _teaches_BT(batch: KeptBatch) -> Tensor:
    return batch.keep_BT & (batch.advantages_B != 0)[:, None]
