"""GRPOTrainer that replaces groups of equal rewards by other prompts before it selects."""

import random
from collections.abc import Iterator
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.combine import combine
from podsrl.trl.refill import Refilled, Rollouts, other_rows, refill


class Refilling(GRPOTrainer):
    """Draws other prompts for constant groups, when `args.refill_constant_groups` is above 0.

    `_refilled` takes what was sampled and gives what is to be selected from; `_refill_metrics`
    says what that took. The class that inherits samples and scores in `_sample_and_score`.
    """

    _refill: Refilled | None = None
    _first_rewards_per_func: Tensor | None = None

    def _check_can_refill(self) -> None:
        """Raise `ValueError` when refilling is on and the training set cannot be drawn from."""
        if self.args.refill_constant_groups and not isinstance(self.train_dataset, Dataset):
            raise ValueError(
                "refill_constant_groups draws rows of the training set by number, but it is a "
                f"{type(self.train_dataset).__name__}: pass a datasets.Dataset, or leave "
                "refill_constant_groups at 0."
            )

    def _refilled(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with constant groups replaced, as far as the rounds reached."""
        if not self.args.refill_constant_groups:
            return rollouts
        self._first_rewards_per_func = rollouts.rewards_per_func
        self._refill = refill(
            rollouts,
            num_rollouts=self.args.num_rollouts,
            num_rounds=self.args.refill_constant_groups,
            fresh_rows=self._fresh_rows(rollouts),
            sample=self._sample_and_score_apart,
            combined=self._combined,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        self._pending_extra_logs.clear()
        self._pending_extra_logs.update(self._refill.rollouts.extra_logs)
        return self._refill.rollouts

    def _first_rewards(self) -> Tensor | None:
        """Rewards (P, N, F) of this batch before refilling; None without it."""
        if self._refill is None or self._first_rewards_per_func is None:
            return None
        return self._first_rewards_per_func.unflatten(0, (-1, self.args.num_rollouts))

    def _refill_metrics(self) -> dict[str, Tensor]:
        if self._refill is None:
            return {}
        rewards = self._refill.rollouts.rewards_per_func.double()
        num_groups = len(rewards) // self.args.num_rollouts
        return {
            "pods/num_refill_rounds": rewards.new_tensor(self._refill.num_rounds),
            "pods/frac_groups_refilled": rewards.new_tensor(self._refill.num_groups / num_groups),
        }

    def _fresh_rows(self, rollouts: Rollouts) -> Iterator[dict[str, Any]]:
        """Other rows of the training set, with the columns that the data loader gives."""
        known = gather_object([row["prompt"] for row in rollouts.inputs[:: self.args.num_rollouts]])
        known += gather_object([rollouts.inputs[-1]["prompt"]])
        columns = list(rollouts.inputs[0])
        seed = random.Random(f"refill/{self._selection_seed()}").getrandbits(62)
        for row in other_rows(self.train_dataset, known, seed=seed):
            yield {column: row[column] for column in columns}

    def _sample_and_score_apart(self, inputs: list[dict[str, Any]]) -> Rollouts:
        """Sampled and scored, with columns that rewards log kept apart from those of before."""
        self._pending_extra_logs.clear()
        return self._sample_and_score(inputs)

    def _combined(self, rewards_PNF: Tensor) -> Tensor:
        return combine(
            rewards_PNF, self.reward_weights, aggregation=self.multi_objective_aggregation
        )

    def _selection_seed(self) -> int:
        raise NotImplementedError

    def _sample_and_score(self, inputs: list[dict[str, Any]]) -> Rollouts:
        raise NotImplementedError
