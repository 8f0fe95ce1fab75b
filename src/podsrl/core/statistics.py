"""What the selection did, in numbers: statistics of sampled and kept rewards.

Shape letters: P prompts, N sampled rollouts, M kept rollouts.
"""

import torch
from torch import Tensor

from podsrl.core.select import RULES


def group_variance(rewards_PN: Tensor) -> Tensor:
    """Population variance of each group's rewards in float64, (P,); NaN rewards are left out.

    0 for a constant group, NaN for a group without any reward. (0, 0, 1, 1) gives 0.25.
    """
    rewards_PN = rewards_PN.double()
    centred_PN = rewards_PN - rewards_PN.nanmean(dim=1, keepdim=True)
    return (centred_PN**2).nanmean(dim=1)


def is_constant(rewards_PN: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, (P,); so they are in a group without rewards."""
    low_P = rewards_PN.nan_to_num(nan=torch.inf).amin(dim=1)
    high_P = rewards_PN.nan_to_num(nan=-torch.inf).amax(dim=1)
    return high_P <= low_P


def selection_statistics(rewards_PN: Tensor, kept_PM: Tensor) -> dict[str, Tensor]:
    """Scalar tensors that describe the kept rollouts, keyed as the metrics under `pods/`.

    - `kept_reward_mean`: mean of the kept rewards
    - `kept_reward_variance`: population variance within each kept group, mean over groups
    - `frac_best_variance`: kept variance over the largest that any m rollouts of the group have,
      mean over the groups where that is above 0 (NaN when there is none); 1 for max_variance
    - `frac_kept_zero_variance`: share of groups whose kept rewards are all equal: no gradient
    - `frac_no_reward`: share of the sampled rollouts whose reward is NaN

    Example: rewards (0, 0, 0, 1), kept (0, 1): variance 0 of at best 0.25, so the share is 0.
    """
    kept_rewards_PM = rewards_PN.gather(1, kept_PM)
    variance_P = group_variance(kept_rewards_PM)
    best_PM = RULES["max_variance"](rewards_PN, kept_PM.shape[1])
    best_P = group_variance(rewards_PN.gather(1, best_PM))
    share_P = (variance_P / best_P).masked_fill(best_P == 0, torch.nan)
    return {
        "kept_reward_mean": kept_rewards_PM.double().nanmean(),
        "kept_reward_variance": variance_P.nanmean(),
        "frac_best_variance": share_P.nanmean(),
        "frac_kept_zero_variance": is_constant(kept_rewards_PM).double().mean(),
        "frac_no_reward": rewards_PN.isnan().double().mean(),
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
