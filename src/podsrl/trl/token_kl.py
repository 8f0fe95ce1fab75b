"""GRPOTrainer that knows the policy's divergence from the reference over the whole vocabulary.

Shape letters: B kept rows, C columns, T completion tokens, H hidden size, V vocabulary, L tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import use_adapter

from podsrl.core.objectives.sequential_kl import Head, sequential_kl
from podsrl.packing.log_probs import unwrap

REFERENCE_HIDDEN = "objective_reference_hidden"
# Fields by which configurations scale logits. TRL applies them inside its fused head.
LOGIT_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class TokenDivergence(GRPOTrainer):
    """Keeps the hidden states behind log-probs where the objective needs the divergence.

    No pass is made for it: the states are those of the passes that compute log-probs, padded or
    packed. The reference's, of the kept rows, stay with the batch until it is used up; logits exist
    for a few tokens at a time (`sequential_kl`).
    """

    _hidden_BTH: Tensor

    def _tracks_divergence(self) -> bool:
        objective = self.args.get_objective()
        return objective is not None and objective.needs_token_kl

    def _check_token_divergence(self) -> None:
        """Raise for models whose logits could not be computed apart from the model's forward."""
        name = f"objective={self.args.objective!r}"
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotImplementedError(
                f"{name} reads the output layer outside of the model's forward pass, which is not "
                "supported with FSDP or DeepSpeed yet: train without them, or choose 'dpo'."
            )
        if self.args.sync_ref_model:
            raise NotImplementedError(
                f"{name} keeps hidden states of the reference while it is in use, so the reference "
                "must not change: set sync_ref_model=False."
            )
        causal_lm = unwrap(self.model)
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

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **options,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        compute = super()._get_per_token_logps_and_entropies
        options |= {"compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
        if not (self._tracks_divergence() and self.model.training):
            return compute(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **options
            )
        found, hidden = [], []
        # Each part in one pass, so that one set of hidden states belongs to it.
        size = batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with _outputs(unwrap(model).base_model) as outputs:
                found.append(compute(model, ids, mask, logits_to_keep, **options))
            # The last: a model's first pass is preceded by trials of whether packed rows serve it.
            states = outputs[-1].last_hidden_state
            hidden.append(completion_hidden(states, mask, logits_to_keep))
        # Without gradient, the pass of the reference is the last before the batch is used.
        self._hidden_BTH = torch.cat(hidden)
        log_probs, entropies, _ = zip(*found, strict=True)
        joined = None if entropies[0] is None else torch.cat(entropies)
        return torch.cat(log_probs), joined, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._tracks_divergence() and self.model.training:
            output[REFERENCE_HIDDEN] = self._hidden_BTH
            del self._hidden_BTH
        return output

    def _divergence_from_reference(self, inputs: dict[str, Any]) -> Tensor:
        """Sequential divergence of each row, after the policy's log-probs of the same rows."""
        policy_BTH = self._hidden_BTH
        del self._hidden_BTH
        return sequential_kl(
            policy_BTH,
            self._head(self.model),
            inputs[REFERENCE_HIDDEN],
            self._reference_head(),
            inputs["completion_mask"],
        )

    def _reference_head(self) -> Head:
        if self.ref_model is not None:
            return self._head(self.ref_model)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._head(model)

    def _head(self, model: Any) -> Head:
        in_float32 = self.args.cast_lm_head_to_fp32
        return lm_head(unwrap(model), self.temperature, in_float32=in_float32)


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
