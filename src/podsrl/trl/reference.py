"""Rewards of the reference policy's own rollouts, sampled once per prompt.

Shape letters: P prompts, K rollouts of the reference per prompt.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from podsrl.core.combine import combine
from podsrl.trl.clock import PhaseClock

FILE = "reference_rewards.json"


def row_key(row: dict[str, Any]) -> str:
    """Names a row of the data set by all of its columns, as rewards may depend on any."""
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class ReferenceRewards(GRPOTrainer):
    """Samples `args.num_reference_rollouts` from the reference when a prompt is first seen.

    The reference is TRL's: the model that training began with, or the model under the adapter. Its
    rewards never change, so they are kept for the whole run and written into checkpoints. The time
    that this takes counts as sampling; its rollouts count in no metric but the number of tokens.
    """

    clock: PhaseClock
    model_wrapped: Any
    _reference_rewards: dict[str, list[float]]

    def _check_reference_sampling(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotImplementedError(
                f"objective={self.args.objective!r} samples from the reference model, which is not "
                "supported with FSDP or DeepSpeed yet: train without them, or choose an objective "
                "that needs no rewards of the reference, such as 'agro'."
            )
        if self.use_transformers_continuous_batching:
            raise NotImplementedError(
                f"objective={self.args.objective!r} samples from the reference model, which "
                "continuous batching does not: set use_transformers_continuous_batching=False."
            )

    def _rewards_of_reference(self, rows: list[dict[str, Any]]) -> Tensor:
        """Rewards (P, K) of the reference. Every process must call it, with the same rows.

        Args:
            rows: the data set's rows of the prompts of all processes.
        """
        known = self.__dict__.setdefault("_reference_rewards", {})
        distinct = {row_key(row): row for row in rows}
        missing = [row for key, row in distinct.items() if key not in known]
        if missing:
            with self.clock.phase("sampling"), self._metrics_kept(), self._reference_as_policy():
                rewards_PK = self._sample_reference(missing)
            for row, rewards_K in zip(missing, rewards_PK.tolist(), strict=True):
                known[row_key(row)] = rewards_K
        found = [known[row_key(row)] for row in rows]
        return torch.tensor(found, device=self.accelerator.device)

    def _sample_reference(self, rows: list[dict[str, Any]]) -> Tensor:
        """Rewards of K rollouts for each of the rows, which all processes share out."""
        num_rollouts, num_processes = (
            self.args.num_reference_rollouts,
            self.accelerator.num_processes,
        )
        share = -(-len(rows) // num_processes)
        # TRL gathers rewards, so that all processes must score equally many.
        filled = rows + rows[:1] * (share * num_processes - len(rows))
        first = self.accelerator.process_index * share
        inputs = [row for row in filled[first : first + share] for _ in range(num_rollouts)]
        prompts = [row["prompt"] for row in inputs]
        # The next class in line: PODSTrainer's own methods would select from these rollouts.
        generated = super()._generate(prompts)
        rewards = super()._calculate_rewards(inputs, prompts, generated[3], generated[1])
        rewards_PKF = rewards.unflatten(0, (-1, num_rollouts))
        return combine(rewards_PKF, self.reward_weights)[: len(rows)]

    @contextmanager
    def _reference_as_policy(self) -> Iterator[None]:
        """What samples from `model_wrapped` samples from the reference."""
        if self.ref_model is None:
            model = self.accelerator.unwrap_model(self.model)
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                yield
            return
        policy, self.model_wrapped = self.model_wrapped, self.ref_model
        try:
            yield
        finally:
            self.model_wrapped = policy

    @contextmanager
    def _metrics_kept(self) -> Iterator[None]:
        """What TRL and the rewards log meanwhile is dropped: it is about the policy."""
        logs = (self._metrics["train"], self._pending_metrics, self._pending_extra_logs)
        before = [{name: list(values) for name, values in log.items()} for log in logs]
        try:
            yield
        finally:
            for log, values in zip(logs, before, strict=True):
                log.clear()
                log.update(values)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        known = self.__dict__.get("_reference_rewards")
        if known and self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            path = Path(self._get_output_dir(trial=trial)) / folder / FILE
            path.write_text(json.dumps(known))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint) / FILE).exists():
            self._reference_rewards = json.loads(path.read_text())
