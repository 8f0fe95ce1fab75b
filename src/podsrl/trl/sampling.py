"""GRPOTrainer that samples with `podsrl.sampling.sample` where that serves the model."""

import itertools
import logging
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from podsrl.sampling.monitor import Monitor
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import can_sample, settings_from

logger = logging.getLogger(__name__)


class FastSampling(GRPOTrainer):
    """Replaces TRL's call of `generate` in training; vLLM and continuous batching stay TRL's.

    `args.fast_sampling` turns it on. A model or generation setting that the sampler does not
    serve exactly is sampled by TRL, with one warning that says why.
    """

    _sampling_fallback: str | None = None
    _monitor: Monitor | None = None

    def _generate_single_turn(  # type: ignore[no-untyped-def]
        self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False
    ):
        engine = self.use_vllm or self.use_transformers_continuous_batching
        if not self.model.training or engine or not self.args.fast_sampling:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        reason = self._why_generate()
        if reason is None:
            return self._sample_by_prompt(prompt_ids), None
        if self._sampling_fallback is None:
            logger.warning("sampling through TRL's generate, which is slower: %s", reason)
        self._sampling_fallback = reason
        return super()._generate_single_turn(
            prompt_ids, images, multimodal_fields, num_generations, has_tool_images
        )

    def _why_generate(self) -> str | None:
        """Why this run must sample through `generate`; None when our sampler serves it."""
        sharded = self.is_deepspeed_enabled and not self.args.ds3_gather_for_generation
        if self.is_fsdp_enabled or sharded:
            # Every step gathers weights from all processes, which end at different steps.
            return "the weights are sharded while sampling"
        policy = self.accelerator.unwrap_model(self.model)
        return can_sample(policy, self.generation_config)

    def _sample_by_prompt(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """One rollout per row; equal rows are neighbours and share the reading of their prompt."""
        runs = [(ids, len(list(rows))) for ids, rows in itertools.groupby(prompt_ids)]
        num_shared = math.gcd(*(count for _, count in runs))
        prompts = [ids for ids, count in runs for _ in range(count // num_shared)]
        with (
            self._unwrapped_policy() as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            rollouts = sample(
                model,
                prompts,
                num_shared,
                settings=settings_from(model, self.generation_config),
                autocast_dtype=self._autocast_dtype(),
                monitor=self._monitor,
            )
        return rollouts.completion_ids

    def _unwrapped_policy(self) -> AbstractContextManager[Any]:
        """The model that generates: out of its wrappers, its weights gathered where TRL does so."""
        return unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )

    def _autocast_dtype(self) -> torch.dtype | None:
        kinds: dict[Any, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return kinds.get(self.accelerator.mixed_precision)
