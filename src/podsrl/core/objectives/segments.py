"""Turns of a dialogue: which of them went wrong, and the losses over a segment of them.

Shape letters: B flat rows, T completion tokens, K candidate pairs, R losing rollouts, S states:
before each turn, and the end.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from podsrl.core.objectives.pairing import Pairs


def turns(mask_BT: Tensor) -> Tensor:
    """Return which turn of the model each token belongs to, (B, T) int64, -1 outside of turns.

    In a rollout of several turns the mask is 1 on what the model wrote and 0 on what came back, so
    that every run of ones is a turn. A rollout of one turn has turn 0 alone.

    Example: mask (1, 1, 0, 1): turns (0, 0, -1, 1).
    """
    mask_BT = mask_BT.bool()
    before_BT = F.pad(mask_BT, (1, 0))[:, :-1]
    number_BT = (mask_BT & ~before_BT).long().cumsum(1) - 1
    return number_BT.masked_fill(~mask_BT, -1)


def segment_margins(
    log_ratios_BT: Tensor,
    turn_BT: Tensor,
    pairs: Pairs,
    *,
    first: int | Tensor,
    num: int | Tensor | None,
) -> tuple[Tensor, Pairs]:
    """Return the margins over the turns first .. first + num - 1, and the pairs that have them.

    Segment-level DPO (arXiv 2501.01821; second-hand): the log-ratios of both rollouts are summed
    over equally many turns, from the first turn where they may differ. Turns before it are left
    out; where the two rollouts share them, they would cancel. `num=None` takes all turns to the
    end. A pair in which a rollout has no turn of the segment is none.

    Args:
        log_ratios_BT: log(pi_theta / pi_ref), 0 at padding.
        turn_BT: from `turns`.
        pairs: the pairs of rows.
        first, num: of all rows, or (B,), each row's own.

    Example: log-ratios (1, 2) and (1, 5) over two turns of a token each: the margin is -3 from
    `first=0` and from `first=1`.
    """
    place_BT = turn_BT - (first[:, None] if isinstance(first, Tensor) else first)
    inside_BT = (turn_BT >= 0) & (place_BT >= 0)
    if num is not None:
        inside_BT = inside_BT & (place_BT < (num[:, None] if isinstance(num, Tensor) else num))
    margin_K = pairs.difference((log_ratios_BT * inside_BT).sum(1))
    has_B = inside_BT.any(1)
    real_K = pairs.real_K & has_B[pairs.chosen_K] & has_B[pairs.rejected_K]
    return margin_K, replace(pairs, real_K=real_K)


def largest_fall(values_RS: Tensor) -> Tensor:
    """Return the turn over which the expected reward falls most, (R,) int64; -1 where none does.

    The turn that went wrong, which the paper (arXiv 2501.01821) has a language model name. Of equal
    falls it is the first.

    Args:
        values_RS: mean reward of continuations from before each turn, and last the rollout's own
            reward. NaN behind the last of a shorter rollout, whose falls are those between numbers
            that stand side by side.

    Raises:
        ValueError: fewer than three columns, as a rollout of one turn has no turn to choose.

    Example: 1/2 before turn 0, 3/4 before turn 1, 1/4 before turn 2, 0 in the end: turn 1.
    """
    if values_RS.ndim != 2 or values_RS.shape[1] < 3:
        raise ValueError(
            f"values have shape {tuple(values_RS.shape)}; pass (R, S) with one value before each "
            "of at least two turns and one at the end: of one turn there is nothing to choose."
        )
    falls_RS = (values_RS[:, :-1] - values_RS[:, 1:]).nan_to_num(nan=-torch.inf)
    falls = falls_RS.max(dim=1)
    return falls.indices.where(falls.values > 0, -1)


def num_until_recovered(values_RS: Tensor, level_R: Tensor, num_most_R: Tensor) -> Tensor:
    """Return how many turns of a better rollout bring its expected reward back, (R,) int64.

    Counted from the state that both rollouts share: the least number after which the value is at
    least `level_R`, and `num_most_R` where none is. A NaN is not known yet, and no recovery.

    Args:
        values_RS: mean reward of continuations after 1, 2, ... turns from the shared state.
        level_R: the value of the shared state.
        num_most_R: the turns that both rollouts have from there, at least 1.

    Example: values (1/4, 1/2, 1) from a state of value 1/2: two turns; one if the other rollout has
    one more turn only.
    """
    is_back_RS = values_RS >= level_R[:, None]
    first_R = is_back_RS.long().argmax(dim=1) + 1
    return first_R.where(is_back_RS.any(dim=1), num_most_R).minimum(num_most_R)
