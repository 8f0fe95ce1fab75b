"""Sampling with every prompt read once, where `podsrl.sampling.sample` serves the model."""

import itertools
import logging
import math
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import use_adapter

from podsrl.sampling.monitor import Monitor
from podsrl.sampling.sample import SampledRollouts, sample
from podsrl.sampling.settings import SamplingSettings, settings_or_reason
from podsrl.trl.sharded import whole_weights, why_not_whole

logger = logging.getLogger(__name__)


class Sampler(NamedTuple):
    """Who samples a rollout: a temperature, and the LoRA adapter of a follower."""

    temperature: float
    adapter: str | None = None
    """None: the policy's own."""


class PromptOnce:
    """Stands in for TRL's call of `generate` in training.

    A model or generation setting that the sampler does not serve exactly is left to TRL, with one
    warning that says why. vLLM and continuous batching are TRL's own.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self.fallback: str | None = None
        """Why the last rollouts were left to `generate`."""
        self.tap_layers: list[int] = []
        """Layers whose states at the rollouts' ends are kept, see `podsrl.sampling.tap`."""
        self.states_BDH = torch.empty(0)
        """Of the last rollouts, one per row."""

    def __call__(
        self,
        prompt_ids: list[list[int]],
        monitor: Monitor | None = None,
        samplers: list[Sampler] | None = None,
    ) -> tuple[list[list[int]], list[list[float]] | None] | None:
        """Token ids and log-probs of one rollout per row; None where `generate` is to sample.

        samplers: of each row; None: the policy itself. Then there are no log-probs, otherwise
            those of the sampler that drew the token, NaN in rows of the policy itself.
        """
        settings = settings_or_why_generate(self.host)
        if isinstance(settings, str):
            if samplers is not None:
                raise RuntimeError(f"behaviours cannot be sampled any more: {settings}")
            if self.fallback is None:
                logger.warning("sampling through TRL's generate, which is slower: %s", settings)
            self.fallback = settings
            return None
        rows_of = defaultdict(list)
        own = Sampler(settings.temperature)
        for row, each in enumerate(samplers or [own] * len(prompt_ids)):
            rows_of[each].append(row)
        completion_ids: list[list[int]] = [[]] * len(prompt_ids)
        log_probs: list[list[float]] = [[]] * len(prompt_ids)
        states: list[Tensor] = [torch.empty(0)] * len(prompt_ids)
        with (
            unwrapped_policy(self.host) as model,
            self.host._dist.summon_full_params(self.host.model_wrapped, recurse=False),
            whole_weights(self.host) if self.host.is_fsdp_enabled else nullcontext(),
        ):
            for sampler, rows in rows_of.items():
                is_own = sampler == own
                with use_adapter(model, sampler.adapter) if sampler.adapter else nullcontext():
                    found = self._sample(
                        model,
                        [prompt_ids[row] for row in rows],
                        settings if is_own else replace(settings, temperature=sampler.temperature),
                        monitor,
                        return_log_probs=not is_own,
                    )
                known = found.log_probs or [[math.nan] * len(ids) for ids in found.completion_ids]
                for i, row in enumerate(rows):
                    completion_ids[row], log_probs[row] = found.completion_ids[i], known[i]
                    if found.states is not None:
                        states[row] = found.states.last_BDH[i]
        self.states_BDH = torch.stack(states)
        return completion_ids, None if samplers is None else log_probs

    def _sample(
        self,
        model: Any,
        prompt_ids: list[list[int]],
        settings: SamplingSettings,
        monitor: Monitor | None,
        *,
        return_log_probs: bool,
    ) -> SampledRollouts:
        prompts, num_shared = in_groups(prompt_ids)
        return sample(
            model,
            prompts,
            num_shared,
            settings=settings,
            autocast_dtype=autocast_dtype(self.host),
            monitor=monitor,
            return_log_probs=return_log_probs,
            tap_layers=self.tap_layers,
        )


def in_groups(prompt_ids: list[list[int]]) -> tuple[list[list[int]], int]:
    """The prompts to read, in the order of the rows, and how many rows each of them serves.

    Equal rows are neighbours and share the reading of their prompt. A sampler takes one number of
    rollouts for all prompts, so groups of other sizes are cut into equal parts.

    Example: rows of prompts a, a, a, a, b, b are two rollouts of each of a, a and b.
    """
    runs = [(ids, len(list(rows))) for ids, rows in itertools.groupby(prompt_ids)]
    num_shared = math.gcd(*(count for _, count in runs))
    return [ids for ids, count in runs for _ in range(count // num_shared)], num_shared


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
