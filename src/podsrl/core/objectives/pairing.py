"""Pairs of a better and a worse rollout, from the rewards of each group.

Shape letters: B flat rows (one rollout each, groups of any sizes), K candidate pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs of rows; `real_K` says which of them are pairs.

    The number of candidates depends on the number of rows alone, so that nothing has to be read
    back from the device; candidates that are no pair name valid rows and count for nothing.
    """

    chosen_K: Tensor
    rejected_K: Tensor
    real_K: Tensor
    num_rows: int
    num_possible: Tensor
    """How many pairs there would be if no two rewards were equal, a scalar."""

    def num(self) -> Tensor:
        """Number of pairs, an int64 scalar on the device."""
        return self.real_K.sum()

    def difference(self, values_B: Tensor) -> Tensor:
        """Value of the chosen row minus value of the rejected row, (K,)."""
        return values_B[self.chosen_K] - values_B[self.rejected_K]

    def sum_by_rejected(self, values_K: Tensor) -> Tensor:
        """For each row the sum over the pairs in which it is rejected, (B,); keeps the graph."""
        values_K = values_K.masked_fill(~self.real_K, 0.0)
        zeros_B = values_K.new_zeros(self.num_rows)
        return zeros_B.index_add(0, self.rejected_K, values_K)

    def mean(self, values_K: Tensor) -> Tensor:
        """Mean over the pairs, a scalar; NaN where there is none."""
        return values_K.masked_fill(~self.real_K, 0.0).sum() / self.real_K.sum()


def pair_rows(rewards_B: Tensor, group_B: Tensor, *, mode: str = "extremes") -> Pairs:
    """Return pairs of rows of one group with different rewards, the higher one chosen.

    Args:
        rewards_B: (B,) rewards, NaN where none could be computed; any real dtype.
        group_B: (B,) integers; equal numbers name rollouts of one prompt. Rows need not be sorted
            and groups may differ in size.
        mode: a key of `PAIR_MODES`: `extremes` pairs the i-th highest with the i-th lowest reward
            of each group (so of two kept rollouts, the better with the worse), `all` takes every
            two rollouts of different reward.

    Edge cases:
        Equal rewards make no pair; neither does NaN, nor a group of one. In `extremes` the middle
        rollout of an odd group is in no pair. Which of several equal rewards is i-th follows the
        order of the rows, so the result is the same wherever those rows stand.

    Raises:
        ValueError: an unknown mode, or shapes that differ or have not one axis.

    Example: rewards (3, 1, 2, 1) of one group give (row 0, row 1) and (row 2, row 3) in `extremes`
    and, with (row 0, row 2), (row 0, row 3) and (row 2, row 1), five pairs in `all`.
    """
    if mode not in PAIR_MODES:
        raise ValueError(f"pair mode is {mode!r}; choose one of {', '.join(PAIR_MODES)}.")
    if rewards_B.ndim != 1 or rewards_B.shape != group_B.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards_B.shape)} and group numbers "
            f"{tuple(group_B.shape)}; pass one of each per row, both one-dimensional."
        )
    return PAIR_MODES[mode](rewards_B, group_B)


def extremes(rewards_B: Tensor, group_B: Tensor) -> Pairs:
    """The i-th highest with the i-th lowest of each group; see `pair_rows`."""
    order_B = rewards_B.argsort(stable=True)  # NaN last
    order_B = order_B[group_B[order_B].argsort(stable=True)]
    sorted_B = group_B[order_B]
    place_B = torch.arange(len(order_B), device=order_B.device)
    is_first_B = sorted_B != sorted_B.roll(1)
    is_first_B[:1] = True
    start_B = (place_B * is_first_B).cummax(0).values
    number_B = is_first_B.cumsum(0) - 1
    scored_B = (~rewards_B.isnan()).long()[order_B]
    size_B = torch.zeros_like(place_B).scatter_add(0, number_B, scored_B)[number_B]
    # Counted from the start of a group, rank i meets rank size - 1 - i.
    partner_B = 2 * start_B + size_B - 1 - place_B
    chosen_B = order_B[partner_B.clamp(min=0)]
    meets_B = place_B < partner_B
    real_B = meets_B & (rewards_B[chosen_B] > rewards_B[order_B])
    return Pairs(chosen_B, order_B, real_B, len(order_B), meets_B.sum())


def every_two(rewards_B: Tensor, group_B: Tensor) -> Pairs:
    """Any two rows of one group whose rewards differ; see `pair_rows`."""
    row_B = torch.arange(len(rewards_B), device=rewards_B.device)
    chosen_K = row_B.repeat_interleave(len(row_B), output_size=len(row_B) ** 2)
    rejected_K = row_B.repeat(len(row_B))
    high_K, low_K = rewards_B[chosen_K], rewards_B[rejected_K]
    same_K = group_B[chosen_K] == group_B[rejected_K]
    meets_K = same_K & ~high_K.isnan() & ~low_K.isnan() & (chosen_K < rejected_K)
    return Pairs(chosen_K, rejected_K, same_K & (high_K > low_K), len(row_B), meets_K.sum())


PAIR_MODES: dict[str, Callable[[Tensor, Tensor], Pairs]] = {
    "extremes": extremes,
    "all": every_two,
}
