"""When the rest of a group's rollouts can no longer change the best choice among them.

Shape letters: P prompts (groups), N rollouts sampled, M rollouts kept.
"""

import math

import torch
from torch import Tensor


def choice_is_final(rewards_PN: Tensor, num_kept: int, *, low: float, high: float) -> Tensor:
    """Return, per group, that no reward still to come can raise the largest variance of m.

    With u rewards still to come, a group is final when m rewards are there and adding u copies of
    `low` and u copies of `high` to them does not raise the largest population variance that m of
    them have. This is sound, because the variance of a choice is convex in each of its rewards:
    whatever the u rewards turn out to be, each one that is chosen can be moved to one of the bounds
    without lowering the variance, and the choice so made is among those that were compared.

    For u >= 1 and m >= 2 it is the same as: floor(m / 2) of the rewards equal `low`, floor(m / 2)
    equal `high`, and m equal either. Such a choice has the largest variance that m numbers between
    the bounds can have, (high - low)^2 floor(m/2) ceil(m/2) / m^2; and in any other choice some
    reward, replaced by one of the bounds, makes the variance larger. Hence no u is needed, and no
    variance is computed: rewards are compared with the bounds, so nothing is rounded but the
    bounds themselves, to the dtype of the rewards. A reward that misses its bound by a rounding
    error counts as inside: the group is then sampled longer than it need be, never shorter.

    Args:
        rewards_PN: (P, N), any real dtype. NaN: still to come, or finished and its grading failed.
            Neither can be kept, and a failed grading brings no reward, so they need not be told
            apart: a group that waits for nobody has nobody to stop, whatever is returned for it.
        num_kept: m, with 1 <= m <= N.
        low, high: bounds of every reward, finite, low <= high. Rewards beyond them, which the
            caller should refuse, count as equal to the bound.

    Returns:
        bool (P,) on the device of the rewards. A group without NaN is final. So is one with m
        rewards where m = 1 or low = high: its variance is 0 whatever comes.

    The variance is final, the rollouts are not: among equal rewards those that finish early are
    kept, and with odd m the odd one may lie at either bound.

    Raises:
        ValueError: rewards not two-dimensional, m outside 1..N, bounds not finite or in the wrong
            order.

    Example:
        >>> rewards = torch.tensor([[0, 1, 1, 0, torch.nan], [0, 1, 1, 1, torch.nan]])
        >>> choice_is_final(rewards, 4, low=0, high=1)
        tensor([ True, False])
    """
    _check(rewards_PN, num_kept, low, high)
    is_missing_PN = rewards_PN.isnan()
    num_scored_P = (~is_missing_PN).sum(dim=1)
    is_final_P = num_scored_P >= num_kept
    if num_kept > 1 and low < high:
        low_, high_ = (torch.full_like(rewards_PN[:1, :1], bound) for bound in (low, high))
        num_low_P, num_high_P = (rewards_PN <= low_).sum(dim=1), (rewards_PN >= high_).sum(dim=1)
        is_final_P = torch.minimum(num_low_P, num_high_P) >= num_kept // 2
        is_final_P &= num_low_P + num_high_P >= num_kept
    return is_final_P | ~is_missing_PN.any(dim=1)


def _check(rewards_PN: Tensor, num_kept: int, low: float, high: float) -> None:
    if rewards_PN.ndim != 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards_PN.shape)}; pass (P, N): one row per prompt."
        )
    if not 1 <= num_kept <= rewards_PN.shape[1]:
        raise ValueError(
            f"num_kept is {num_kept}, but must lie between 1 and the {rewards_PN.shape[1]} "
            "rollouts of a group: keep fewer or sample more."
        )
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"the reward bounds are {low} and {high}: they must be finite, the lower one first."
        )
