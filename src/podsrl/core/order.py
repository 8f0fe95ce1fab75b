"""A total order of each group's rollouts: by reward, equal rewards at random, NaN at the end.

The order is one 64-bit key per rollout.  Its high half orders as the reward does; its low half
is a hash of (seed, position of the group, position of the rollout) that is one-to-one within a
group, so no two keys of a group are equal.  Integer arithmetic wraps around identically on every
device, hence the same seed gives the same order everywhere.

Shapes: P prompts (groups), N rollouts sampled, M rollouts kept.
"""

import sys

import torch
from torch import Tensor

_LAST = 2**31 - 1  # high half of a NaN's key; no finite reward maps to it
_LOW_HALF = 0 if sys.byteorder == "little" else 1


def ascending_keys(rewards_PN: Tensor, *, seed: int, first_group: int = 0) -> Tensor:
    """Return int64 keys (P, N), distinct in each group, that order rewards upwards, NaN last."""
    keys_PN2 = torch.empty(*rewards_PN.shape, 2, dtype=torch.int32, device=rewards_PN.device)
    ranks_PN = _ordinals(rewards_PN)
    if rewards_PN.is_floating_point():
        ranks_PN.masked_fill_(rewards_PN.isnan(), _LAST)
    keys_PN2[..., 1 - _LOW_HALF] = ranks_PN
    num_groups, num_rollouts = rewards_PN.shape
    keys_PN2[..., _LOW_HALF] = _tie_hashes(
        num_groups, num_rollouts, seed=seed, first_group=first_group, device=rewards_PN.device
    )
    return keys_PN2.view(torch.int64).squeeze(-1)


def descending_keys(ascending_PN: Tensor, rewards_PN: Tensor) -> Tensor:
    """Return the keys of the opposite order of the same rewards, NaN still last."""
    if not rewards_PN.is_floating_point():
        return ~ascending_PN
    return torch.where(rewards_PN.isnan(), ascending_PN, ~ascending_PN)


def random_keys(rewards_PN: Tensor, *, seed: int, first_group: int = 0) -> Tensor:
    """Return keys that order scored rollouts at random and put NaN last."""
    scored_PN = torch.zeros_like(rewards_PN, dtype=torch.float32)
    if rewards_PN.is_floating_point():
        scored_PN.masked_fill_(rewards_PN.isnan(), torch.nan)
    return ascending_keys(scored_PN, seed=seed, first_group=first_group)


def lowest(keys_PN: Tensor, keep: int) -> Tensor:
    """Return the positions (P, M) of the `keep` smallest keys of each group, smallest first.

    A long group is cut into blocks.  The `keep` blocks with the smallest minima hold the `keep`
    smallest keys, so one pass for the minima replaces a selection from all N.
    """
    num_rollouts = keys_PN.shape[1]
    block = int((num_rollouts / keep) ** 0.5)
    if block < 4:
        return keys_PN.topk(keep, dim=1, largest=False).indices
    num_blocks = num_rollouts // block
    # Block b holds b, b + num_blocks, ...: the minimum then runs along contiguous memory.
    minima_PB = keys_PN[:, : block * num_blocks].unflatten(1, (block, num_blocks)).amin(1)
    blocks_PM = minima_PB.topk(keep, dim=1, largest=False, sorted=False).indices
    steps = torch.arange(block, device=keys_PN.device) * num_blocks
    inside = (blocks_PM.unsqueeze(2) + steps).flatten(1)
    rest = torch.arange(block * num_blocks, num_rollouts, device=keys_PN.device)
    candidates = torch.cat([inside, rest.expand(len(keys_PN), -1)], dim=1)
    chosen_PM = keys_PN.gather(1, candidates).topk(keep, dim=1, largest=False).indices
    return candidates.gather(1, chosen_PM)


def _ordinals(rewards_PN: Tensor) -> Tensor:
    """Map rewards to int32 that compare as the rewards do; equal rewards to equal numbers."""
    if rewards_PN.dtype in (torch.float64, torch.int64):
        return _dense_ranks(rewards_PN)
    if not rewards_PN.is_floating_point():
        return rewards_PN.to(torch.int32)
    # Adding zero turns -0.0 into 0.0.  The bits of a float order as the float does,
    # except that negative floats run backwards.
    bits_PN = (rewards_PN.to(torch.float32) + 0.0).view(torch.int32)
    return bits_PN ^ ((bits_PN >> 31) & 0x7FFFFFFF)


def _dense_ranks(rewards_PN: Tensor) -> Tensor:
    """Map 64-bit rewards to 0, 1, 2, ... in order, equal rewards to equal numbers, as int32."""
    if rewards_PN.is_floating_point():
        rewards_PN = rewards_PN.nan_to_num(torch.inf)
    sorted_PN, order_PN = rewards_PN.sort(dim=1)
    ranks_PN = torch.zeros_like(order_PN, dtype=torch.int32)
    rises_PN = sorted_PN[:, 1:] != sorted_PN[:, :-1]
    ranks_PN[:, 1:] = rises_PN.cumsum(1)
    return torch.empty_like(ranks_PN).scatter_(1, order_PN, ranks_PN)


def _tie_hashes(
    num_groups: int, num_rollouts: int, *, seed: int, first_group: int, device: torch.device
) -> Tensor:
    """Return int32 hashes (P, N) of (seed, group, rollout), one-to-one within each group.

    Every step (exclusive or, product with an odd number, shift with exclusive or) is a bijection
    of 32-bit words, so distinct positions keep distinct hashes.
    """
    groups_P = torch.arange(first_group, first_group + num_groups, device=device)
    state_P = _splitmix64(groups_P * _GOLDEN + _signed64(seed * 0xD1342543DE82EF95))
    offset_P1, factor_P1 = state_P.view(torch.int32).view(num_groups, 2, 1).unbind(1)
    hashes_N = torch.arange(num_rollouts, dtype=torch.int32, device=device)
    hashes_N = _xorshift32(_xorshift32(hashes_N * -1640531535, 15) * -2048144777, 13)
    hashes_PN = (hashes_N ^ offset_P1) * (factor_P1 | 1)
    return _xorshift32(hashes_PN, 15).mul_(-1028477379)


def _xorshift32(words: Tensor, shift: int) -> Tensor:
    """Return words ^ (words >>> shift) on 32-bit words; the mask makes the shift unsigned."""
    return words ^ ((words >> shift) & (2 ** (32 - shift) - 1))


def _splitmix64(words: Tensor) -> Tensor:
    """Return the splitmix64 hash (Steele, Lea and Flood, OOPSLA 2014) of int64 words."""
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _signed64(0xBF58476D1CE4E5B9)
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _signed64(0x94D049BB133111EB)
    return words ^ ((words >> 31) & (2**33 - 1))


def _signed64(number: int) -> int:
    """Return the int64 that equals `number` modulo 2**64."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN = _signed64(0x9E3779B97F4A7C15)
