"""The rollout loop of TRL's asynchronous trainer, which hands on the m that a rule keeps of n.

TRL's AsyncRolloutWorker spawns a child process in which its loop asks a vLLM server for rollouts,
scores them by groups and puts training rows into a queue. The loop's class is the worker's
`_loop_cls`, and one of its methods scores a group: there the choice is made.
tests/trainer/test_async_contract.py holds TRL to what is relied on here.

Shape letters: N sampled rollouts.
"""

import random
from typing import Any

import numpy as np
import torch
from trl.experimental.async_grpo.async_rollout_worker import (
    AsyncRolloutWorker,
    RolloutGroup,
    RolloutSample,
    _AsyncRolloutLoop,
)

from podsrl.core.rules import NEEDS_LENGTHS
from podsrl.core.selection import Selection, Selector
from podsrl.core.statistics import is_constant

OVER_ALL = "pods/all/"
"""Before a metric's name: of all n rollouts of the group, on each of its kept rows."""

OF_ONE_GROUP = (
    "kept_reward_variance",
    "frac_best_variance",
    "frac_kept_zero_variance",
    "frac_kept_zero_advantage",
    "frac_no_reward",
)


class PodsRolloutLoop(_AsyncRolloutLoop):
    """TRL's loop in the child process, with `num_generations` n; hands on m of each group.

    selector, seed: how they are chosen; everything else is TRL's.
    """

    def __init__(self, *, selector: Selector, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.selector, self.seed = selector, seed
        self.first_prompt = kwargs.get("dataset_start_index", 0)

    async def _score_group(self, group: RolloutGroup) -> list[RolloutSample]:
        samples = await super()._score_group(group)
        # Groups are counted from 0 again after a resume, prompts are not.
        place = f"{self.seed}/{self.first_prompt + group.group_id}/0"
        return keep(samples, group, self.selector, seed=random.Random(place).getrandbits(62))


class PodsRolloutWorker(AsyncRolloutWorker):
    """TRL's worker with `PodsRolloutLoop` in its child process; takes its two arguments besides."""

    _loop_cls = PodsRolloutLoop
    _process: Any
    """TRL's: the child process; None while there is none."""

    def check_health(self, stale_after_s: float) -> None:
        super().check_health(stale_after_s)
        # A child that raised has told so; one that was killed tells nothing, and TRL would wait
        # for its heartbeat to be `stale_after_s` old, 300 s by default.
        if self._process is not None and self._process.exitcode is not None:
            raise RuntimeError(
                "The child process that asks vLLM for rollouts ended by itself (exit code "
                f"{self._process.exitcode}; below 0 it is the signal that ended it, and -9 is most "
                "often a machine out of memory). What it printed stands above."
            )

    def stop(self) -> None:
        process = self._process
        if process is None or (process.exitcode is None and not self._failed_event.is_set()):
            super().stop()
            return
        # TRL would set an event that a thread of the child waits for, and a process-shared event
        # waits in turn for each who waits to say that he has woken: a dead child never does.
        process.kill()
        process.join()
        self._process = None


def keep(
    samples: list[RolloutSample], group: RolloutGroup, selector: Selector, *, seed: int
) -> list[RolloutSample]:
    """The rows of the kept rollouts, with advantages among the kept and numbers of the choice.

    A rollout may be several rows, which stay together, or none, if it holds no token to train on:
    such a one is not kept. With n = m the rows and their advantages are TRL's.

    samples: what TRL makes of the group, rollout by rollout.
    """
    rows = rows_of(samples, group)
    present = [rollout for rollout, own in enumerate(rows) if own]
    rewards_1N = torch.full((1, len(rows)), torch.nan, dtype=torch.float64)
    for rollout in present:
        rewards_1N[0, rollout] = rows[rollout][0].metrics["reward"]
    selection = _choose(rewards_1N[:, present], present, group, selector, seed=seed)
    numbers = _numbers(selection, rows, rewards_1N)
    chosen = [present[i] for i in selection.kept_rows_B.tolist()]
    advantages = {rollout: rows[rollout][0].advantage for rollout in chosen}
    if len(chosen) < len(rows):
        advantages = dict(zip(chosen, among(rewards_1N[0, chosen].numpy()), strict=True))
    for rollout in chosen:
        for row in rows[rollout]:
            row.advantage = float(advantages[rollout])
            row.metrics |= numbers
    return [row for rollout in chosen for row in rows[rollout]]


def rows_of(samples: list[RolloutSample], group: RolloutGroup) -> list[list[RolloutSample]]:
    """The rows of each rollout of the group, in which TRL lists them one after the other."""
    rest = iter(samples)
    return [[next(rest) for _ in sequences] for sequences in group.completions_sequences]


def among(rewards_M: np.ndarray) -> np.ndarray:
    """TRL's advantages in its asynchronous trainer: over the population deviation + 1e-8.

    0 for a NaN, which counts in neither mean nor deviation.

    Example: (0, 0, 0, 1): the mean is 1/4, the deviation sqrt(3)/4, so (-0.577, ..., 1.732).
    """
    advantages_M, scored_M = np.zeros_like(rewards_M), ~np.isnan(rewards_M)
    if scored_M.any():
        scored = rewards_M[scored_M]
        advantages_M[scored_M] = (scored - scored.mean()) / (scored.std() + 1e-8)
    return advantages_M


def _choose(
    rewards_1N: torch.Tensor,
    present: list[int],
    group: RolloutGroup,
    selector: Selector,
    *,
    seed: int,
) -> Selection:
    if len(present) <= selector.num_kept:
        every = torch.ones_like(rewards_1N, dtype=torch.bool)
        return Selection(selector, rewards_1N.unsqueeze(-1), rewards_1N, every)
    lengths_1N = None
    if selector.rule in NEEDS_LENGTHS:
        lengths_1N = torch.tensor([[len(group.completions_ids[rollout]) for rollout in present]])
    return selector(rewards_1N.unsqueeze(-1), seed=seed, lengths_PN=lengths_1N)


def _numbers(
    selection: Selection, rows: list[list[RolloutSample]], rewards_1N: torch.Tensor
) -> dict[str, float]:
    """Of the choice and, under `OVER_ALL`, TRL's own metrics of the group over all rollouts."""
    if not selection.kept_rows_B.numel():
        return {}
    found = {f"pods/{name}": float(selection.numbers()[name]) for name in OF_ONE_GROUP}
    found[f"{OVER_ALL}frac_reward_zero_std"] = float(is_constant(rewards_1N))
    first = [own[0].metrics for own in rows if own]
    for name in first[0]:
        if name == "reward" or name.startswith("rewards/"):
            of_all = torch.tensor([metrics[name] for metrics in first], dtype=torch.float64)
            found[OVER_ALL + name] = float(of_all.nanmean())
    return found
