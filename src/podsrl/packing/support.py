"""Whether a model can be read packed: what is known to fail, then a test on twelve tokens."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from accelerate.utils.other import has_compiled_regions, is_compiled_module
from torch import Tensor, nn

from podsrl.packing.attention import (
    FLASH,
    SHARED_PREFIX,
    attention_inputs,
    use_shared_prefix,
)
from podsrl.packing.log_probs import packed_log_probs, unwrap
from podsrl.packing.masks import layer_windows
from podsrl.packing.pack import pack
from podsrl.packing.precision import computing_dtype

PACKABLE_ATTENTION = ("sdpa", SHARED_PREFIX, FLASH, "flex_attention", "eager")
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
FRAC_TOLERATED = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def packing_reason(model: nn.Module) -> str | None:
    """Why this model's update must stay with padded rows, or None if packed rows serve it.

    Models on sdpa are switched to `podsrl_sdpa` on the way, which computes the same (see
    `use_shared_prefix`). Then two prompts with three completions are read both ways; the mean
    difference of log-probs must be small against what exchanging the prompts does to them, so the
    bound holds for trained and for random weights. Three tiny forward passes, which every process
    must join; the outcome is the same on all.

    Args:
        model: as for `packed_log_probs`, in the precision and under the autocast it trains with.

    Example: "flash_attention_3 cannot let several completions share a prompt".
    """
    causal_lm = unwrap(model)
    reason = _known_reason(model, causal_lm)
    if reason is not None:
        return reason
    if causal_lm.config._attn_implementation == "sdpa":
        use_shared_prefix(causal_lm)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        reason = _difference(model, causal_lm)
    model.train(was_training)
    return reason


def _known_reason(model: nn.Module, causal_lm: Any) -> str | None:
    config, kind = causal_lm.config, type(causal_lm).__name__
    attention = config._attn_implementation
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if is_compiled_module(model) or has_compiled_regions(model):
        return "the model is compiled, and a compiled model does not see hooks added later"
    adapters = getattr(extract_model_from_parallel(model), "peft_config", {})
    if any(adapter.is_prompt_learning for adapter in adapters.values()):
        return "prompt learning puts virtual tokens before every row"
    if config.get_text_config() is not config:
        return f"{kind} reads more than text"
    if causal_lm._is_stateful or kinds - PACKABLE_LAYERS:
        return f"{kind} has layers that are not attention, or attend in chunks"
    if not causal_lm._supports_attention_backend:
        return f"{kind} does not use transformers' attention interface"
    if attention not in PACKABLE_ATTENTION:
        return f"{attention} cannot let several completions share a prompt"
    return None


def _difference(model: nn.Module, causal_lm: Any) -> str | None:
    # Rows 0 and 1 share a prompt, row 2 has a shorter one, and completions are of unequal length.
    prompts, mask = _count(causal_lm, 3, 3), torch.ones(3, 3, dtype=torch.long)
    prompts[1] = prompts[0]
    mask[2, 0] = 0
    mask, completions = mask.to(prompts.device), _count(causal_lm, 3, 4).flip(1)
    filled = torch.ones_like(completions)
    filled[1:, 3] = 0
    packed = pack(prompts, mask, completions, filled)
    attention = attention_inputs(causal_lm, packed)
    log_probs, _ = packed_log_probs(model, packed, attention=attention)
    # The test batch is shorter than most windows: not its values, but the masks that were asked for
    # tell whether each layer asks for its own.
    windows = set(layer_windows(causal_lm.config).values())
    if "shared_prefix" in attention and attention["shared_prefix"].windows != windows:
        return f"{type(causal_lm).__name__} does not tell its attention the sliding window"
    # The yardstick: how much log-probs move when each completion gets a wrong prompt.
    exchanged = _padded(model, prompts[[2, 2, 0]], mask[[2, 2, 0]], completions, filled)
    padded = _padded(model, prompts, mask, completions, filled)
    tolerated = FRAC_TOLERATED[_precision(causal_lm)] * (exchanged - padded).abs().mean()
    error = (log_probs - padded).abs().mean()
    if error <= tolerated:
        return None
    return (
        f"packed and padded log-probs of {type(causal_lm).__name__} differ by {error:.2g} nats "
        f"on a test batch, more than {tolerated:.2g}"
    )


def _count(causal_lm: Any, num_rows: int, length: int) -> Tensor:
    """Token ids spread over the vocabulary, the same on every process."""
    vocabulary = causal_lm.config.vocab_size
    ids = (torch.arange(1, num_rows * length + 1) * 7919 + length) % vocabulary
    return ids.view(num_rows, length).to(causal_lm.device)


def _padded(
    model: nn.Module, prompts: Tensor, prompt_mask: Tensor, completions: Tensor, filled: Tensor
) -> Tensor:
    """The padded path: TRL's call, (B, T)."""
    ids, mask = torch.cat([prompts, completions], 1), torch.cat([prompt_mask, filled], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : prompts.shape[1]] = -100
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    log_probs: Tensor = outputs.log_probs[:, -completions.shape[1] :]
    return log_probs


def _precision(causal_lm: Any) -> torch.dtype:
    dtype = computing_dtype(causal_lm.device, causal_lm.dtype)
    return torch.float32 if dtype == torch.float64 else dtype
