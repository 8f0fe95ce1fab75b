"""Which rollouts of each group to keep for the update, chosen from their rewards alone.

A rule maps rewards_PN and m to kept_PM.  To add one, write one function and add it to `RULES`.
Rules run without host synchronisation; `select` checks its input, which costs one.

Shapes: P prompts (groups), N rollouts sampled, M rollouts kept, K = M + 1 splits.
"""

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from podsrl.core import order

# Splits whose variances differ by less than this share are equal: it lies above the rounding
# error of the sums (about m * 2e-16) and below the 1e-12 to which the choice is exact.
_EQUAL_VARIANCE = 2.0**-42


def select(
    rewards: Tensor | Sequence[Any] | Any,
    keep: SupportsIndex,
    rule: str = "max_variance",
    seed: int = 0,
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

    Returns:
        int64 tensor of shape (M,) or (P, M) on the device of `rewards`.  m = N keeps all.
        Of equal rewards each rollout is kept equally often over seeds.  A rollout with NaN is
        kept, at random, only when fewer than m rollouts of its group have a reward.

    Raises:
        ValueError: rewards infinite, empty or not 1 or 2 dimensional; m out of range; unknown
            rule; 64-bit integers above 2**53.
        TypeError: rewards neither float nor int; `keep` not an integer.

    Example:
        >>> select([0.0, 0.1, 0.9, 0.2, 1.0], keep=3)
        tensor([0, 2, 4])
    """
    rewards_PN, is_one_group = _checked_rewards(rewards)
    num_groups, num_rollouts = rewards_PN.shape
    num_kept = _checked_keep(keep, num_rollouts)
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    kept_PM = torch.empty(num_groups, num_kept, dtype=torch.int64, device=rewards_PN.device)
    step = _groups_at_a_time(rewards_PN)
    for first in range(0, num_groups, step):
        part = slice(first, first + step)
        _check_values(rewards_PN[part], first_group=first)
        kept_PM[part] = RULES[rule](rewards_PN[part], num_kept, seed=seed, first_group=first)
    return kept_PM[0] if is_one_group else kept_PM


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
    (kept_PM,) = order.ends(rewards_PN, keep, order.high_end, seed=seed, first_group=first_group)
    return _ascending(kept_PM)


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
    mean_low_PK, spread_low_PK = _prefix_moments(lows_PM - bottom_P1, num_low_K)
    mean_high_PK, spread_high_PK = _prefix_moments(top_P1 - highs_PM, num_low_K)
    gap_PK = (top_P1 - bottom_P1) - mean_low_PK - mean_high_PK.flip(1)
    between_K = (num_low_K * num_high_K).double() / num_kept
    spread_PK = spread_low_PK + spread_high_PK.flip(1) + between_K * gap_PK.square()
    least_P1 = spread_PK.amax(1, keepdim=True) * (1 - _EQUAL_VARIANCE)
    # Distinct numbers: nearer to half and half is larger, and more highs beat more lows.
    balance_K = -2 * (num_low_K - num_high_K).abs() - (num_low_K > num_high_K).long()
    return torch.where(spread_PK >= least_P1, balance_K, -4 * num_kept).argmax(1)


def _prefix_moments(values_PM: Tensor, counts_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and sums of squared deviations of the first 0, 1, ..., m values (P, K)."""
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


def _groups_at_a_time(rewards_PN: Tensor) -> int:
    """Return how many groups to handle at once: all on an accelerator, a cache full on a CPU."""
    if rewards_PN.device.type != "cpu":
        return max(1, len(rewards_PN))
    return max(1, order.CHUNK_ROLLOUTS * torch.get_num_threads() // rewards_PN.shape[1])


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
    if (low < -largest) | (high > largest):
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


Rule = Callable[..., Tensor]

RULES: dict[str, Rule] = {
    "max_variance": max_variance,
    "max_reward": max_reward,
    "random": random,
    "percentile": percentile,
}
