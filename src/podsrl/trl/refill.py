"""Groups whose rewards are all equal give way to other prompts, sampled in extra rounds.

Shape letters: P prompts, N sampled rollouts, F reward functions.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.statistics import is_constant
from podsrl.trl.batch import GenerationBatch, Rollouts


@dataclass(frozen=True)
class Refilled:
    """What refilling left, and what it took."""

    rollouts: Rollouts
    num_rounds: int
    num_groups: int

    def metrics(self, num_rollouts: int) -> dict[str, Tensor]:
        """What refilling took, by the names of docs/metrics.md."""
        rewards = self.rollouts.rewards_per_func.double()
        num_groups = len(rewards) // num_rollouts
        return {
            "pods/num_refill_rounds": rewards.new_tensor(self.num_rounds),
            "pods/frac_groups_refilled": rewards.new_tensor(self.num_groups / num_groups),
        }


class Refilling:
    """Draws other prompts of the training set for constant groups, in `num_rounds` at most."""

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host

    def __call__(self, batch: GenerationBatch, rollouts: Rollouts, *, seed: int) -> Rollouts:
        """`refill` with rows of the host's training set, in an order that `seed` fixes.

        Tells `batch` what there was before and what it took.
        """
        num_rollouts = self.host.args.num_rollouts
        if batch.first_rewards_PNF is None:
            batch.first_rewards_PNF = rollouts.rewards_per_func.unflatten(0, (-1, num_rollouts))

        def sample_apart(inputs: list[dict[str, Any]]) -> Rollouts:
            # Columns that rewards log of these rollouts are kept apart from those of before.
            self.host._pending_extra_logs.clear()
            return self.host.sample(inputs)

        refilled = refill(
            rollouts,
            num_rollouts=num_rollouts,
            num_rounds=self.host.args.refill_constant_groups,
            fresh_rows=self._fresh_rows(batch, seed),
            sample=sample_apart,
            combined=self.host.selector.combined,
            process=self.host.accelerator.process_index,
            num_processes=self.host.accelerator.num_processes,
        )
        self.host._pending_extra_logs.clear()
        self.host._pending_extra_logs.update(refilled.rollouts.extra_logs)
        batch.metrics |= refilled.metrics(num_rollouts)
        return refilled.rollouts

    def _fresh_rows(self, batch: GenerationBatch, seed: int) -> Iterator[dict[str, Any]]:
        """Other rows of the training set, with the columns that the data loader gives."""
        # A row of each group that this process shares in, also where groups straddle processes.
        num_kept = self.host.args.num_generations
        known = gather_object([*batch.inputs[::num_kept], batch.inputs[-1]])
        names = list(batch.inputs[0])
        seed = random.Random(f"refill/{seed}").getrandbits(62)
        for row in other_rows(self.host.train_dataset, known, names, seed=seed):
            yield {name: row[name] for name in names}


def refill(
    rollouts: Rollouts,
    *,
    num_rollouts: int,
    num_rounds: int,
    fresh_rows: Iterator[dict[str, Any]],
    sample: Callable[[list[dict[str, Any]]], Rollouts],
    combined: Callable[[Tensor], Tensor],
    process: int = 0,
    num_processes: int = 1,
) -> Refilled:
    """Replace groups of equal rewards by other prompts, in at most `num_rounds` rounds.

    Each round samples one prompt per group that is still constant; those whose rewards differ take
    the constant groups' places in order. What is still constant after the last round stays as it
    was. The idea is DAPO's dynamic sampling (arXiv 2503.14476), which goes on until the batch is
    full; here the rounds are bounded, so that a step's time is.

    Args:
        rollouts: of this process, in groups of `num_rollouts` rows, which may straddle processes.
        num_rollouts: n, rows per prompt.
        num_rounds: the largest number of extra rounds.
        fresh_rows: training rows to draw from, the same on all processes; may run out, which ends
            the refilling.
        sample: samples and scores one rollout for each given row of this process.
        combined: rewards_PNF to the rewards_PN that the rule ranks.
        process, num_processes: which process this is. With several, each round draws so many
            prompts that all processes sample equally many rollouts; spare ones are dropped.

    Returns:
        The rollouts, the rounds that were sampled and the number of groups that were replaced,
        both the same on all processes.
    """
    done, num_groups = 0, 0
    while done < num_rounds:
        places = _constant_groups(rollouts, num_rollouts, combined)
        rows = _draw(fresh_rows, len(places), num_rollouts, num_processes)
        if not rows:
            break
        fresh = sample(_of_process(rows, num_rollouts, process, num_processes))
        constant = set(_constant_groups(fresh, num_rollouts, combined))
        useful = [group for group in range(len(rows)) if group not in constant]
        pairs = list(zip(places, useful, strict=False))  # places may outnumber the useful
        rollouts = _replace_groups(
            rollouts,
            fresh,
            pairs,
            num_rollouts,
            process if num_processes > 1 else None,
        )
        done, num_groups = done + 1, num_groups + len(pairs)
    return Refilled(rollouts, done, num_groups)


def other_rows(
    dataset: Sequence[dict[str, Any]],
    known_rows: Sequence[dict[str, Any]],
    names: Sequence[str] = ("prompt",),
    *,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Rows of the training set in an order fixed by the seed, each prompt once, none of the known.

    names: columns of the rows. Where `prompt` is not among them, because an environment sets the
        question, a row is known by all of them.

    Example: prompts a, b, c with a known: b and c, in either order.
    """
    by = ["prompt"] if "prompt" in names else names
    known = [[row[name] for name in by] for row in known_rows]
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randperm(len(dataset), generator=generator).tolist():
        row = dataset[index]
        if [row[name] for name in by] not in known:
            known.append([row[name] for name in by])
            yield row


def _constant_groups(
    rollouts: Rollouts, num_rollouts: int, combined: Callable[[Tensor], Tensor]
) -> list[int]:
    rewards_PN = combined(rollouts.rewards_per_func.unflatten(0, (-1, num_rollouts)))
    groups: list[int] = is_constant(rewards_PN).nonzero().squeeze(1).tolist()
    return groups


def _draw(
    fresh_rows: Iterator[dict[str, Any]], num_places: int, num_rollouts: int, num_processes: int
) -> list[dict[str, Any]]:
    """At least one row per place where there are as many, in a number that processes can share."""
    unit = num_processes // math.gcd(num_rollouts, num_processes)
    rows = list(itertools.islice(fresh_rows, math.ceil(num_places / unit) * unit))
    return rows[: len(rows) // unit * unit]


def _of_process(
    rows: list[dict[str, Any]], num_rollouts: int, process: int, num_processes: int
) -> list[dict[str, Any]]:
    """This process's share of the rows, one for each rollout: copies, to write into."""
    share = len(rows) * num_rollouts // num_processes
    return [dict(rows[i // num_rollouts]) for i in range(process * share, (process + 1) * share)]


def _replace_groups(
    rollouts: Rollouts,
    fresh: Rollouts,
    pairs: list[tuple[int, int]],
    num_rollouts: int,
    process: int | None,
) -> Rollouts:
    """The rollouts with fresh group g in the place of group p for each pair (p, g).

    Without a process number this process has all rows; with one, fresh rows come from all.
    """
    num_rows = len(rollouts.inputs)
    first = (process or 0) * num_rows
    source_of = {
        p * num_rollouts + i - first: g * num_rollouts + i
        for p, g in pairs
        for i in range(num_rollouts)
        if 0 <= p * num_rollouts + i - first < num_rows
    }

    def merged(old: Any, new: Any) -> Any:
        if not isinstance(old, list) or not old:
            return old
        new = new if process is None else gather_object(new)
        return [new[source_of[row]] if row in source_of else old[row] for row in range(num_rows)]

    rewards = rollouts.rewards_per_func.clone().unflatten(0, (-1, num_rollouts))
    fresh_rewards = fresh.rewards_per_func.unflatten(0, (-1, num_rollouts))
    for p, g in pairs:
        rewards[p] = fresh_rewards[g]
    return replace(
        rollouts,
        inputs=merged(rollouts.inputs, fresh.inputs),
        generated=tuple(map(merged, rollouts.generated, fresh.generated)),
        prompts=merged(rollouts.prompts, fresh.prompts),
        extra_logs=_merged_logs(rollouts, fresh, merged),
        rewards_per_func=rewards.flatten(0, 1),
    )


def _merged_logs(
    rollouts: Rollouts, fresh: Rollouts, merged: Callable[[Any, Any], Any]
) -> dict[str, list[Any]]:
    """Logged columns of both; a column that one side lacks is None there."""
    columns = sorted({*rollouts.extra_logs, *fresh.extra_logs})
    nothing, fresh_nothing = [None] * len(rollouts.inputs), [None] * len(fresh.inputs)
    return {
        column: merged(
            rollouts.extra_logs.get(column, nothing), fresh.extra_logs.get(column, fresh_nothing)
        )
        for column in columns
    }
