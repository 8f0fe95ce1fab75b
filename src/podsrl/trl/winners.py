"""Pairs of kept rollouts, and rollouts sampled anew in the places of their winners.

Shape letters: P prompts, N sampled rollouts, F reward functions, B rows.
"""

from collections.abc import Mapping
from dataclasses import replace

from trl import GRPOTrainer

from podsrl.core.objectives.pairing import pair_rows
from podsrl.core.selection import Selection
from podsrl.trl.batch import COMPLETION_IDS, COMPLETIONS, TOOL_MASK, Rollouts
from podsrl.trl.replay import Dialogue

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


def with_winners(
    host: GRPOTrainer, rollouts: Rollouts, selection: Selection, winners: Mapping[int, Dialogue]
) -> tuple[Rollouts, Selection]:
    """The rollouts with winners in the places of these rows, and the choice with their rewards.

    What is kept stays as it was. In one process, whose rows are all there are.
    """
    generated = [list(each) if isinstance(each, list) else each for each in rollouts.generated]
    rewards_BF = selection.rewards_per_func_PNF.flatten(0, 1).clone()
    for row, winner in winners.items():
        own = {
            COMPLETION_IDS: winner.completion_ids,
            TOOL_MASK: winner.tool_mask,
            COMPLETIONS: winner.messages,
            LOG_PROBS: winner.log_probs,
        }
        for place, value in own.items():
            if generated[place] is not None:
                generated[place][row] = value
        rewards_BF[row] = winner.rewards_F.to(rewards_BF)
        for column in host._pending_extra_logs.values():
            column[row] = None  # it was said of another rollout
    rewards_PNF = rewards_BF.view_as(selection.rewards_per_func_PNF)
    rewards_PN = selection.selector.combined(rewards_PNF)
    chosen = Selection(selection.selector, rewards_PNF, rewards_PN, selection.kept_PN)
    return replace(rollouts, generated=tuple(generated), rewards_per_func=rewards_BF), chosen
