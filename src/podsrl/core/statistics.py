"""What the selection did, in numbers: statistics of sampled and kept rewards.

Shape letters: P prompts, N sampled rollouts, M kept rollouts.
"""

import torch
from torch import Tensor

from podsrl.core.budget import select_counts
from podsrl.core.select import as_mask

# Rewards that differ from their mean by less than this share of the largest reward equal it; the
# rounding error of a mean lies below.
_EQUAL = 2.0**-40


def group_variance(rewards_PN: Tensor) -> Tensor:
    """Population variance of each group's rewards in float64, (P,); NaN rewards are left out.

    0 for a constant group, NaN for a group without any reward. (0, 0, 1, 1) gives 0.25.
    """
    return _deviations(rewards_PN).square().nanmean(dim=1)


def sum_squares(rewards_PN: Tensor) -> Tensor:
    """Sum of squared deviations from the group's mean in float64, (P,); NaN rewards are left out.

    0 for a constant group and for one without any reward. (0, 0, 1, 1) gives 1.
    """
    return _deviations(rewards_PN).square().nansum(dim=1)


def is_constant(rewards_PN: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, (P,); so they are in a group without rewards."""
    low_P = rewards_PN.nan_to_num(nan=torch.inf).amin(dim=1)
    high_P = rewards_PN.nan_to_num(nan=-torch.inf).amax(dim=1)
    return high_P <= low_P


def selection_statistics(rewards_PN: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Scalar tensors that describe the kept rollouts, keyed as the metrics under `pods/`.

    Args:
        rewards_PN: (P, N), NaN where no reward could be computed.
        kept: (P, M) positions, or a (P, N) mask where the groups keep different numbers. Groups
            that keep nothing count in none of the means over groups.

    Returns:
        - `kept_reward_mean`: mean of the kept rewards
        - `kept_reward_variance`: population variance within each kept group, mean over groups
        - `kept_sum_squares`: sum of squared deviations from the group's kept mean, over all groups
        - `frac_best_variance`: kept variance over the largest that as many rollouts of the group
          have, mean over the groups where that is above 0 (NaN when there is none); 1 for
          max_variance
        - `frac_kept_zero_variance`: share of groups whose kept rewards are all equal: no gradient
        - `frac_kept_zero_advantage`: share of the kept rollouts that have no reward or exactly the
          mean of their group's kept ones, as in a group of equal rewards: no gradient
        - `frac_no_reward`: share of the sampled rollouts whose reward is NaN
        - `min_kept_per_prompt`, `max_kept_per_prompt`: over the groups, also those that keep none

    Example: rewards (0, 0, 0, 1), kept (0, 1): variance 0 of at best 0.25, so the share is 0.
    """
    return mask_statistics(rewards_PN, as_mask(kept, rewards_PN.shape[1]))


def mask_statistics(
    rewards_PN: Tensor, kept_PN: Tensor, *, is_best: bool = False
) -> dict[str, Tensor]:
    """`selection_statistics` of a mask (P, N).

    is_best: whether `max_variance` chose, so that its share is 1 and it need not run once more.
    """
    counts_P = kept_PN.sum(1)
    kept_rewards_PN = rewards_PN.double().masked_fill(~kept_PN, torch.nan)
    variance_P = group_variance(kept_rewards_PN)
    best_P = variance_P if is_best else _best_variance(rewards_PN, counts_P)
    share_P = (variance_P / best_P).masked_fill(best_P == 0, torch.nan)
    has_kept_P = counts_P > 0
    num_constant = (is_constant(kept_rewards_PN) & has_kept_P).sum()
    return {
        "kept_reward_mean": kept_rewards_PN.nanmean(),
        "kept_reward_variance": variance_P.nanmean(),
        "kept_sum_squares": sum_squares(kept_rewards_PN).sum(),
        "frac_best_variance": share_P.nanmean(),
        "frac_kept_zero_variance": num_constant.double() / has_kept_P.sum(),
        "frac_kept_zero_advantage": _num_at_mean(kept_rewards_PN, kept_PN) / counts_P.sum(),
        "frac_no_reward": rewards_PN.isnan().double().mean(),
        "min_kept_per_prompt": counts_P.amin().double(),
        "max_kept_per_prompt": counts_P.amax().double(),
    }


def reward_statistics(rewards_PN: Tensor) -> dict[str, Tensor]:
    """Scalar tensors that describe the policy: mean, standard deviation, share of constant groups.

    Over all sampled rollouts, NaN left out; the standard deviation is the unbiased one over the
    whole batch, as TRL's metric `reward_std`; NaN where fewer than two rewards exist.
    """
    scored = rewards_PN.double()
    centred = scored - scored.nanmean()
    degrees = (~scored.isnan()).sum() - 1
    return {
        "reward": scored.nanmean(),
        "reward_std": ((centred**2).nansum() / degrees).sqrt(),
        "frac_reward_zero_std": is_constant(rewards_PN).double().mean(),
    }


def _best_variance(rewards_PN: Tensor, counts_P: Tensor) -> Tensor:
    """Largest variance that so many rollouts of each group can have, (P,)."""
    best_PN = select_counts(rewards_PN, counts_P)
    return group_variance(rewards_PN.double().masked_fill(~best_PN, torch.nan))


def reward_metrics(rewards_PN: Tensor, rewards_PNF: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The policy's quality over all sampled rollouts, named as TRL names that of kept ones.

    Args:
        rewards_PN: the weighted sums.
        rewards_PNF, names: of the reward functions; NaN where a function gave none.

    Example: rewards (0, 1) of one function "right", weight 1: `reward` and `rewards/right/mean` are
    0.5.
    """
    values = reward_statistics(rewards_PN)
    for i, name in enumerate(names):
        each = reward_statistics(rewards_PNF[..., i])
        values[f"rewards/{name}/mean"] = each["reward"]
        values[f"rewards/{name}/std"] = each["reward_std"]
    return values


def _deviations(rewards_PN: Tensor) -> Tensor:
    rewards_PN = rewards_PN.double()
    return rewards_PN - rewards_PN.nanmean(dim=1, keepdim=True)


def _num_at_mean(kept_rewards_PN: Tensor, kept_PN: Tensor) -> Tensor:
    """How many kept rollouts have their group's mean reward or none; NaN marks the dropped."""
    largest_P1 = kept_rewards_PN.abs().nan_to_num(nan=0.0).amax(dim=1, keepdim=True)
    differs_PN = _deviations(kept_rewards_PN).abs() > _EQUAL * largest_P1
    return (kept_PN & ~differs_PN).sum().double()
