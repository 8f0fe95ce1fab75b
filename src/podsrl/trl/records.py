"""What a generation batch leaves behind: its advantages, its metrics, its lines in the log.

Shape letters: P prompts, N sampled rollouts, F reward functions, B kept rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.combine import SUM_THEN_NORMALIZE, combine
from podsrl.core.selection import Selection
from podsrl.core.statistics import reward_metrics
from podsrl.trl.batch import COMPLETION_IDS, COMPLETIONS, TOOL_MASK, GenerationBatch, Rollouts
from podsrl.trl.early_stop import Stopping
from podsrl.trl.play import transcript


def use_advantages(host: GRPOTrainer, batch: GenerationBatch, output: dict[str, Any]) -> None:
    """Put the advantages that the settings ask for in the place of TRL's."""
    assert batch.selection is not None
    all_advantages_B = batch.selection.advantages_B
    own = batch.share(output["advantages"].shape[0])
    output["advantages"] = all_advantages_B[own].to(output["advantages"])
    # TRL has logged its own already, of all processes; the log is bounded and may hold fewer.
    logged = host._logs["advantages"]
    for _ in range(min(len(logged), len(all_advantages_B))):
        logged.pop()
    logged.extend(all_advantages_B.tolist())


def record_metrics(host: GRPOTrainer, batch: GenerationBatch, stopping: Stopping | None) -> None:
    """TRL's reward metrics over all n instead of the kept m, and `pods/` for the kept ones.

    Where all are kept TRL's own stand, to the last digit.
    """
    selection = batch.selection
    assert selection is not None
    rewards_PN, rewards_PNF = selection.rewards_PN, selection.rewards_per_func_PNF
    first_PNF = batch.first_rewards_PNF
    if first_PNF is not None:
        rewards_PNF = first_PNF
    if first_PNF is not None or selection.selector.aggregation != SUM_THEN_NORMALIZE:
        rewards_PN = combine(rewards_PNF, host.reward_weights)  # what the rule ranked is another
    over_all = {}
    if first_PNF is not None or selection.kept_rows_B.numel() < rewards_PN.numel():
        over_all = reward_metrics(rewards_PN, rewards_PNF, host.reward_func_names)
    values = over_all | {f"pods/{name}": value for name, value in selection.numbers().items()}
    values |= batch.metrics
    if host.behaviours is not None:
        values |= host.behaviours.metrics(selection)
    if host.args.rollout_mixture:
        values |= host.prompt_once.metrics(selection)
    if stopping is not None:
        values |= stopping.metrics(selection)
    metrics = host._metrics["train"]
    # One transfer for all numbers, so that a GPU is waited for once.
    numbers = torch.stack(list(values.values())).tolist()
    for name, number in zip(values, numbers, strict=True):
        if name in over_all:
            metrics[name][-1] = number
        else:
            metrics[name].append(number)


def log_rollouts(host: GRPOTrainer, batch: GenerationBatch, log: Any, advantages_B: Tensor) -> None:
    """Write what the main process sampled in this batch; other processes log nothing.

    log: has `write_batch`, as runs/rollout_log.py. advantages_B: of this process's kept rows.
    """
    assert batch.rollouts is not None
    rollouts, n = batch.rollouts, host.args.num_rollouts
    firsts = zip(rollouts.inputs[::n], rollouts.prompts[::n], strict=True)
    texts, turns = rollouts.generated[COMPLETIONS], {}
    if rollouts.generated[TOOL_MASK] is not None:
        texts, turns["given"] = _transcripts(host, rollouts)
    log.write_batch(
        host.state.global_step + 1,
        batch.selection,
        [{**row, "prompt": prompt} for row, prompt in firsts],
        texts,
        rollouts.lengths,
        advantages=dict(zip(batch.rows, advantages_B.tolist(), strict=True)),
        rule=host.args.selection_rule,
        **turns,
    )


def _transcripts(
    host: GRPOTrainer, rollouts: Rollouts
) -> tuple[list[str | None], list[list[list[int]]]]:
    """The whole text of each rollout with turns, and where what is not trained on stands in it."""
    columns = (rollouts.generated[i] for i in (COMPLETIONS, COMPLETION_IDS, TOOL_MASK))
    texts: list[str | None] = []
    given = []
    for completion, ids, mask in zip(*columns, strict=True):
        text, parts = transcript(host._tokenizer, ids, mask)
        texts.append(None if completion is None else text)  # not sampled in a round
        given.append(parts)
    return texts, given


def brought_by(selection: Selection, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each part of the groups: its share of the kept, its share of successes, and of how many.

    sizes: rollouts of each part, in the order of a group. A success is a rollout to which the first
    reward function gives more than 0; rollouts without such a reward are not counted.

    Example: parts of 2 and 2, rewards (0, 1, 1, 1) of which the last two are kept: shares 0 and 1
    of the kept, 1/2 and 1 of successes, of 2 each.
    """
    rewards_PN = selection.rewards_per_func_PNF[..., 0]
    scored_PN, num_kept = ~rewards_PN.isnan(), selection.kept_PN.sum()
    parts = (
        each.split(list(sizes), dim=1) for each in (rewards_PN > 0, scored_PN, selection.kept_PN)
    )
    return [
        (kept.sum() / num_kept, success.sum() / scored.sum().clamp(min=1), scored.sum())
        for success, scored, kept in zip(*parts, strict=True)
    ]
