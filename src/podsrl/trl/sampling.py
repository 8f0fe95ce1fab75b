"""Sampling with every prompt read once, where `podsrl.sampling.sample` serves the model."""

import itertools
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from podsrl.sampling.monitor import Monitor
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings, settings_or_reason
from podsrl.trl.sharded import whole_weights, why_not_whole

logger = logging.getLogger(__name__)


class PromptOnce:
    """Stands in for TRL's call of `generate` in training.

    A model or generation setting that the sampler does not serve exactly is left to TRL, with one
    warning that says why. vLLM and continuous batching are TRL's own.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self.fallback: str | None = None
        """Why the last rollouts were left to `generate`."""

    def __call__(
        self, prompt_ids: list[list[int]], monitor: Monitor | None = None
    ) -> list[list[int]] | None:
        """Completion ids of one rollout per row; None where they are to come from `generate`."""
        settings = settings_or_why_generate(self.host)
        if isinstance(settings, str):
            if self.fallback is None:
                logger.warning("sampling through TRL's generate, which is slower: %s", settings)
            self.fallback = settings
            return None
        # Equal rows are neighbours and share the reading of their prompt. The sampler takes one
        # number of rollouts for all prompts, so groups of other sizes are cut into equal parts.
        runs = [(ids, len(list(rows))) for ids, rows in itertools.groupby(prompt_ids)]
        num_shared = math.gcd(*(count for _, count in runs))
        prompts = [ids for ids, count in runs for _ in range(count // num_shared)]
        with (
            unwrapped_policy(self.host) as model,
            self.host._dist.summon_full_params(self.host.model_wrapped, recurse=False),
            whole_weights(self.host) if self.host.is_fsdp_enabled else nullcontext(),
        ):
            rollouts = sample(
                model,
                prompts,
                num_shared,
                settings=settings,
                autocast_dtype=autocast_dtype(self.host),
                monitor=monitor,
            )
        return rollouts.completion_ids


def settings_or_why_generate(host: GRPOTrainer) -> SamplingSettings | str:
    """What our sampler is to do, or why a run must sample through `generate` instead."""
    if host.is_deepspeed_enabled and not host.args.ds3_gather_for_generation:
        # Every step gathers weights from all processes, which end at different steps.
        return "the weights are sharded while sampling"
    if host.is_fsdp_enabled and (reason := why_not_whole(host)):
        return reason
    policy = host.accelerator.unwrap_model(host.model)
    return settings_or_reason(policy, host.generation_config)


def unwrapped_policy(host: GRPOTrainer) -> AbstractContextManager[Any]:
    """The model that generates: out of its wrappers, its weights gathered where TRL does so."""
    return unwrap_model_for_generation(
        host.model_wrapped,
        host.accelerator,
        gather_deepspeed3_params=host.args.ds3_gather_for_generation,
        generation_kwargs=host.generation_kwargs,
        gradient_checkpointing_kwargs=host.args.gradient_checkpointing_kwargs,
    )


def autocast_dtype(host: GRPOTrainer) -> torch.dtype | None:
    """The precision in which the host's model computes; None for that of its weights."""
    kinds: dict[Any, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return kinds.get(host.accelerator.mixed_precision)
