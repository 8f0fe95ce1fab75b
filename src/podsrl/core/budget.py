"""How many rollouts of each prompt to keep, when the prompts of a step share one budget.

`pooled` decides the numbers and `select_counts` then takes that many of each prompt by a rule.
docs/budget.md has a worked example and the proofs named here.

Shape letters: P prompts (groups), N rollouts sampled, K counts 0..cap, A numbers of low rewards.
"""

from typing import SupportsIndex

import torch
from torch import Tensor

from podsrl.core import allocate, order
from podsrl.core.rules import NEEDS_LENGTHS, RULES, prefix_moments

FLOORS = (0, 2)

# What decides among allocations of (almost) equal value costs at most these shares of the value
# of all rollouts together: evenness over all rows, and four times that for rows of constant groups.
_EVENNESS = 2.0**-22
# Values are at most 1 together, so that no gain is worth a rollout without a reward.
_COST_OF_NO_REWARD = 2.0
# Entries of a table over (group, count, number of lows) that are held at once.
_TABLE_ENTRIES = 2**22


def pooled(
    rewards_PN: Tensor,
    num_kept_total: SupportsIndex,
    *,
    floor: int = 0,
    cap: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return how many rollouts to keep of each prompt, so that together they tell most.

    The counts k_p add up to `num_kept_total` and maximise the sum over prompts of v_p(k_p), where
    v_p(k) = max over k of the prompt's rollouts of sum (r - mean)^2, what `max_variance` keeps.
    A count is 0 or at least 2: one rollout alone has no advantage. The source is this project;
    with every count equal to m it is PODS (arXiv 2504.13818), whose m per prompt it replaces.

    Args:
        rewards_PN: (P, N), any real dtype; finite, below 1e150 in size, or NaN (no reward).
        num_kept_total: rollouts to keep of all prompts together, usually P * m.
        floor: the least count of any prompt: 0 or 2.
        cap: the largest count of any prompt, at most N; None is N.
        seed: decides which of several equally good prompts gets more.

    Returns:
        int64 (P,) on the device of `rewards_PN`. Exact up to 2e-6 of the value of all rollouts by
        dynamic programming up to 2^27 combinations of group, sum and count (at n = 64, m = 16: 360
        prompts); beyond, `allocate.greedy`, which is exact for 0/1 rewards and an even total.

    Ties, and what is worth nothing:
        Among equally good counts the most even ones (least sum of squares) win: with 0/1 rewards
        and plenty of both, every even count is worth a quarter per rollout, and each prompt gets
        its m. Still equal: decided by `seed` and the prompt's position, fairly over seeds.
        Constant groups get 0 until every other scored rollout is kept (or is over the cap), then
        the rest, evenly. Rollouts without a reward come last; a group's only scored rollout
        counts as one of them, because it could not be kept alone.

    Raises:
        ValueError: shape, infinite rewards, floor, cap, or a total that no counts add up to.

    Example:
        >>> rewards = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1.0]])
        >>> pooled(rewards, 6)  # worth 0, 1 at 4 kept, and 1/2 at 2
        tensor([0, 4, 2])
    """
    _check_rewards(rewards_PN)
    total = num_kept_total.__index__()
    num_groups, num_rollouts = rewards_PN.shape
    cap = num_rollouts if cap is None else cap
    _check_counts(total, num_groups, num_rollouts, floor=floor, cap=cap)
    worth_PK = _worth(rewards_PN, total, cap)
    worth_PK[:, 1] = -torch.inf
    if floor:
        worth_PK[:, 0] = -torch.inf
    order_P = _shuffled(num_groups, seed, rewards_PN.device)
    counts_P = allocate.best_counts(worth_PK[order_P], total)
    return torch.empty_like(counts_P).scatter_(0, order_P, counts_P)


def group_values(rewards_PN: Tensor, cap: int) -> Tensor:
    """Return v (P, cap + 1), float64: the largest sum of squared deviations of k = 0..cap rollouts.

    Some best k are a lowest and k - a highest (arXiv 2504.13818, lemma 3.1), so all pairs (k, a)
    are compared through prefix sums, measured from the group's lowest and highest reward. Above
    the number of scored rollouts v stays what it was. v never falls with k, but its increments
    may rise: (0, 0, 1, 1) has v = 0, 0, 1/2, 2/3, 1.
    """
    _check_rewards(rewards_PN)
    at_a_time = max(1, _TABLE_ENTRIES // (cap + 1) ** 2)
    return torch.cat([_values_of(part, cap) for part in rewards_PN.double().split(at_a_time)])


def select_counts(
    rewards_PN: Tensor,
    counts_P: Tensor,
    *,
    rule: str = "max_variance",
    seed: int = 0,
    lengths_PN: Tensor | None = None,
) -> Tensor:
    """Return the kept rollouts as a bool mask (P, N): of group p the counts_P[p] of the rule.

    With equal counts these are the rollouts that `podsrl.select` keeps for the same seed. Reads
    the counts back from the device once.

    Raises:
        ValueError: an unknown rule, one that needs `lengths_PN` without them, or a count outside
            0..N.

    Example:
        >>> select_counts(torch.tensor([[0, 1.0, 2], [3, 4, 5]]), torch.tensor([0, 2]))
        tensor([[False, False, False],
                [ True, False,  True]])
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    own = {}
    if rule in NEEDS_LENGTHS:
        if lengths_PN is None:
            raise ValueError(f"rule {rule!r} needs the lengths of the rollouts; pass lengths_PN")
        own = {"lengths_PN": lengths_PN}
    kept_PN = torch.zeros_like(rewards_PN, dtype=torch.bool)
    for count in sorted(set(counts_P.tolist()) - {0}):
        if not 0 < count <= rewards_PN.shape[1]:
            raise ValueError(
                f"a group is to keep {count} of its {rewards_PN.shape[1]} rollouts; pass counts "
                "between 0 and that."
            )
        positions_PM = RULES[rule](rewards_PN, count, seed=seed, **own)
        chosen_PN = torch.zeros_like(kept_PN).scatter_(1, positions_PM, True)
        kept_PN |= chosen_PN & (counts_P == count).unsqueeze(1)
    return kept_PN


def _values_of(rewards_PN: Tensor, cap: int) -> Tensor:
    num_rollouts = rewards_PN.shape[1]
    positions_N = torch.arange(num_rollouts, device=rewards_PN.device)
    num_scored_P1 = (~rewards_PN.isnan()).sum(1, keepdim=True)
    lows_PN = rewards_PN.sort(dim=1).values  # NaN last
    highs_PN = lows_PN.gather(1, (num_scored_P1 - 1 - positions_N) % num_rollouts)
    bottom_P1, top_P1 = lows_PN[:, :1], highs_PN[:, :1]
    counts_K = torch.arange(cap + 1, device=rewards_PN.device)
    from_bottom_PN = (lows_PN - bottom_P1).nan_to_num(nan=0.0)
    from_top_PN = (top_P1 - highs_PN).nan_to_num(nan=0.0)
    mean_low_PK, spread_low_PK = prefix_moments(from_bottom_PN[:, :cap], counts_K)
    mean_high_PK, spread_high_PK = prefix_moments(from_top_PN[:, :cap], counts_K)
    num_high_KA = (counts_K.unsqueeze(1) - counts_K).clamp(min=0)
    between_KA = (counts_K * num_high_KA).double() / counts_K.clamp(min=1).unsqueeze(1)
    range_P11 = (top_P1 - bottom_P1).nan_to_num(nan=0.0).unsqueeze(2)
    gap_PKA = range_P11 - mean_low_PK.unsqueeze(1) - mean_high_PK[:, num_high_KA]
    spread_PKA = gap_PKA.square_().mul_(between_KA)
    spread_PKA += spread_low_PK.unsqueeze(1) + spread_high_PK[:, num_high_KA]
    values_PK = spread_PKA.masked_fill_(counts_K > counts_K.unsqueeze(1), -torch.inf).amax(2)
    return values_PK.clamp_(min=0.0).gather(1, counts_K.minimum(num_scored_P1))


def _worth(rewards_PN: Tensor, total: int, cap: int) -> Tensor:
    """v as shares of the value of all rollouts, less what unwanted counts cost (P, K)."""
    rewards_PN = rewards_PN.double()
    num_scored_P1 = (~rewards_PN.isnan()).sum(1, keepdim=True)
    low_P1 = rewards_PN.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
    shifted_PN = rewards_PN - low_P1
    unit = shifted_PN.nan_to_num(nan=0.0).amax()
    values_PK = group_values(shifted_PN / torch.where(unit > 0, unit, 1.0), cap)
    whole = values_PK[:, -1].sum()
    is_constant_P1 = values_PK[:, -1:] <= 0
    counts_K = torch.arange(cap + 1, device=rewards_PN.device).double()
    evenness = _EVENNESS / max(1, total * cap)
    worth_PK = values_PK / torch.where(whole > 0, whole, 1.0) - evenness * counts_K.square()
    worth_PK -= 4 * cap * evenness * is_constant_P1 * counts_K
    return worth_PK - _COST_OF_NO_REWARD * (counts_K - num_scored_P1).clamp(min=0)


def _shuffled(num_groups: int, seed: int, device: torch.device) -> Tensor:
    """The groups in an order that the seed alone decides, (P,)."""
    positions_P = torch.arange(num_groups, device=device)
    equal_1P = torch.zeros(1, num_groups, device=device)
    return order.order_keys(equal_1P, positions_P, positions_P[:1], seed=seed)[0].argsort()


def _check_rewards(rewards_PN: Tensor) -> None:
    if rewards_PN.ndim != 2 or 0 in rewards_PN.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards_PN.shape)}; pass (P, N), one row per prompt, with "
            "at least one of each."
        )
    if rewards_PN.isinf().any():
        raise ValueError(
            "a reward is infinite; pass finite ones, or NaN where no reward could be computed."
        )


def _check_counts(total: int, num_groups: int, num_rollouts: int, *, floor: int, cap: int) -> None:
    if floor not in FLOORS:
        raise ValueError(f"floor is {floor}; choose 0 or 2: one rollout alone has no advantage.")
    if not 2 <= cap <= num_rollouts:
        raise ValueError(
            f"cap is {cap}, but must lie between 2 and the {num_rollouts} rollouts of a group."
        )
    least, most = floor * num_groups or 2, cap * num_groups
    if not least <= total <= most or (cap == 2 and total % 2):
        raise ValueError(
            f"num_kept_total is {total}, but {num_groups} groups of {floor} or 2 to {cap} kept "
            f"rollouts add up to {least} to {most}" + (", even" if cap == 2 else "") + ": change "
            "the total, the floor or the cap."
        )
