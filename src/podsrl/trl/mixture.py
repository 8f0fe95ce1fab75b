"""Rollouts that several models write token by token (Collab), in the places of the policy's own.

Shape letters: P prompts, N sampled rollouts.
"""

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.selection import Selection
from podsrl.models import load_model, load_tokenizer
from podsrl.probe.head import Head, load_prefix_heads
from podsrl.sampling.mixture import AGREED, Agent, Mixed, decode_mixture
from podsrl.sampling.settings import SamplingSettings, settings_or_reason
from podsrl.trl.mixture_checks import POLICY, num_mixed
from podsrl.trl.needs import refuse_cases
from podsrl.trl.records import brought_by
from podsrl.trl.sampling import (
    PromptOnce,
    autocast_dtype,
    in_groups,
    settings_or_why_generate,
    unwrapped_policy,
)

Sampled = tuple[list[list[int]], list[list[float]] | None]


def sampler_of(host: GRPOTrainer) -> "PromptOnce | WithMixture":
    """What samples in generate's place: the policy, or it and a mixture."""
    policy = PromptOnce(host)
    return WithMixture(host, policy) if host.args.rollout_mixture else policy


class WithMixture:
    """Samples by the policy alone, and the last places of each group by the mixture.

    All models of the mixture draw with the settings of the policy and with the same random numbers
    (`decode_mixture`). A head is checked against the policy as it is before training; it is not
    fitted anew as the policy moves away from there.
    """

    def __init__(self, host: GRPOTrainer, policy: PromptOnce) -> None:
        self.host, self.policy = host, policy
        self.num_mixed, self.num_rollouts = num_mixed(host.args), host.args.num_rollouts
        told = host.args.rollout_mixture
        self.number_of_policy = [each["model"] for each in told].index(POLICY)
        self.heads = load_prefix_heads([each["head"] for each in told])
        self.models = [_model(host, *each) for each in zip(told, self.heads, strict=True)]
        self.heads = [head.to(host.accelerator.device) for head in self.heads]
        self.written: list[Mixed] = []
        """Since metrics were asked for last."""

    @property
    def fallback(self) -> str | None:
        """Why the policy's last rollouts were left to `generate`."""
        return self.policy.fallback

    def __call__(self, prompt_ids: list[list[int]], *more: Any) -> Sampled | None:
        """Token ids of one rollout per row, as of `PromptOnce`; there are no log-probs.

        more: as `PromptOnce` takes it; for the rows of the policy alone.
        """
        batch = self.host.batch
        # Not while the reference samples, which it does once the policy's are chosen.
        if batch is None or batch.selection is not None:
            return self.policy(prompt_ids, *more)
        settings = settings_or_why_generate(self.host)
        if isinstance(settings, str):
            raise RuntimeError(f"rollout_mixture cannot write any more: {settings}")
        first_mixed = self.num_rollouts - self.num_mixed
        rows = range(len(prompt_ids))
        own = [row for row in rows if row % self.num_rollouts < first_mixed]
        mixed = [row for row in rows if row % self.num_rollouts >= first_mixed]
        completion_ids: list[list[int]] = [[]] * len(prompt_ids)
        if own:
            sampled = self.policy([prompt_ids[row] for row in own], *more)
            assert sampled is not None  # the settings are served
            for row, ids in zip(own, sampled[0], strict=True):
                completion_ids[row] = ids
        written = self._write([prompt_ids[row] for row in mixed], settings)
        for row, each in zip(mixed, written, strict=True):
            completion_ids[row] = each.token_ids
        self.written += written
        return completion_ids, None

    def _write(self, prompt_ids: list[list[int]], settings: SamplingSettings) -> list[Mixed]:
        prompts, num_shared = in_groups(prompt_ids)
        with unwrapped_policy(self.host) as policy:
            agents = [
                Agent(policy if model is None else model, head.about.layer, head.score)
                for model, head in zip(self.models, self.heads, strict=True)
            ]
            return decode_mixture(
                agents,
                prompts,
                settings,
                num_rollouts=num_shared,
                autocast_dtype=autocast_dtype(self.host),
            )[0]

    def metrics(self, selection: Selection) -> dict[str, Tensor]:
        """What the mixture brought, by the names of docs/metrics.md, since they were asked last.

        A success is a rollout to which the first reward function gives more than 0.
        """
        owners = [owner for each in self.written for owner in each.chosen]
        self.written = []
        others = [owner not in (AGREED, self.number_of_policy) for owner in owners]
        sizes = (self.num_rollouts - self.num_mixed, self.num_mixed)
        of_policy, of_mixture = brought_by(selection, sizes)
        found = {
            "mixture/frac_tokens_agreed": torch.tensor(owners.count(AGREED) / len(owners)),
            "mixture/frac_tokens_other": torch.tensor(sum(others) / len(owners)),
            "mixture/frac_kept": of_mixture[0],
        }
        for name, (_, success, num_scored) in {"": of_mixture, "_of_policy": of_policy}.items():
            if num_scored > 0:
                found[f"mixture/frac_success{name}"] = success
        device = selection.kept_PN.device
        return {name: number.double().to(device) for name, number in found.items()}


def refuse_mixture(host: GRPOTrainer) -> None:
    """Raise `NotImplementedError` for models and processes that a mixture does not serve."""
    reason = settings_or_why_generate(host)
    cases = {
        "several processes": host.accelerator.num_processes > 1,
        "FSDP or DeepSpeed": host.is_fsdp_enabled or host.is_deepspeed_enabled,
        "models that read images": host._is_vlm,
        "adapters, as its head is known by the weights alone": hasattr(host.model, "peft_config"),
        f"what our sampler does not serve ({reason})": isinstance(reason, str),
    }
    cases = {f"{what} yet": holds for what, holds in cases.items()}
    refuse_cases("rollout_mixture does not serve", cases, "leave rollout_mixture out.")


def _model(host: GRPOTrainer, told: dict[str, str], head: Head) -> Any:
    """A model of the mixture, as precise as the policy and beside it; None for the policy.

    Raises `ValueError` for one with other tokens, that the sampler does not serve, or that is not
    the head's.
    """
    policy, name = host.accelerator.unwrap_model(host.model), told["model"]
    if name == POLICY:
        head.check(policy)
        return None
    _refuse_other_tokens(host._tokenizer, load_tokenizer(name), name)
    model: Any = load_model(name, dtype=str(policy.dtype).removeprefix("torch."))
    if isinstance(reason := settings_or_reason(model, host.generation_config), str):
        raise ValueError(f"rollout_mixture cannot be written with {name}: {reason}")
    head.check(model)
    return model.to(host.accelerator.device).requires_grad_(False)


def _refuse_other_tokens(own: Any, other: Any, name: str) -> None:
    what = None
    if other.get_vocab() != own.get_vocab():
        what = f"its {len(other)} tokens are not the policy's {len(own)}"
    elif other.eos_token_id != own.eos_token_id:
        what = "its answers end with another token"
    elif other.chat_template != own.chat_template:
        what = "its chat template makes other tokens of the questions"
    if what is not None:
        raise ValueError(
            f"models of a mixture take turns token by token, but of {name} {what}: take models "
            "that were trained from the same one"
        )
