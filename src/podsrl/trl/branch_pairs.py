"""Pairs of a losing and a winning dialogue, and what continuations say of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from podsrl.trl.dialogue import Rewarded
from podsrl.trl.winners import pair_of_rows


@dataclass
class Pair:
    """A losing rollout, the kept one that it meets, and what was found of them.

    winner, loser: rows among all sampled ones. winning, dialogue: what was said in them.
    values: of its states, by the turn that follows. continued: what was sampled from them.
    first, num: the segment; num is 0 where there is none.
    best: what takes the winner's place; None where it stays.
    """

    winner: int
    loser: int
    winning: Rewarded
    dialogue: Rewarded
    values: dict[int, float]
    continued: dict[int, list[Rewarded]] = field(default_factory=dict)
    first: int = -1
    num: int = 0
    best: Rewarded | None = None


def best_of(dialogues: Sequence[Rewarded], *, above: float) -> Rewarded | None:
    """The first of the highest reward, if that is above `above`; a NaN is above nothing."""
    better = [dialogue for dialogue in dialogues if dialogue.reward > above]
    return max(better, key=lambda each: each.reward, default=None)


def mean_reward(dialogues: Sequence[Rewarded]) -> float:
    """Over those that have a reward; NaN where none has.

    Example: rewards 1, 0 and NaN: 1/2.
    """
    rewards = torch.tensor([dialogue.reward for dialogue in dialogues], dtype=torch.float64)
    return float(rewards.nanmean())


def by_turn(places: Sequence[int], pairs: Sequence[Pair], num: int) -> list[tuple[int, list[int]]]:
    """The places of pairs whose winners are to go on from the same turn, `num` after the first."""
    turn_of = {place: pairs[place].first + num for place in places}
    ordered = itertools.groupby(sorted(places, key=turn_of.__getitem__), key=turn_of.__getitem__)
    return [(turn, list(each)) for turn, each in ordered]


def segments_of(pairs: Sequence[Pair], kept_rows: Sequence[int]) -> dict[str, Tensor]:
    """`segment_pair`, `segment_first` and `segment_num` of each kept row, (B,) int64.

    A row without a segment is a pair of its own, of no turns.

    Example: kept rows 3, 5, 8, of which 8 wins over 3 from turn 1 on for two turns: pairs
    (3, 5, 3), first turns (1, 0, 1), numbers (2, 0, 2).
    """
    pair_of = {row: pair for pair in pairs for row in (pair.winner, pair.loser)}
    found = [pair_of.get(row) for row in kept_rows]
    return {
        "segment_pair": pair_of_rows([(each.winner, each.loser) for each in pairs], kept_rows),
        "segment_first": torch.tensor([each.first if each else 0 for each in found]),
        "segment_num": torch.tensor([each.num if each else 0 for each in found]),
    }
