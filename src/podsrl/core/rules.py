"""The rules: functions from rewards_PN and m to the m rollouts kept of each group, kept_PM.

To add one, write one function and add it to `RULES`, and to `NEEDS_LENGTHS` if it takes lengths.
Rules run without host synchronisation and trust their input; `podsrl.core.select` checks it.

Shapes: P prompts (groups), N rollouts sampled, M rollouts kept, K = M + 1 splits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from podsrl.core import order

# Splits whose variances differ by less than this share are equal: it lies above the rounding
# error of the sums (about m * 2e-16) and below the 1e-12 to which the choice is exact.
_EQUAL_VARIANCE = 2.0**-42


def max_variance(rewards_PN: Tensor, keep: int, *, seed: int = 0, first_group: int = 0) -> Tensor:
    """Return, per group, `keep` rollouts whose rewards have the largest possible variance.

    Some best subset is k lowest and m - k highest rewards (arXiv 2504.13818, lemma 3.1), so the
    m + 1 splits are compared through prefix sums of the m lowest and the m highest (theorem 1).
    Among equal splits the one nearest to half and half wins; when m is odd the odd one goes to
    the highest.  Hence with 0/1 rewards and enough of both, m // 2 zeros and the rest ones.

    Args:
        rewards_PN: (P, N), real, finite or NaN (no reward); not checked here, see `select`.
        keep: m, with 1 <= m <= N.
        seed: decides among equal rewards.
        first_group: position of the first row in the whole batch, for callers that hold a part.

    Returns:
        int64 (P, M), ascending.  Constant groups: m at random.  See `select` for NaN.

    Example:
        >>> max_variance(torch.tensor([[0, 0, 0, 0, 1]]), keep=4)[:, -1]  # 0, 0, 0 and the 1
        tensor([4])
    """
    lowest_PM, highest_PM = order.ends(
        rewards_PN, keep, order.both_ends, seed=seed, first_group=first_group
    )
    lows_PM = rewards_PN.gather(1, lowest_PM).double()
    highs_PM = rewards_PN.gather(1, highest_PM).double()
    num_low_P1 = _best_split(lows_PM, highs_PM).unsqueeze(1)
    # Fewer than m scored: the m first of the ascending order are these and then NaN at random.
    num_low_P1 = torch.where(lows_PM[:, -1:].isnan(), keep, num_low_P1)
    is_low_PM = torch.arange(keep, device=rewards_PN.device) < num_low_P1
    return _ascending(torch.where(is_low_PM, lowest_PM, highest_PM.flip(1)))


def max_reward(rewards_PN: Tensor, keep: int, *, seed: int = 0, first_group: int = 0) -> Tensor:
    """Return, per group, the `keep` rollouts with the highest rewards, as int64 (P, M) ascending.

    Arguments, ties and NaN as in `max_variance`.

    Example:
        >>> max_reward(torch.tensor([[0.3, 0.1, 0.2]]), keep=2)
        tensor([[0, 2]])
    """
    return _highest(rewards_PN, keep, seed=seed, first_group=first_group)


def random(rewards_PN: Tensor, keep: int, *, seed: int = 0, first_group: int = 0) -> Tensor:
    """Return `keep` random rollouts of each group, scored ones first, as int64 (P, M) ascending.

    Arguments and NaN as in `max_variance`; the size of a reward plays no part.

    Example:
        >>> random(torch.tensor([[0.3, 0.1, torch.nan]]), keep=2)
        tensor([[0, 1]])
    """
    equal_PN = (rewards_PN * 0).float()  # NaN stays NaN
    (kept_PM,) = order.ends(equal_PN, keep, order.low_end, seed=seed, first_group=first_group)
    return _ascending(kept_PM)


def percentile(rewards_PN: Tensor, keep: int, *, seed: int = 0, first_group: int = 0) -> Tensor:
    """Return, per group, the rollouts at quantiles (i + 1/2) / m of the sorted rewards.

    These are positions floor((i + 1/2) c / m), i = 0..m-1, among the c scored rollouts in
    ascending order: distinct, because c >= m makes neighbours differ by at least one.  With
    c < m all c are kept.  Arguments, ties and NaN as in `max_variance`.

    Example:
        >>> percentile(torch.tensor([[5, 1, 4, 2, 3, 0]]), keep=3)  # sorted places 1, 3 and 5
        tensor([[0, 1, 4]])
    """
    positions_N = torch.arange(rewards_PN.shape[1], device=rewards_PN.device)
    groups_P = torch.arange(first_group, first_group + len(rewards_PN), device=rewards_PN.device)
    keys_PN = order.order_keys(rewards_PN, positions_N, groups_P, seed=seed)
    num_scored_P1 = order.num_scored(keys_PN)
    slots_M = torch.arange(keep, device=rewards_PN.device)
    places_PM = (2 * slots_M + 1) * num_scored_P1 // (2 * keep)
    places_PM = torch.where(num_scored_P1 < keep, slots_M, places_PM)
    return _ascending(keys_PN.argsort(dim=1).gather(1, places_PM))


def max_abs_advantage(
    rewards_PN: Tensor, keep: int, *, seed: int = 0, first_group: int = 0
) -> Tensor:
    """Return, per group, the `keep` rollouts whose rewards lie farthest from the group's mean.

    These have the largest |advantage| under any estimator that centres and scales a group as one:
    the pruning of CPPO (arXiv 2503.22342), without its refilling of the batch.  A mean is rounded,
    so distances are compared in steps of 2**-40 of the group's largest, and equal ones broken at
    random.  Arguments and NaN as in `max_variance`; NaN counts in no mean.

    Example:
        >>> max_abs_advantage(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), keep=1)  # 1/4, 1/4, 1/4, 3/4
        tensor([[3]])
    """
    scored_PN = ~rewards_PN.isnan()
    rewards_PN = rewards_PN.double()
    low_P1 = rewards_PN.masked_fill(~scored_PN, torch.inf).amin(1, keepdim=True)
    high_P1 = rewards_PN.masked_fill(~scored_PN, -torch.inf).amax(1, keepdim=True)
    scale_P1 = _inverse_power_of_two(high_P1 * 0.5 - low_P1 * 0.5)
    offsets_PN = (rewards_PN * 0.5 - low_P1 * 0.5) * scale_P1  # halves: no difference overflows
    # n times the distance is exact for 0/1 rewards, where the distance itself is rounded.
    num_scored_P1, sum_P1 = scored_PN.sum(1, keepdim=True), offsets_PN.nansum(1, keepdim=True)
    distances_PN = (num_scored_P1 * offsets_PN - sum_P1).abs()
    largest_P1 = distances_PN.nan_to_num(nan=0.0).amax(1, keepdim=True).clamp(min=2.0**-1000)
    steps_PN = (distances_PN / largest_P1 * 2.0**40).round()
    return _highest(steps_PN, keep, seed=seed, first_group=first_group)


def shortest(
    rewards_PN: Tensor, keep: int, *, lengths_PN: Tensor, seed: int = 0, first_group: int = 0
) -> Tensor:
    """Return, per group, the `keep` shortest rollouts, as int64 (P, M) ascending.

    One of the two filters of GFPO (arXiv 2508.09726); the size of a reward plays no part, but a
    rollout without one is kept only when fewer than m have one.

    Args:
        rewards_PN, keep, seed, first_group: as in `max_variance`.
        lengths_PN: (P, N) lengths in tokens, real and not NaN; equal ones are broken at random.

    Example:
        >>> shortest(torch.zeros(1, 3), keep=2, lengths_PN=torch.tensor([[30, 10, 20]]))
        tensor([[1, 2]])
    """
    score_PN = (-lengths_PN.double()).masked_fill(rewards_PN.isnan(), torch.nan)
    return _highest(score_PN, keep, seed=seed, first_group=first_group)


def reward_per_token(
    rewards_PN: Tensor, keep: int, *, lengths_PN: Tensor, seed: int = 0, first_group: int = 0
) -> Tensor:
    """Return, per group, the `keep` rollouts with the highest reward / length.

    The other filter of GFPO (arXiv 2508.09726), made for rewards >= 0: a negative reward gains by
    length.  Arguments as in `shortest`; a length below 1 counts as 1.

    Example:
        >>> rewards, lengths = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[30, 10, 20]])
        >>> reward_per_token(rewards, keep=1, lengths_PN=lengths)  # 1/30, 1/10, 0
        tensor([[1]])
    """
    per_token_PN = rewards_PN.double() / lengths_PN.double().clamp(min=1.0)
    return _highest(per_token_PN, keep, seed=seed, first_group=first_group)


def _highest(score_PN: Tensor, keep: int, *, seed: int, first_group: int) -> Tensor:
    """Return, per group, the `keep` highest scores, ties at random, NaN last (P, M) ascending."""
    (kept_PM,) = order.ends(score_PN, keep, order.high_end, seed=seed, first_group=first_group)
    return _ascending(kept_PM)


def _best_split(lows_PM: Tensor, highs_PM: Tensor) -> Tensor:
    """Return k (P,): k lowest with m - k highest have the largest variance of all splits.

    The sum of squared deviations of a split is that of its lows, that of its highs, and
    k (m - k) / m times the squared distance of their means.  Lows are measured from the lowest
    reward and highs from the highest, so an offset or a far tail cancels before anything is
    squared.
    """
    num_kept = lows_PM.shape[1]
    scale_P1 = _inverse_power_of_two(highs_PM[:, :1] * 0.5 - lows_PM[:, :1] * 0.5)
    lows_PM, highs_PM = lows_PM * scale_P1, highs_PM * scale_P1
    bottom_P1, top_P1 = lows_PM[:, :1], highs_PM[:, :1]
    num_low_K = torch.arange(num_kept + 1, device=lows_PM.device)
    num_high_K = num_kept - num_low_K
    mean_low_PK, spread_low_PK = prefix_moments(lows_PM - bottom_P1, num_low_K)
    mean_high_PK, spread_high_PK = prefix_moments(top_P1 - highs_PM, num_low_K)
    gap_PK = (top_P1 - bottom_P1) - mean_low_PK - mean_high_PK.flip(1)
    between_K = (num_low_K * num_high_K).double() / num_kept
    spread_PK = spread_low_PK + spread_high_PK.flip(1) + between_K * gap_PK.square()
    least_P1 = spread_PK.amax(1, keepdim=True) * (1 - _EQUAL_VARIANCE)
    # Distinct numbers: nearer to half and half is larger, and more highs beat more lows.
    balance_K = -2 * (num_low_K - num_high_K).abs() - (num_low_K > num_high_K).long()
    return torch.where(spread_PK >= least_P1, balance_K, -4 * num_kept).argmax(1)


def prefix_moments(values_PM: Tensor, counts_K: Tensor) -> tuple[Tensor, Tensor]:
    """Means and sums of squared deviations of the first 0, 1, ..., m values, twice (P, K).

    values_PM: without NaN. counts_K: 0 .. m. Example: (1, 3) gives means (0, 1, 2), sums (0, 0, 2).
    """
    counts_K = counts_K.clamp(min=1)
    sums_PK = torch.nn.functional.pad(values_PM.cumsum(1), (1, 0))
    squares_PK = torch.nn.functional.pad(values_PM.square().cumsum(1), (1, 0))
    means_PK = sums_PK / counts_K
    return means_PK, squares_PK - sums_PK * means_PK


def _inverse_power_of_two(sizes: Tensor) -> Tensor:
    """Return a power of two by which float64 `sizes` become about one; products are exact."""
    exponents_only = (sizes.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)
    return exponents_only.clamp(2.0**-1000, 2.0**1000).reciprocal()


def _ascending(kept_PM: Tensor) -> Tensor:
    return kept_PM.sort(dim=1).values


Rule = Callable[..., Tensor]

RULES: dict[str, Rule] = {
    "max_variance": max_variance,
    "max_reward": max_reward,
    "random": random,
    "percentile": percentile,
    "max_abs_advantage": max_abs_advantage,
    "shortest": shortest,
    "reward_per_token": reward_per_token,
}

NEEDS_LENGTHS = frozenset({"shortest", "reward_per_token"})
