"""PODS on verl's V1 trainer: n rollouts per prompt are sampled, m of them reach the update.

verl's `actor_rollout_ref.rollout.n` is m, so all of its arithmetic (mini-batches, denominators,
padding) concerns kept rollouts. Between sampling and the first log-prob stands one step of ours;
dropped rollouts cost no forward and no backward pass of any model. Advantages are verl's own, from
the kept. tests/verl/test_contract.py holds verl to what is relied on here.

Shape letters: P prompts, N sampled rollouts.
"""

import logging
import os
import random
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from torch import Tensor, full, int64
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import (
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.utils import tensordict_utils
from verl.utils.debug import marked_timer

from podsrl.core.rules import NEEDS_LENGTHS
from podsrl.core.selection import Selection
from podsrl.core.statistics import reward_statistics
from podsrl.verl.groups import Groups, choose, groups_of
from podsrl.verl.settings import settings_of

logger = logging.getLogger(__name__)


class PodsTrainer(PPOTrainer):
    """verl's PPOTrainer that samples n rollouts per prompt and updates on the m that a rule keeps.

    Overridden, in the order in which verl calls them:

        _fetch_one_gen_batch   prompts ask for n sessions, and their uids say when they were asked
        _balance_batch         n sessions are scored by now: m go on, the others leave the queue

    Raises `ValueError` as `podsrl.verl.settings` does.
    """

    base_mode: str
    """verl's own mode; it branches on this word."""

    def __init__(self, config: DictConfig) -> None:
        self.pods = settings_of(config)
        self.selector = self.pods.selector()
        self._asked = (0, 0)  # step and how many prompts it has asked for
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.base_mode
        super().__init__(config)

    def _fetch_one_gen_batch(self) -> Any:
        """Ask the rollout workers for n sessions per prompt.

        A uid begins with the step and the prompt's place in it. Sorted by uid, the groups of a
        step come in the same order after a resume, whichever rollout is finished first.
        """
        batch = super()._fetch_one_gen_batch()
        batch["__rollout_n__"] = full((len(batch),), self.pods.num_rollouts, dtype=int64)
        step, first = self._asked
        first = first if step == self.global_steps else 0
        self._asked = (self.global_steps, first + len(batch))
        uids = [
            f"{self.global_steps:08d}-{place:08d}-{uid}"
            for place, uid in enumerate(batch["uid"], start=first)
        ]
        tensordict_utils.assign_non_tensor_stack(batch, "uid", uids)
        return batch

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict[str, Any], *args: Any, **kwargs: Any
    ) -> KVBatchMeta:
        timing: dict[str, float] = {}
        with marked_timer("pods_selection", timing):
            kept = self._select(batch, metrics)
        metrics["timing_s/pods_selection"] = timing["pods_selection"]
        balanced = super()._balance_batch(kept, metrics, *args, **kwargs)
        metrics["pods/num_rows_padding_total"] = len(balanced) - len(kept)
        return balanced

    def _select(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        groups = groups_of(batch.keys, self.pods.num_rollouts)
        selection = choose(
            self.selector,
            groups.table(_scores(batch)),
            seed=self._selection_seed(),
            lengths_PN=self._lengths(batch, groups),
        )
        kept_rows = groups.rows_of(selection.kept_PN)
        self._check(batch, groups, kept_rows)
        metrics |= _metrics(selection)
        metrics["pods/num_rows_sampled_total"] = len(batch)
        metrics["pods/num_rows_kept_total"] = len(kept_rows)
        dropped_rows = sorted(set(range(len(batch))) - set(kept_rows))
        kept = batch.select_keys([batch.keys[row] for row in kept_rows])
        if dropped_rows:
            self._drop(batch.select_keys([batch.keys[row] for row in dropped_rows]))
        return kept

    def _drop(self, dropped: KVBatchMeta) -> None:
        """Write dropped rollouts where that is asked for; verl clears only what `step` returns."""
        folder = self.pods.dropped_data_dir
        if folder:
            if self.parameter_sync_step > 1:  # verl names its files by the step alone
                folder = os.path.join(folder, f"part_{self.local_trigger_step}")
            self._log_rollout_data(dropped, {}, folder)
        tq.kv_clear(keys=dropped.keys, partition_id=dropped.partition_id)

    def _lengths(self, batch: KVBatchMeta, groups: Groups) -> Tensor | None:
        if self.pods.selection_rule not in NEEDS_LENGTHS:
            return None
        return groups.table([tag["response_len"] for tag in batch.tags], whole=True)

    def _check(self, batch: KVBatchMeta, groups: Groups, kept_rows: list[int]) -> None:
        most = max(map(len, groups.rows))
        if self.pods.num_kept < self.pods.num_rollouts and most <= self.pods.num_kept:
            logger.warning(
                "step %d: no prompt has more than %d rollouts, where %d were asked for; does the "
                "agent loop manager read __rollout_n__?",
                self.global_steps,
                most,
                self.pods.num_rollouts,
            )
        if not kept_rows:
            raise RuntimeError(
                f"step {self.global_steps}: of {len(batch)} rows no prompt has two rollouts with a "
                "reward, so nothing is left to train on; look at the reward function."
            )

    def _selection_seed(self) -> int:
        """One seed per update, the same after a resume; PODSTrainer's, which counts from 0."""
        place = self.global_steps - 1, self.local_trigger_step
        return random.Random("{}/{}/{}".format(self.pods.seed, *place)).getrandbits(62)


def _scores(batch: KVBatchMeta) -> list[float]:
    """The score of each row; it stands at one token of the response, zeros at the others."""
    data = tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"]
    )
    return [float(row.double().sum()) for row in data["rm_scores"].unbind()]


def _metrics(selection: Selection) -> dict[str, float]:
    """The policy over all n, the kept set, without numbers that this batch does not have."""
    numbers = reward_statistics(selection.rewards_PN) | selection.numbers()
    found = {f"pods/{name}": float(value) for name, value in numbers.items()}
    return {name: value for name, value in found.items() if value == value}


@register_trainer("pods_sync")
class PodsTrainerSync(PodsTrainer, PPOTrainerSync):
    """Mode `pods_sync`: all rollouts of a step come from the weights that it updates."""

    base_mode = "sync"


@register_trainer("pods_colocate_async")
class PodsTrainerColocateAsync(PodsTrainer, PPOTrainerColocateAsync):
    """Mode `pods_colocate_async`: unfinished rollouts go on after the update."""

    base_mode = "colocate_async"


@register_trainer("pods_separate_async")
class PodsTrainerSeparateAsync(PodsTrainer, PPOTrainerSeparateAsync):
    """Mode `pods_separate_async`: sampling has GPUs of its own."""

    base_mode = "separate_async"
