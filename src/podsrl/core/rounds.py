"""When a group whose rollouts are sampled in rounds has enough, and when it is given up.

Shape letters: P prompts (groups), S rollouts of each sampled so far.
"""

import torch
from torch import Tensor

from podsrl.core.select import select_mask
from podsrl.core.statistics import is_constant, sum_squares

# Contrasts that differ by less than this share are equal: sums of squares are rounded.
_EQUAL = 2.0**-40


def decide(
    rewards_PS: Tensor,
    num_kept: int,
    *,
    enough: int,
    give_up: int,
    smallest_range: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return which groups are settled and which are given up, bool (P,) each; the others go on.

    With two different rewards, k of them of the rarer kind, a group is settled when k >= `enough`,
    and given up when k = 0 after `give_up` rollouts. For any rewards the same is asked of
    `contrast`, which is k (m - k) / m there, up to k = m / 2: settled when it has reached
    enough (m - enough) / m, so that another round could raise the kept variance by no more than
    what is missing to m / 4 unless it widens the range; given up when it is below that of a single
    rollout, (m - 1) / m. Neither as long as fewer than m rollouts have a reward.

    What is decided depends on rewards alone, so given the rewards every rollout remains an
    independent draw. The rule is this project's; docs/rounds.md says what stays unbiased.

    Args:
        rewards_PS: (P, S) with S >= m, finite, or NaN where no reward could be computed.
        num_kept: m, the rollouts that `max_variance` keeps.
        enough: 1..m // 2.
        give_up: rollouts after which a group without contrast is given up.
        smallest_range: see `contrast`.

    Raises:
        ValueError: `enough` outside 1..m // 2; as `select` does for m and infinite rewards.

    Example:
        >>> rewards = torch.tensor([[0, 0, 0, 0, 1, 1.0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
        >>> decide(rewards, 4, enough=2, give_up=6)
        (tensor([ True, False, False]), tensor([False, False,  True]))
    """
    if not 1 <= enough <= num_kept // 2:
        raise ValueError(
            f"enough is {enough}, but must lie between 1 and {num_kept // 2}, half of the "
            f"{num_kept} kept rollouts: no group keeps more of its rarer kind."
        )
    contrast_P = contrast(rewards_PS, num_kept, smallest_range=smallest_range)
    is_scored_P = (~rewards_PS.isnan()).sum(1) >= num_kept
    is_settled_P = contrast_P >= (1 - _EQUAL) * enough * (num_kept - enough) / num_kept
    is_given_up_P = contrast_P < (1 - _EQUAL) * (num_kept - 1) / num_kept
    if rewards_PS.shape[1] < give_up:
        is_given_up_P = torch.zeros_like(is_given_up_P)
    return is_settled_P & is_scored_P, is_given_up_P & is_scored_P


def contrast(rewards_PS: Tensor, num_kept: int, *, smallest_range: float = 0.0) -> Tensor:
    """Return the sum of squared deviations of the m that `max_variance` keeps, over the range^2.

    For two different rewards it is k1 k0 / (k1 + k0), the information of a contrast between k1
    kept rollouts of one kind and k0 of the other: at most m / 4. Float64 (P,).

    Args:
        rewards_PS: (P, S), NaN where there is no reward.
        num_kept: m.
        smallest_range: a range (highest less lowest reward of the group) below this counts as this,
            so that small differences do not pass for two kinds. 0 takes every range as it is.

    Edge cases: 0 for equal rewards and without any.

    Example: rewards (0, 0, 0, 1), m = 4: mean 1/4, so 3/16 + 9/16 = 3/4, which is 1 * 3 / 4.
    """
    rewards_PS = rewards_PS.double()
    kept_PS = select_mask(rewards_PS, num_kept)
    squares_P = sum_squares(rewards_PS.masked_fill(~kept_PS, torch.nan))
    high_P = rewards_PS.nan_to_num(nan=-torch.inf).amax(1)
    range_P = high_P - rewards_PS.nan_to_num(nan=torch.inf).amin(1)
    contrast_P = squares_P / range_P.clamp(min=smallest_range).square()
    return contrast_P.masked_fill(is_constant(rewards_PS), 0.0)


def first_round(num_kept: int, round_size: int) -> int:
    """Return how many rollouts the first round brings: whole rounds, at least m.

    Nothing is decided before m rollouts have a reward, so these come at once. m = 6 in rounds of 4
    gives 8.
    """
    return -(-num_kept // round_size) * round_size
