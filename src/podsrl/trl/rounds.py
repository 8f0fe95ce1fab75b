"""Samples in rounds: of each prompt as many rollouts as its rewards ask for, at most n.

Shape letters: P prompts of all processes, N rollouts per prompt, F reward functions.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from math import gcd
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.rounds import decide, first_round
from podsrl.trl.batch import Rollouts
from podsrl.trl.early_stop import over_calls
from podsrl.trl.exchange import TRAVELS, Exchange, exchanged
from podsrl.trl.rounds_metrics import count_by_difficulty, rounds_metrics

PROMPTS = len(TRAVELS)  # a column beside those of GRPOTrainer._generate


class InRounds:
    """Stands in for the host's way to sample and score n rollouts of each prompt.

    In each round all open prompts of all processes are sampled, and the processes share this work
    evenly: one whose own prompts are settled takes part for others. Rewards are those of all
    processes, so every process decides alike and takes part in as many rounds.

    sample: samples and scores one rollout for each row of this process; takes the rows, and how
        many of them, counted over all processes, are of one prompt.
    """

    def __init__(self, host: GRPOTrainer, sample: Callable[..., Rollouts]) -> None:
        self.host, self.sample = host, sample

    def first_rows(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows that TRL is to prepare, before it asks for their rollouts: the first round's."""
        return self._share(self._rows_of_prompts(inputs), self._first_size())

    def __call__(self, inputs: list[dict[str, Any]]) -> Rollouts:
        """One rollout per row; a row that was not sampled has no tokens, no text and NaN.

        inputs: of this process, n rows a prompt; a prompt's rows may straddle processes.
        """
        args, batch = self.host.args, self.host.batch
        num_rollouts, rows_P = args.num_rollouts, self._rows_of_prompts(inputs)
        is_prepared = inputs is batch.rows_N
        collected = Collected(self.host, len(inputs), len(rows_P))
        states = {"settled": set[int](), "given_up": set[int]()}
        open_groups, done = list(range(len(rows_P))), 0
        while open_groups and done < num_rollouts:
            size = args.sampling_rounds if done else self._first_size()
            size = min(size, num_rollouts - done)
            rows = self._share([rows_P[group] for group in open_groups], size)
            if is_prepared and not done:
                rows = batch.prepared_rows
            part = self._round(rows, size, first=done == 0)
            collected.add(part, open_groups, done, size)
            done += size
            settled_P, given_up_P = self._decide(collected.rewards_PNF[:, :done])
            for name, is_so in (("settled", settled_P), ("given_up", given_up_P)):
                states[name] |= {group for group in open_groups if is_so[group]}
            open_groups = [g for g in open_groups if not (settled_P[g] or given_up_P[g])]
        if batch.first_rewards_PNF is None:
            batch.first_rewards_PNF = collected.rewards_PNF[:, : self._first_size()]
        batch.counts += collected.counts
        batch.counts.update({name: len(groups) for name, groups in states.items()})
        batch.counts += count_by_difficulty(
            collected.rewards_PNF[:, : self._first_size()], collected.sizes_P, **states
        )
        batch.metrics |= rounds_metrics(batch.counts, collected.rewards_PNF)
        return collected.rollouts(inputs)

    def _first_size(self) -> int:
        return first_round(self.host.args.num_generations, self.host.args.sampling_rounds)

    def _rows_of_prompts(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One row for each prompt of all processes."""
        own = enumerate(inputs, start=self.host.accelerator.process_index * len(inputs))
        rows = gather_object([row for i, row in own if i % self.host.args.num_rollouts == 0])
        return list(rows)

    def _share(self, rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
        """This process's share of `size` rollouts of each of the rows: copies, to write into."""
        accelerator = self.host.accelerator
        # Rewards are gathered, so all processes must sample equally many: spare ones are dropped.
        unit = accelerator.num_processes // gcd(size, accelerator.num_processes)
        rows = rows + rows[-1:] * (-len(rows) % unit)
        share = len(rows) * size // accelerator.num_processes
        start = accelerator.process_index * share
        return [dict(rows[i // size]) for i in range(start, start + share)]

    def _round(self, rows: list[dict[str, Any]], size: int, *, first: bool) -> Rollouts:
        """Rollouts of this process's rows, `size` of each prompt over all processes."""
        host = self.host
        # TRL's completions/... are to speak for the policy. Later rounds are of hard prompts.
        metrics = host._metrics["train"]
        before = {name: list(values) for name, values in metrics.items()}
        host._pending_extra_logs.clear()
        part = self.sample(rows, size)
        if not first:
            metrics.update({k: v for k, v in before.items() if k.startswith("completions/")})
        return part

    def _decide(self, rewards_PSF: Tensor) -> tuple[list[bool], list[bool]]:
        """Which groups are settled and which given up; the same on every kind of device."""
        args = self.host.args
        rewards_PS = self.host.selector.combined(rewards_PSF.cpu().double())
        low, high = args.reward_bounds or (0.0, 0.0)
        settled_P, given_up_P = decide(
            rewards_PS,
            args.num_generations,
            enough=args.sampling_rounds_enough,
            give_up=args.sampling_rounds_give_up,
            smallest_range=(high - low) / 2,
        )
        return settled_P.tolist(), given_up_P.tolist()


class Collected:
    """Rollouts of this process's rows, of which rounds fill in some at a time.

    num_rows: of this process. num_groups: of all processes.
    """

    def __init__(self, host: GRPOTrainer, num_rows: int, num_groups: int) -> None:
        self.host, self.num_rows, self.num_groups = host, num_rows, num_groups
        self.rewards_PNF = torch.empty(0)
        self.counts = Counter({"groups": num_groups})
        self.sizes_P = [0] * num_groups
        self._columns: dict[int, list[Any]] = {}
        self._last: tuple[Any, ...] = ()
        self._extra: dict[str, list[Any]] = {}
        self._metrics: dict[str, list[tuple[int, float]]] = defaultdict(list)
        # What reward functions logged of prompts before: refilling samples several times.
        self._pending = {name: list(x) for name, x in host._pending_metrics.items()}
        host._pending_metrics.clear()

    def add(self, part: Rollouts, groups: list[int], done: int, size: int) -> None:
        """A round of `size` rollouts of each of these groups, which had `done` before."""
        num_rollouts = self.host.args.num_rollouts
        if not self._columns:
            shape = (self.num_groups, num_rollouts, part.rewards_per_func.shape[1])
            self.rewards_PNF = part.rewards_per_func.new_full(shape, torch.nan)
        rewards = part.rewards_per_func[: len(groups) * size]
        self.rewards_PNF[groups, done : done + size] = rewards.unflatten(0, (-1, size))
        self.counts += Counter(rounds=1, rollouts=len(rewards))
        self.counts["failed"] += int(rewards.isnan().all(1).sum())
        for group in groups:
            self.sizes_P[group] += size
        places = [group * num_rollouts + done + i for group in groups for i in range(size)]
        self._place(part, places)
        for name, values in self.host._pending_metrics.items():
            self._metrics[name] += [(len(part.inputs), value) for value in values]
        self.host._pending_metrics.clear()

    def _place(self, part: Rollouts, places: list[int]) -> None:
        """Put a round's rollouts, in order of their places, where this process has these places."""
        accelerator = self.host.accelerator
        first = accelerator.process_index * self.num_rows
        own = slice(bisect_left(places, first), bisect_left(places, first + self.num_rows))
        exchange = Exchange(
            range(len(places)),
            num_sampled=len(part.inputs),
            own=own,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            device=accelerator.device,
        )
        here = [place - first for place in places[own]]
        self._last = part.generated
        found = exchanged(
            exchange, generated=part.generated, prompts=part.prompts, logs=part.extra_logs
        )
        for i, values in found.columns.items():
            self._put(i, here, values, None if TRAVELS[i] == "values" else [])
        self._put(PROMPTS, here, found.prompts, None)
        for name, values in found.logs.items():
            self._extra.setdefault(name, [None] * self.num_rows)
            _fill(self._extra[name], here, values)

    def _put(self, column: int, rows: list[int], values: list[Any], empty: Any) -> None:
        self._columns.setdefault(column, [empty] * self.num_rows)
        _fill(self._columns[column], rows, values)

    def rollouts(self, inputs: list[dict[str, Any]]) -> Rollouts:
        """All of them; what reward functions logged in the rounds is logged as of one call."""
        pending = self.host._pending_metrics
        pending.update(self._pending)
        for name, values in self._metrics.items():
            pending[name].append(over_calls(name, values))
        self.host._pending_extra_logs.clear()
        self.host._pending_extra_logs.update(self._extra)
        generated = tuple(self._columns.get(i, value) for i, value in enumerate(self._last))
        rewards, prompts = self.rewards_PNF.flatten(0, 1), self._columns[PROMPTS]
        return Rollouts(inputs, generated, dict(self._extra), rewards, prompts=prompts)


def _fill(values: list[Any], rows: list[int], new: list[Any]) -> None:
    for row, value in zip(rows, new, strict=True):
        values[row] = value
