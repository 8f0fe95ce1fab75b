"""The policy's divergence from the reference over the whole vocabulary.

Shape letters: B kept rows, C columns, T completion tokens, H hidden size, V vocabulary, L tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from podsrl.core.objectives.end_tokens import end_log_probs
from podsrl.core.objectives.sequential_kl import Head, sequential_kl
from podsrl.packing.log_probs import unwrap

# Fields by which configurations scale logits. TRL applies them inside its fused head.
LOGIT_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class TokenDivergence:
    """Keeps the hidden states behind log-probs.

    No pass is made for it: the states are those of the passes that compute log-probs, padded or
    packed. The reference's, of the kept rows, stay with the batch until it is used up; logits exist
    for a few tokens at a time (`sequential_kl`).
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self._hidden_BTH: Tensor | None = None

    def log_probs(
        self,
        compute: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `compute` gives, whose hidden states `pop_hidden` then has.

        compute: with the arguments of GRPOTrainer._get_per_token_logps_and_entropies.
        """
        found, hidden = [], []
        # Each part in one pass, so that one set of hidden states belongs to it.
        size = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with _outputs(unwrap(model).base_model) as outputs:
                found.append(compute(model, ids, mask, logits_to_keep, **options))
            # The last: a model's first pass is preceded by trials of whether packed rows serve it.
            states = outputs[-1].last_hidden_state
            hidden.append(completion_hidden(states, mask, logits_to_keep))
        self._hidden_BTH = torch.cat(hidden)
        log_probs, entropies, _ = zip(*found, strict=True)
        joined = None if entropies[0] is None else torch.cat(entropies)
        return torch.cat(log_probs), joined, None

    def pop_hidden(self) -> Tensor:
        """Hidden states (B, T, H) of the last pass; of a scored batch, that is the reference's."""
        assert self._hidden_BTH is not None
        hidden_BTH, self._hidden_BTH = self._hidden_BTH, None
        return hidden_BTH

    def divergence(self, reference_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Sequential divergence of each row, after the policy's log-probs of the same rows."""
        return sequential_kl(
            self.pop_hidden(),
            self._head(self.host.model),
            reference_BTH,
            self._reference_head(),
            mask_BT,
        )

    def end_log_probs(self, reference_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs of an end in each token's place, of policy and reference, (B, T) each.

        After the policy's log-probs of the same rows; the reference's without gradient.
        """
        ends_E = torch.tensor(self.host.eos_token_ids, device=mask_BT.device)
        with torch.no_grad():
            of_reference = end_log_probs(reference_BTH, self._reference_head(), ends_E, mask_BT)
        policy = self._head(self.host.model)
        return end_log_probs(self.pop_hidden(), policy, ends_E, mask_BT), of_reference

    def _reference_head(self) -> Head:
        host = self.host
        if host.ref_model is not None:
            return self._head(host.ref_model)
        model = host.accelerator.unwrap_model(host.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._head(model)

    def _head(self, model: Any) -> Head:
        in_float32 = self.host.args.cast_lm_head_to_fp32
        return lm_head(unwrap(model), self.host.temperature, in_float32=in_float32)


def completion_hidden(hidden: Tensor, attention_mask_BC: Tensor, num_completion: int) -> Tensor:
    """Hidden states that predict each completion token, (B, T, H), from a backbone's output.

    Args:
        hidden: (B, C, H) of padded rows, or (1, K, H) of the completion tokens of packed rows.
        attention_mask_BC: of the padded rows.
        num_completion: T, columns at the end that are completions.

    Places of padding hold anything. Packed states are put back in one copy.
    """
    if hidden.shape[:2] == attention_mask_BC.shape:
        return hidden[:, -num_completion - 1 : -1]
    mask_BT = attention_mask_BC[:, -num_completion:]
    place_K = mask_BT.flatten().nonzero().squeeze(1)
    flat = hidden.new_zeros(mask_BT.numel(), hidden.shape[-1]).index_copy(0, place_K, hidden[0])
    return flat.unflatten(0, mask_BT.shape)


def lm_head(causal_lm: Any, temperature: float, *, in_float32: bool = False) -> Head:
    """Hidden states to the logits that TRL's log-probs come from, with gradients of the layer."""
    layer = causal_lm.get_output_embeddings()
    weight, bias = layer.weight, layer.bias
    cap = getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None)

    def logits(hidden_LH: Tensor) -> Tensor:
        device = hidden_LH.device.type
        with torch.autocast(device, enabled=False) if in_float32 else nullcontext():
            logits_LV = F.linear(hidden_LH.to(weight.dtype), weight, bias).float()
        if cap is not None:
            logits_LV = cap * torch.tanh(logits_LV / cap)
        return logits_LV / temperature

    return logits


@contextmanager
def _outputs(backbone: nn.Module) -> Iterator[list[Any]]:
    """The outputs of the backbone's calls, as they are when its other hooks are done with them."""
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)

    handle = backbone.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def refuse_hidden(host: GRPOTrainer) -> None:
    """Raise for models whose logits could not be computed apart from the model's forward."""
    name = f"objective={host.args.objective!r}"
    if host.is_fsdp_enabled or host.is_deepspeed_enabled:
        raise NotImplementedError(
            f"{name} reads the output layer outside of the model's forward pass, which is not "
            "supported with FSDP or DeepSpeed yet: train without them, or choose 'dpo'."
        )
    if host._is_vlm:
        raise NotImplementedError(
            f"{name} reads hidden states of text, not of images: choose 'dpo', or pass a tokenizer "
            "as processing_class to train on text alone."
        )
    if host.args.sync_ref_model:
        raise NotImplementedError(
            f"{name} keeps hidden states of the reference while it is in use, so the reference "
            "must not change: set sync_ref_model=False."
        )
    causal_lm = unwrap(host.model)
    if not isinstance(causal_lm.get_output_embeddings(), nn.Linear):
        raise NotImplementedError(
            f"{name} needs a plain linear output layer, but this model's is a "
            f"{type(causal_lm.get_output_embeddings()).__name__}: leave it out of the "
            "adapter's modules, or choose 'dpo'."
        )
    config = causal_lm.config.get_text_config()
    scales = [each for each in LOGIT_SCALES if getattr(config, each, None) not in (None, 1.0)]
    if scales:
        raise NotImplementedError(
            f"{name} does not serve models that scale their logits ({scales[0]} of the model's "
            f"configuration is {getattr(config, scales[0])}) yet: choose 'dpo'."
        )
