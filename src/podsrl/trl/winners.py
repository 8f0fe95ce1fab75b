"""Pairs of kept rollouts, and rollouts sampled anew in the places of their winners.

Shape letters: P prompts, N sampled rollouts, F reward functions, B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.objectives.pairing import pair_rows
from podsrl.core.selection import Selection
from podsrl.trl.batch import COMPLETION_IDS, COMPLETIONS, TOOL_MASK, Rollouts
from podsrl.trl.dialogue import Rewarded

LOG_PROBS = 4  # place of what GRPOTrainer._generate returns


def kept_pairs(selection: Selection) -> list[tuple[int, int]]:
    """The winner and the loser of each pair of kept rollouts, rows among all sampled ones.

    Pairs are those of `dpo`: a group's i-th highest kept reward with its i-th lowest, if they
    differ.
    """
    rows = selection.kept_rows_B.tolist()
    rewards_B = selection.rewards_PN.flatten()[selection.kept_rows_B]
    pairs = pair_rows(rewards_B, selection.group_B)
    columns = (pairs.chosen_K, pairs.rejected_K, pairs.real_K)
    found = zip(*(each.tolist() for each in columns), strict=True)
    return [(rows[winner], rows[loser]) for winner, loser, is_real in found if is_real]


def pair_of_rows(pairs: Sequence[tuple[int, int]], kept_rows: Sequence[int]) -> Tensor:
    """A number for each kept row, (B,) int64, equal for the two rows of a pair and for no others.

    Example: kept rows 3, 5, 8, of which 8 wins over 3: (3, 5, 3).
    """
    number = {row: row for row in kept_rows} | {winner: loser for winner, loser in pairs}
    return torch.tensor([number[row] for row in kept_rows])


def own_rows(host: GRPOTrainer, rollouts: Rollouts) -> dict[int, int]:
    """Of the rows that this process sampled, by their number among all, their place here.

    Example: the second process, of three rows each: 3, 4 and 5 are in places 0, 1 and 2.
    """
    num_rows = len(rollouts.inputs)
    first = host.accelerator.process_index * num_rows
    return {first + place: place for place in range(num_rows)}


def with_winners(
    host: GRPOTrainer, rollouts: Rollouts, selection: Selection, winners: Mapping[int, Rewarded]
) -> tuple[Rollouts, Selection]:
    """The rollouts with winners in the places of these rows, and the choice with their rewards.

    What is kept stays as it was.

    winners: of all processes, by the row among all that are sampled.
    """
    here = own_rows(host, rollouts)
    generated = [list(each) if isinstance(each, list) else each for each in rollouts.generated]
    rewards_BF = selection.rewards_per_func_PNF.flatten(0, 1).clone()
    for row, winner in winners.items():
        rewards_BF[row] = winner.rewards_F.to(rewards_BF)
        if row not in here:
            continue
        own = {
            COMPLETION_IDS: winner.completion_ids,
            TOOL_MASK: winner.tool_mask,
            COMPLETIONS: winner.messages,
            LOG_PROBS: winner.log_probs,
        }
        for place, value in own.items():
            if generated[place] is not None:
                generated[place][here[row]] = value
        for column in host._pending_extra_logs.values():
            column[here[row]] = None  # it was said of another rollout
    rewards_PNF = rewards_BF.view_as(selection.rewards_per_func_PNF)
    rewards_PN = selection.selector.combined(rewards_PNF)
    chosen = Selection(selection.selector, rewards_PNF, rewards_PN, selection.kept_PN)
    return replace(rollouts, generated=tuple(generated), rewards_per_func=rewards_BF), chosen
