"""Which count each group gets, when counts have worths and must add up to a total.

Shape letters: P groups, K counts 0..cap, S sums 0..total, R groups that are allocated anew.
"""

import torch
from torch import Tensor

# Combinations of group, sum and count up to which the dynamic programme runs: about a second on
# one CPU core.
EXACT_COMBINATIONS = 2**27
NUM_REPAIRED = 16


def best_counts(worth_PK: Tensor, total: int) -> Tensor:
    """Return counts (P,) that add up to `total` with the largest sum of worths.

    `exact` up to `EXACT_COMBINATIONS`, `greedy` beyond; -inf forbids a count.
    """
    num_groups, num_counts = worth_PK.shape
    if num_groups * (total + 1) * num_counts <= EXACT_COMBINATIONS:
        return exact(worth_PK, torch.tensor([total], device=worth_PK.device), total)
    return greedy(worth_PK, total)


def exact(worth_PK: Tensor, total_1: Tensor, largest: int) -> Tensor:
    """Return the best counts by dynamic programming over groups, without host synchronisation.

    best[p, s] = max over k of best[p - 1, s - k] + worth[p, k], in O(P S K). Of equal sums the
    group that stands later gets more.

    Args:
        worth_PK: (P, K) float64; -inf forbids a count.
        total_1: (1,) int64, what the counts add up to.
        largest: no less than the total; sizes the tables.

    Example:
        >>> exact(torch.tensor([[0, 1.0, 1.5], [0, 2.0, 2.25]]), torch.tensor([2]), 2)
        tensor([1, 1])
    """
    cap = worth_PK.shape[1] - 1
    best_S = torch.full((largest + 1,), -torch.inf, dtype=worth_PK.dtype, device=worth_PK.device)
    best_S[0] = 0.0
    counts = []
    for falling_K in worth_PK.flip(1).unbind(0):
        # Window s holds best[s - cap], ..., best[s], against the worths of cap, ..., 0.
        padded = torch.nn.functional.pad(best_S, (cap, 0), value=-torch.inf)
        best_S, place_S = (padded.unfold(0, cap + 1, 1) + falling_K).max(dim=1)
        counts.append(cap - place_S)
    chosen = []
    for count_S in reversed(counts):
        chosen.append(count_S.gather(0, total_1))
        total_1 = total_1 - chosen[-1]
    return torch.cat(chosen[::-1])


def greedy(worth_PK: Tensor, total: int) -> Tensor:
    """Return good counts: the steepest pieces of the groups' concave envelopes, the rest exactly.

    Whole pieces are taken in order of worth per rollout, over all groups, until one does not fit;
    what is left is less than that piece. Then the groups nearest to where it stopped share their
    rollouts and the rest anew, by `exact`. If nothing is left the counts are the best there are,
    because the envelopes' total bounds every other; otherwise they fall short by less than the
    piece that did not fit is worth.
    """
    start_P, length_PK, slope_PK = _pieces(worth_PK)
    order = slope_PK.flatten().argsort(descending=True, stable=True)
    used = length_PK.flatten()[order].cumsum(0) <= total - start_P.sum()
    used_PK = torch.zeros_like(used).scatter_(0, order, used).view_as(length_PK)
    used_PK &= length_PK > 0
    counts_P = start_P + (length_PK * used_PK).sum(1)
    groups_R = _nearest(slope_PK, used_PK, length_PK, num=_num_repaired(worth_PK, total))
    total_1 = counts_P[groups_R].sum(0, keepdim=True) + total - counts_P.sum()
    largest = min(total, len(groups_R) * (worth_PK.shape[1] - 1))
    return counts_P.scatter(0, groups_R, exact(worth_PK[groups_R], total_1, largest))


def _pieces(worth_PK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First allowed count of each group, then lengths and slopes of its envelope's pieces."""
    num_counts = worth_PK.shape[1]
    counts_K = torch.arange(num_counts, device=worth_PK.device)
    start_P1 = place_P1 = worth_PK.isfinite().long().argmax(1, keepdim=True)
    lengths, slopes = [], []
    for _ in range(num_counts - 1):
        rise_PK = worth_PK - worth_PK.gather(1, place_P1)
        ahead_PK = counts_K - place_P1
        slope_PK = (rise_PK / ahead_PK).masked_fill(ahead_PK <= 0, -torch.inf)
        steepest = slope_PK.max(dim=1, keepdim=True)
        next_P1 = torch.where(steepest.values > -torch.inf, steepest.indices, place_P1)
        lengths.append(next_P1 - place_P1)
        slopes.append(steepest.values)
        place_P1 = next_P1
    return start_P1.squeeze(1), torch.cat(lengths, 1), torch.cat(slopes, 1)


def _nearest(slope_PK: Tensor, used_PK: Tensor, length_PK: Tensor, *, num: int) -> Tensor:
    """Half the groups whose next piece is steepest, half those whose last piece is flattest."""
    unused_PK = ~used_PK & (length_PK > 0)
    next_P = slope_PK.masked_fill(~unused_PK, -torch.inf).amax(1)
    last_P = slope_PK.masked_fill(~used_PK, torch.inf).amin(1)
    growing_R = next_P.topk((num + 1) // 2).indices
    shrinking_R = last_P.scatter(0, growing_R, torch.inf).topk(num // 2, largest=False).indices
    # Where fewer groups have used pieces than asked for, the order among the rest is arbitrary and
    # may name a growing group again: name those that were not named instead.
    named_P = torch.zeros_like(next_P).scatter(0, growing_R, 2.0).scatter(0, shrinking_R, 1.0)
    named_P.scatter_(0, growing_R, 2.0)
    return named_P.topk(num).indices


def _num_repaired(worth_PK: Tensor, total: int) -> int:
    """As many groups as the dynamic programme can hold, at most `NUM_REPAIRED`, at least 2."""
    num_groups, num_counts = worth_PK.shape
    num = min(NUM_REPAIRED, num_groups)
    while num > 2 and num * min(total, num * num_counts) * num_counts > EXACT_COMBINATIONS:
        num -= 1
    return num
