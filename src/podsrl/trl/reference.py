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
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from podsrl.core.combine import combine
from podsrl.trl.clock import PhaseClock
from podsrl.trl.sample_and_score import metrics_kept, prepared_prompts

FILE = "reference_rewards.json"


def row_key(row: dict[str, Any]) -> str:
    """Names a row of the data set by all of its columns, as rewards may depend on any."""
    text = json.dumps(row, sort_keys=True, default=_text)
    return hashlib.sha256(text.encode()).hexdigest()


def _text(value: Any) -> str:
    """What JSON has no form for; an image by its pixels, as its text names where it lies."""
    return value.tobytes().hex() if hasattr(value, "tobytes") else str(value)


class ReferenceRewards:
    """Samples `args.num_reference_rollouts` from the reference when a prompt is first seen.

    The reference is TRL's: the model that training began with, or the model under the adapter. Its
    rewards never change, so they are kept for the whole run and written into checkpoints. The time
    that this takes counts as sampling; its rollouts count in no metric but the number of tokens.
    """

    def __init__(self, host: GRPOTrainer, clock: PhaseClock) -> None:
        self.host, self.clock = host, clock
        self.known: dict[str, list[float]] = {}
        """Rewards of the reference's rollouts, by `row_key`."""

    def rewards(self, rows: list[dict[str, Any]]) -> Tensor:
        """Rewards (P, K) of the reference. Every process must call it, with the same rows.

        Args:
            rows: the data set's rows of the prompts of all processes.
        """
        distinct = {row_key(row): row for row in rows}
        missing = [row for key, row in distinct.items() if key not in self.known]
        if missing:
            self.clock.begin("sampling")
            with metrics_kept(self.host), self._reference_as_policy():
                rewards_PK = self._sample(missing)
            self.clock.begin(None)
            for row, rewards_K in zip(missing, rewards_PK.tolist(), strict=True):
                self.known[row_key(row)] = rewards_K
        found = [self.known[row_key(row)] for row in rows]
        return torch.tensor(found, device=self.host.accelerator.device)

    def save(self, checkpoint: Path) -> None:
        """Write what is known into a checkpoint's folder."""
        if self.known:
            (checkpoint / FILE).write_text(json.dumps(self.known))

    def load(self, checkpoint: Path) -> None:
        """Read what an earlier process knew; nothing where it wrote nothing."""
        if (checkpoint / FILE).exists():
            self.known = json.loads((checkpoint / FILE).read_text())

    def _sample(self, rows: list[dict[str, Any]]) -> Tensor:
        """Rewards of K rollouts for each of the rows, which all processes share out."""
        host, num_rollouts = self.host, self.host.args.num_reference_rollouts
        num_processes = host.accelerator.num_processes
        share = -(-len(rows) // num_processes)
        # TRL gathers rewards, so that all processes must score equally many.
        filled = rows + rows[:1] * (share * num_processes - len(rows))
        first = host.accelerator.process_index * share
        inputs = [dict(row) for row in filled[first : first + share] for _ in range(num_rollouts)]
        prompts = prepared_prompts(host, inputs)
        # TRL's methods, not the host's own: those would select from these rollouts.
        generated = GRPOTrainer._generate(host, prompts)
        rewards = GRPOTrainer._calculate_rewards(host, inputs, prompts, generated[3], generated[1])
        rewards_PKF = rewards.unflatten(0, (-1, num_rollouts))
        return combine(rewards_PKF, host.reward_weights)[: len(rows)]

    @contextmanager
    def _reference_as_policy(self) -> Iterator[None]:
        """What samples from `model_wrapped` samples from the reference."""
        host = self.host
        if host.ref_model is None:
            model = host.accelerator.unwrap_model(host.model)
            with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
                yield
            return
        policy, host.model_wrapped = host.model_wrapped, host.ref_model
        try:
            yield
        finally:
            host.model_wrapped = policy
