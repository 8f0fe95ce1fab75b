"""Micro-batches dealt out anew, so that the rollouts of a prompt stand together.

TRL shuffles the rows of a generation batch before it splits them. A prompt then counts in almost
every micro-batch; dealt by prompt it counts in one. Where rows of advantage 0 cost nothing, some
processes have little to do and others wait for those with much: rows then move between them.
"""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from podsrl.packing.live import teaching
from podsrl.packing.microbatch import (
    balance,
    balance_processes,
    pick,
    regroup,
    slowest,
    whole_groups,
)
from podsrl.packing.pack import group_by_prompt
from podsrl.trl.checks import rows_may_change_process
from podsrl.trl.config import PODSConfig
from podsrl.trl.exchange import rows_of_all

# Entries of TRL's batch that objectives add. They go through its shuffle and its split.
GROUP = "objective_group"
REWARDS = "objective_rewards"
BEHAVIOUR = "objective_behaviour"
FOLLOWER_ADVANTAGES = "objective_follower_advantages"

Plan = list[list[list[int]]]
"""Rows, counted over all processes, of each process's micro-batches."""


def deal(
    batches: list[dict[str, Any]], args: PODSConfig, *, whole: bool, sees: bool = False
) -> list[dict[str, Any]]:
    """This process's micro-batches of one generation batch, dealt out anew; all processes call it.

    Rows move between processes where `skip_dead_rows` is on, a row is dead, the loss does not mind,
    and the slowest process then has less to read. Each process has as many rows as before.

    whole: as of `deal_by_prompt`.
    sees: whether the model reads images, with which rows do not move; that one process's batch has
        no image must not decide it, as all have to do the same.
    """
    # Images of a row are as many rows of pixels as they have patches: lists by row meanwhile.
    batches = [split_pixel_values_by_grid(batch) for batch in batches]
    skips_dead, dealt = bool(args.skip_dead_rows), None
    may_move = skips_dead and not sees and rows_may_change_process(args)
    if may_move and PartialState().num_processes > 1:
        dealt = _deal_over_processes(batches)
    if dealt is None:
        dealt = deal_by_prompt(batches, whole=whole, skips_dead=skips_dead)
    return [unsplit_pixel_values_by_grid(batch) for batch in dealt]


def deal_by_prompt(
    batches: list[dict[str, Any]], *, whole: bool, skips_dead: bool = False
) -> list[dict[str, Any]]:
    """The same rows, those of a prompt in as few micro-batches as possible, tokens balanced.

    whole: no group may be torn, because the loss compares its rows. A micro-batch may then have
    more rows than another, and one without a group gets a row that teaches nothing.
    skips_dead: rows of advantage 0 cost nothing, so that live ones alone are balanced.
    """
    if len(batches) < 2:
        return batches
    prompt_B, completion_B, group_B, lives_B = _sizes(batches)
    if skips_dead:
        prompt_B, completion_B = _of_live_rows(prompt_B, completion_B, group_B, lives_B)
    # All three in one transfer, so that a GPU is waited for once.
    sizes = torch.stack([prompt_B, completion_B, group_B]).tolist()
    prompt_lengths, completion_lengths, groups = sizes
    deal = whole_groups if whole else balance
    rows = deal(prompt_lengths, completion_lengths, groups, len(batches))
    dealt = regroup(batches, rows)
    if not whole:
        return dealt
    # Fewer groups than micro-batches: all processes still have to make equally many passes.
    return [batch if len(batch[GROUP]) else _idle(batches[0]) for batch in dealt]


def _deal_over_processes(batches: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Micro-batches of the rows of all processes; None where the own ones are as good."""
    state, sizes_KB = PartialState(), torch.stack(_sizes(batches))
    num_rows = sizes_KB.shape[1]
    # The numbers of prompts are each process's own.
    sizes_KB[2] += state.process_index * num_rows
    prompt_R, completion_R, group_R, lives_R = gather(sizes_KB.T.contiguous()).cpu().T
    if bool(lives_R.all()):
        return None
    prompt_R, completion_R = _of_live_rows(prompt_R, completion_R, group_R, lives_R)
    sizes = prompt_R.tolist(), completion_R.tolist(), group_R.tolist()
    plan = balance_processes(*sizes, num_processes=state.num_processes, num_batches=len(batches))
    own = _own_plan(sizes, state.num_processes, len(batches))
    if slowest(*sizes, plan) >= slowest(*sizes, own):
        return None
    all_rows = rows_of_all(regroup(batches, [list(range(num_rows))])[0])
    return pick(all_rows, plan[state.process_index])


def _own_plan(sizes: tuple[list[int], ...], num_processes: int, num_batches: int) -> Plan:
    """What `deal_by_prompt` does on each process."""
    num_rows = len(sizes[0]) // num_processes
    plan: Plan = []
    for first in range(0, len(sizes[0]), num_rows):
        own = [each[first : first + num_rows] for each in sizes]
        parts = balance(own[0], own[1], own[2], num_batches)
        plan.append([[first + row for row in part] for part in parts])
    return plan


def _sizes(batches: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row the prompt's tokens, the completion's, its prompt's number, whether it teaches.

    Each (B,) of whole numbers.
    """
    prompts = torch.cat([batch["prompt_ids"] for batch in batches])
    prompt_mask = torch.cat([batch["prompt_mask"] for batch in batches])
    completion_mask = torch.cat([batch["completion_mask"] for batch in batches])
    if GROUP in batches[0]:
        # One prompt may stand in the data set twice: its two groups are not one.
        group_B = torch.cat([batch[GROUP] for batch in batches])
    else:
        group_B = group_by_prompt(prompts, prompt_mask)
    lives_B = teaching(torch.cat([batch["advantages"] for batch in batches]))
    return prompt_mask.sum(1), completion_mask.sum(1), group_B, lives_B.long()


def _of_live_rows(
    prompt_B: Tensor, completion_B: Tensor, group_B: Tensor, lives_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens of prompts and completions that are read: a prompt is where any of its rows is."""
    has_live_B = (lives_B.bool()[None] & (group_B[:, None] == group_B[None])).any(1)
    return prompt_B * has_live_B, completion_B * lives_B


def _idle(batch: dict[str, Any]) -> dict[str, Any]:
    """One row of the batch, without a reward, so that it teaches nothing."""
    row = {key: _first(value) for key, value in batch.items()}
    return row | {REWARDS: torch.full_like(batch[REWARDS][:1], torch.nan)}


def _first(value: Any) -> Any:
    shared = value is None or (isinstance(value, Tensor) and value.ndim == 0)
    return value if shared else value[:1]
