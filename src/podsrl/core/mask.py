"""Kept rollouts as a mask, which also says how many of each prompt are kept when numbers differ.

Shape letters: P prompts, N sampled rollouts, M kept rollouts.
"""

import torch
from torch import Tensor


def as_mask(kept: Tensor, num_rollouts: int) -> Tensor:
    """Return kept rollouts as a bool mask (P, N); a mask is handed back as it is.

    Args:
        kept: (P, N) bool, or (P, M) int64 positions as `podsrl.select` returns.
        num_rollouts: N.

    Raises:
        ValueError: a mask of another width, or anything but two dimensions of bool or int64.

    Example:
        >>> as_mask(torch.tensor([[0, 2]]), 4)
        tensor([[ True, False,  True, False]])
    """
    if kept.ndim != 2 or kept.dtype not in (torch.bool, torch.int64):
        raise ValueError(
            f"kept rollouts have shape {tuple(kept.shape)} and dtype {kept.dtype}; pass (P, N) "
            "bool or (P, M) int64 positions."
        )
    if kept.dtype == torch.int64:
        empty_PN = torch.zeros(len(kept), num_rollouts, dtype=torch.bool, device=kept.device)
        return empty_PN.scatter_(1, kept, True)
    if kept.shape[1] != num_rollouts:
        raise ValueError(
            f"the mask is {kept.shape[1]} wide, but groups have {num_rollouts} rollouts: pass one "
            "value per sampled rollout."
        )
    return kept
