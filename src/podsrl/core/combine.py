"""From several reward functions to the one reward per rollout that the rules rank.

Shape letters: P prompts, N sampled rollouts, F reward functions.
"""

import torch
from torch import Tensor

EPSILON = 1e-4
SUM_THEN_NORMALIZE = "sum_then_normalize"
NORMALIZE_THEN_SUM = "normalize_then_sum"


def combine(
    rewards_PNF: Tensor, weights_F: Tensor, *, aggregation: str = SUM_THEN_NORMALIZE
) -> Tensor:
    """The reward of each rollout, (P, N): the weighted sum over the reward functions.

    `sum_then_normalize` sums the rewards as they are. `normalize_then_sum` first centres and scales
    each function over the N rollouts of its group, (r - mean) / (std + 1e-4) with the unbiased
    standard deviation, as TRL does before it sums, so that a function counts by its spread within
    the group and not by its unit.

    NaN in one function means that it does not apply to the rollout, which adds 0; NaN in all
    functions means that no reward could be computed: the sum is NaN.

    Example: rewards (1, 0.25) with weights (1, 0.1) give 1.025.
    """
    if aggregation == NORMALIZE_THEN_SUM:
        rewards_PNF = _standardise(rewards_PNF)
    summed_PN = (rewards_PNF * weights_F.to(rewards_PNF.device)).nansum(dim=-1)
    return summed_PN.masked_fill(rewards_PNF.isnan().all(dim=-1), torch.nan)


def _standardise(rewards_PNF: Tensor) -> Tensor:
    centred_PNF = rewards_PNF - rewards_PNF.nanmean(dim=1, keepdim=True)
    count_P1F = (~centred_PNF.isnan()).sum(dim=1, keepdim=True)
    variance_P1F = (centred_PNF**2).nansum(dim=1, keepdim=True) / (count_P1F - 1).clamp(min=1)
    return centred_PNF / (variance_P1F.sqrt() + EPSILON)
