"""Micro-batches dealt out anew, so that the rollouts of a prompt stand together.

TRL shuffles the rows of a generation batch before it splits them. A prompt then counts in almost
every micro-batch; dealt by prompt it counts in one.
"""

from typing import Any

import torch
from torch import Tensor

from podsrl.packing.live import teaching
from podsrl.packing.microbatch import balance, regroup, whole_groups
from podsrl.packing.pack import group_by_prompt

# Entries of TRL's batch that objectives add. They go through its shuffle and its split.
GROUP = "objective_group"
REWARDS = "objective_rewards"


def deal_by_prompt(
    batches: list[dict[str, Any]], *, whole: bool, skips_dead: bool = False
) -> list[dict[str, Any]]:
    """The same rows, those of a prompt in as few micro-batches as possible, tokens balanced.

    skips_dead: rows of advantage 0 cost nothing, so that live ones alone are balanced.
    whole: no group may be torn, because the loss compares its rows. A micro-batch may then have
    more rows than another, and one without a group gets a row that teaches nothing.
    """
    prompts = torch.cat([batch["prompt_ids"] for batch in batches])
    prompt_mask = torch.cat([batch["prompt_mask"] for batch in batches])
    completion_mask = torch.cat([batch["completion_mask"] for batch in batches])
    if GROUP in batches[0]:
        # One prompt may stand in the data set twice: its two groups are not one.
        group_B = torch.cat([batch[GROUP] for batch in batches])
    else:
        group_B = group_by_prompt(prompts, prompt_mask)
    prompt_B, completion_B = prompt_mask.sum(1), completion_mask.sum(1)
    if skips_dead:
        lives_B = teaching(torch.cat([batch["advantages"] for batch in batches]))
        # A prompt is read where any of its rows is.
        lives_in_group_B = (lives_B[None] & (group_B[:, None] == group_B[None])).any(1)
        prompt_B, completion_B = prompt_B * lives_in_group_B, completion_B * lives_B
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


def _idle(batch: dict[str, Any]) -> dict[str, Any]:
    """One row of the batch, without a reward, so that it teaches nothing."""
    row = {key: _first(value) for key, value in batch.items()}
    return row | {REWARDS: torch.full_like(batch[REWARDS][:1], torch.nan)}


def _first(value: Any) -> Any:
    shared = value is None or (isinstance(value, Tensor) and value.ndim == 0)
    return value if shared else value[:1]
