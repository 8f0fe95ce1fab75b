"""A total order of each group's rollouts: by reward, equal rewards at random, NaN at the end.

The order is one 64-bit key per rollout.  Its high half orders as the reward does; its low half
is a hash of (seed, position of the group, position of the rollout) that is one-to-one within a
group, so no two keys of a group are equal.  Integer arithmetic wraps around identically on every
device, hence the same seed gives the same order everywhere.

Shapes: P prompts (groups), N rollouts sampled, M rollouts kept, C candidates.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

# Rollouts handled at a time on a CPU: fewer waste time on calls, more leave the cache.
CHUNK_ROLLOUTS = 2**20

_NAN = 0x7F800000  # high half of a NaN's key, above all others: the bits of infinity
_LOW_HALF = 0 if sys.byteorder == "little" else 1

Ends = Callable[[Tensor, int], tuple[Tensor, ...]]


def ends(
    rewards_PN: Tensor, keep: int, pick: Ends, *, seed: int, first_group: int
) -> tuple[Tensor, ...]:
    """Return positions (P, M) of the rollouts that `pick` takes from the ends of the order.

    On a CPU long groups are cut into parts: the ends of a group lie among the ends of its parts.
    """
    num_groups, num_rollouts = rewards_PN.shape
    positions_N = torch.arange(num_rollouts, device=rewards_PN.device)
    groups_P = torch.arange(first_group, first_group + num_groups, device=rewards_PN.device)
    part = CHUNK_ROLLOUTS // 4  # measured: of one long group a quarter costs least
    if rewards_PN.device.type != "cpu" or num_rollouts < 2 * max(part, 8 * keep):
        return pick(order_keys(rewards_PN, positions_N, groups_P, seed=seed), keep)
    num_parts = num_rollouts // max(part, 8 * keep)
    picked = [
        [
            part_C[found_PM]
            for found_PM in pick(order_keys(part_PC, part_C, groups_P, seed=seed), keep)
        ]
        for part_PC, part_C in zip(
            rewards_PN.tensor_split(num_parts, 1), positions_N.tensor_split(num_parts), strict=True
        )
    ]
    candidates = [torch.cat(side, dim=1) for side in zip(*picked, strict=True)]
    keys = [
        order_keys(rewards_PN.gather(1, side_PC), side_PC, groups_P, seed=seed)
        for side_PC in candidates
    ]
    return tuple(
        side_PC.gather(1, pick(keys_PC, keep)[end])
        for end, (side_PC, keys_PC) in enumerate(zip(candidates, keys, strict=True))
    )


def low_end(keys_PN: Tensor, keep: int) -> tuple[Tensor]:
    """Return the places of the `keep` lowest keys, lowest first; NaN counts as highest."""
    return (keys_PN.topk(keep, dim=1, largest=False).indices,)


def high_end(keys_PN: Tensor, keep: int) -> tuple[Tensor]:
    """Return the places of the `keep` highest keys, highest first; NaN counts as lowest."""
    # The shift keeps the order, but wraps NaN around to the smallest numbers.
    shifted_PN = keys_PN + (2**31 - _NAN << 32)
    return (shifted_PN.topk(keep, dim=1).indices,)


def both_ends(keys_PN: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return what `low_end` and `high_end` return, from one sort where that is cheaper."""
    num_rollouts = keys_PN.shape[1]
    if 4 * keep < num_rollouts:  # measured: two selections of a quarter cost what the sort does
        return low_end(keys_PN, keep) + high_end(keys_PN, keep)
    order_PN = keys_PN.argsort(dim=1)
    from_top_M = torch.arange(1, keep + 1, device=keys_PN.device)
    places_PM = (num_scored(keys_PN) - from_top_M) % num_rollouts
    return order_PN[:, :keep], order_PN.gather(1, places_PM)


def num_scored(keys_PN: Tensor) -> Tensor:
    """Return how many rollouts of each group have a reward, (P, 1)."""
    return (keys_PN < _NAN << 32).sum(1, keepdim=True)


def order_keys(rewards_PN: Tensor, positions: Tensor, groups_P: Tensor, *, seed: int) -> Tensor:
    """Return int64 keys (P, N), distinct in each group, that order rewards upwards, NaN last.

    `positions`, (N,) or (P, N), say where in its group a rollout stands, `groups_P` where in the
    whole batch a group stands; with `seed` they alone decide the order of equal rewards.
    """
    halves_PN2 = torch.empty(*rewards_PN.shape, 2, dtype=torch.int32, device=rewards_PN.device)
    high_PN, low_PN = halves_PN2[..., 1 - _LOW_HALF], halves_PN2[..., _LOW_HALF]
    _write_ordinals(rewards_PN, out=high_PN)
    _write_tie_hashes(positions, groups_P, seed=seed, out=low_PN)
    return halves_PN2.view(torch.int64).squeeze(-1)


def _write_ordinals(rewards_PN: Tensor, *, out: Tensor) -> None:
    """Write int32 numbers that compare as the rewards do, equal for equal rewards, NaN `_NAN`."""
    if rewards_PN.dtype in (torch.float16, torch.bfloat16, torch.float32):
        # The bits of a float order as the float does, except that negative ones run backwards;
        # adding zero makes -0.0 the same as 0.0, and infinity, which no reward is, marks NaN.
        bits_PN = rewards_PN.float().nan_to_num(nan=torch.inf).add_(0.0).view(torch.int32)
        out.copy_((bits_PN >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits_PN))
    elif rewards_PN.dtype in (torch.int8, torch.uint8, torch.int16):
        out.copy_(rewards_PN)
    else:
        out.copy_(dense_ranks(rewards_PN))
        if rewards_PN.is_floating_point():
            out.masked_fill_(rewards_PN.isnan(), _NAN)


def dense_ranks(rewards_PN: Tensor) -> Tensor:
    """Return 0, 1, 2, ... in the order of the rewards, equal numbers for equal rewards."""
    sorted_PN, order_PN = rewards_PN.sort(dim=1)
    rises_PN = sorted_PN[:, 1:] != sorted_PN[:, :-1]
    ranks_PN = torch.nn.functional.pad(rises_PN.cumsum(1), (1, 0))
    return torch.empty_like(ranks_PN).scatter_(1, order_PN, ranks_PN)


def _write_tie_hashes(positions: Tensor, groups_P: Tensor, *, seed: int, out: Tensor) -> None:
    """Write int32 hashes (P, N) of (seed, group, position), one-to-one within each group.

    Every step (exclusive or, product with an odd number, shift with exclusive or) is a bijection
    of 32-bit words, so distinct positions keep distinct hashes.
    """
    state_P = _splitmix64(groups_P * _signed64(0x9E3779B97F4A7C15) + _signed64(seed * _SEED_FACTOR))
    offset_P1, factor_P1 = state_P.view(torch.int32).view(-1, 2, 1).unbind(1)
    words = _xorshift32(_xorshift32(positions.int() * -1640531535, 15) * -2048144777, 13)
    words_PN = (words ^ offset_P1).mul_(factor_P1 | 1)
    torch.mul(_xorshift32(words_PN, 15), -1028477379, out=out)


def _xorshift32(words: Tensor, shift: int) -> Tensor:
    """Return words ^ (words >>> shift) of int32 words; the mask makes the shift unsigned."""
    return (words >> shift).bitwise_and_(2 ** (32 - shift) - 1).bitwise_xor_(words)


def _splitmix64(words: Tensor) -> Tensor:
    """Return the splitmix64 hash (Steele, Lea and Flood, OOPSLA 2014) of int64 words."""
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _signed64(0xBF58476D1CE4E5B9)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _signed64(0x94D049BB133111EB)
    return words ^ ((words >> 31) & (2**33 - 1))


def _signed64(number: int) -> int:
    """Return the int64 that equals `number` modulo 2**64."""
    return (number + 2**63) % 2**64 - 2**63


_SEED_FACTOR = 0xD1342543DE82EF95
