"""Which rollouts of each group to keep for the update: checks the input and asks a rule.

The rules themselves are in `podsrl.core.rules`.  They run without host synchronisation; the check
of the values costs one.

Shapes: P prompts (groups), N rollouts sampled, M rollouts kept.
"""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from podsrl.core import order
from podsrl.core.rules import NEEDS_LENGTHS, RULES

__all__ = ["NEEDS_LENGTHS", "RULES", "select"]


def select(
    rewards: Tensor | Sequence[Any] | Any,
    keep: SupportsIndex,
    rule: str = "max_variance",
    seed: int = 0,
    *,
    lengths: Tensor | Sequence[Any] | Any = None,
) -> Tensor:
    """Return the positions of the `keep` rollouts of each group that a rule keeps, ascending.

    With `max_variance` (Xu et al., arXiv 2504.13818, section 3) these are a subset S of size m
    whose rewards have the largest variance sum over S of (r_i - mean_S)^2 / m.

    Args:
        rewards: shape (N,) for one group or (P, N) for P groups of N rollouts; a tensor of any
            real float or int dtype on any device, a numpy array or a nested list.  NaN marks a
            rollout whose reward could not be computed.
        keep: m, the number of rollouts to keep of each group, 1 <= m <= N.
        rule: a name in `RULES`.
        seed: decides among equal rewards, together with the positions of group and rollout.
        lengths: tokens of each rollout, in the shape of `rewards`, finite and >= 0; needed by
            the rules in `NEEDS_LENGTHS`, not looked at by the others.

    Returns:
        int64 tensor of shape (M,) or (P, M) on the device of `rewards`.  m = N keeps all.
        Of equal rewards each rollout is kept equally often over seeds.  A rollout with NaN is
        kept, at random, only when fewer than m rollouts of its group have a reward.

    Raises:
        ValueError: rewards infinite, empty or not 1 or 2 dimensional; m out of range; unknown
            rule; 64-bit integers above 2**53; lengths missing, of another shape, negative or not
            finite.
        TypeError: rewards neither float nor int; `keep` not an integer.
        RuntimeError: values out of range on CUDA, from the device and without naming the reward:
            to look at them first would make the host wait.

    Example:
        >>> select([0.0, 0.1, 0.9, 0.2, 1.0], keep=3)
        tensor([0, 2, 4])
    """
    rewards_PN, is_one_group = _checked_rewards(rewards)
    num_groups, num_rollouts = rewards_PN.shape
    num_kept = _checked_keep(keep, num_rollouts)
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    lengths_PN = _checked_lengths(lengths, rewards_PN, rule) if rule in NEEDS_LENGTHS else None
    kept_PM = torch.empty(num_groups, num_kept, dtype=torch.int64, device=rewards_PN.device)
    step = _groups_at_a_time(rewards_PN)
    for first in range(0, num_groups, step):
        part = slice(first, first + step)
        _check_values(rewards_PN[part], first_group=first)
        own = {} if lengths_PN is None else {"lengths_PN": lengths_PN[part]}
        kept_PM[part] = RULES[rule](rewards_PN[part], num_kept, seed=seed, first_group=first, **own)
    return kept_PM[0] if is_one_group else kept_PM


def _groups_at_a_time(rewards_PN: Tensor) -> int:
    """Return how many groups to handle at once: all on an accelerator, a cache full on a CPU."""
    if rewards_PN.device.type != "cpu":
        return max(1, len(rewards_PN))
    return max(1, order.CHUNK_ROLLOUTS // rewards_PN.shape[1])


def _checked_rewards(rewards: Any) -> tuple[Tensor, bool]:
    """Return rewards as a (P, N) tensor and whether they came as one group."""
    if isinstance(rewards, (list, tuple)):
        rewards = torch.tensor(rewards, dtype=torch.float64)
    rewards = torch.as_tensor(rewards).detach()
    shape = tuple(rewards.shape)
    if rewards.dim() not in (1, 2):
        raise ValueError(
            f"rewards have shape {shape}, but 1 dimension (N,) or 2 (P, N) are needed; "
            "reshape them to one row per prompt"
        )
    if rewards.shape[-1] == 0:
        raise ValueError(f"rewards have shape {shape}: a group needs at least 1 rollout; drop it")
    if rewards.is_complex() or rewards.dtype == torch.bool:
        raise TypeError(
            f"rewards have dtype {rewards.dtype}, but float or int is needed; "
            "convert them, for example with rewards.float()"
        )
    return rewards.reshape(-1, shape[-1]), rewards.dim() == 1


def _check_values(rewards_PN: Tensor, *, first_group: int) -> None:
    if rewards_PN.is_floating_point():
        largest = torch.finfo(rewards_PN.dtype).max
        scored_PN = rewards_PN.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        bound = "finite, or NaN where no reward could be computed"
    elif rewards_PN.dtype == torch.int64:
        largest, scored_PN, bound = 2**53, rewards_PN, "integers within 2**53"
    else:
        return
    low, high = scored_PN.aminmax()
    if rewards_PN.is_cuda:
        # Asking the device whether to raise, and which reward it is, would make the host wait.
        torch._assert_async((low >= -largest) & (high <= largest), f"rewards must be {bound}")
    elif (low < -largest) | (high > largest):
        group, rollout = ((scored_PN < -largest) | (scored_PN > largest)).nonzero()[0].tolist()
        raise ValueError(
            f"the reward of group {first_group + group}, rollout {rollout} is "
            f"{rewards_PN[group, rollout].item()}, but rewards must be {bound}; "
            "replace or rescale it"
        )


def _checked_keep(keep: SupportsIndex, num_rollouts: int) -> int:
    if isinstance(keep, bool) or not isinstance(keep, SupportsIndex):
        raise TypeError(f"keep is {keep!r}, but an integer is needed; pass the number to keep")
    num_kept = keep.__index__()
    if not 1 <= num_kept <= num_rollouts:
        raise ValueError(
            f"keep is {num_kept}, but must lie between 1 and the {num_rollouts} rollouts of a "
            "group; keep fewer or sample more"
        )
    return num_kept


def _checked_lengths(lengths: Any, rewards_PN: Tensor, rule: str) -> Tensor:
    if lengths is None:
        raise ValueError(
            f"rule {rule!r} needs the lengths of the rollouts; pass lengths=, in the shape of the "
            "rewards"
        )
    lengths_PN = torch.as_tensor(lengths).detach().to(rewards_PN.device)
    if lengths_PN.dim() == 1:
        lengths_PN = lengths_PN.unsqueeze(0)
    if lengths_PN.shape != rewards_PN.shape:
        raise ValueError(
            f"lengths have shape {tuple(lengths_PN.shape)} and rewards {tuple(rewards_PN.shape)}; "
            "give each rollout its length"
        )
    if not ((lengths_PN >= 0) & (lengths_PN < torch.inf)).all():
        raise ValueError("lengths must be finite and >= 0; count the tokens of each rollout")
    return lengths_PN


def select_mask(rewards_PN: Tensor, keep: int, **options: Any) -> Tensor:
    """What `select` keeps, with the same arguments, as a bool mask (P, N)."""
    return as_mask(select(rewards_PN, keep, **options), rewards_PN.shape[1])


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
