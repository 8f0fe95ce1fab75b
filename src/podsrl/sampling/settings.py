"""What to sample, and whether our sampler serves it: settings read from a generation config.

Shape letters: P prompts, N rollouts per prompt, B flat rows, T tokens, V vocabulary.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from podsrl.sampling.cache import refuse_cache

ATTENTION = ("sdpa", "eager", "podsrl_sdpa")

# Fields of a generation config that we implement, or that change nothing unless another field is
# set that we refuse: `max_cache_len` and `disable_compile` speak of static caches, `early_stopping`
# of beams, `low_memory` of contrastive search, the assistant's of an assistant. What `generate`
# would return beside the tokens is thrown away by whoever calls us.
SERVED = {
    "max_new_tokens", "max_length", "do_sample", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id",
    "max_cache_len", "disable_compile", "output_attentions", "output_hidden_states",
    "output_scores", "output_logits", "return_dict_in_generate", "transformers_version",
    "low_memory", "renormalize_logits", "early_stopping", "length_penalty",
    "continuous_batching_config", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size",
}  # fmt: skip

# By these names checkpoints (Gemma's) say what layers they have; no user asks for anything by them.
LAYER_KINDS = ("hybrid", "hybrid_chunked", "sliding_window")

# Other fields change nothing when None, False, empty, or this value.
NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "num_beam_groups": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
}

# How tokens are computed: what is as we do it, anyway or when nothing is said.
OUR_WAY: dict[str, tuple[Any, ...]] = {
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
}


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn and where a rollout ends; same meaning as in `generate`."""

    max_new_tokens: int
    """Most tokens a rollout may have, its end token included."""
    eos_token_ids: tuple[int, ...]
    """Each of these ends a rollout; empty: every rollout runs to `max_new_tokens`."""
    pad_token_id: int
    """Fills rows of unequal length inside the sampler; never part of a result."""
    do_sample: bool = True
    """False: the most likely token each time, and temperature and cuts are ignored."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """Draw from this many most likely tokens (and ties of the last); 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens whose probabilities reach it; 1: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this times as likely as the likeliest; 0: from all."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen in prompt or rollout."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(self.temperature > 0, "temperature", self.temperature, "above 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(0 <= self.top_p <= 1, "top_p", self.top_p, "in 0..1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "in 0..1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "> 0")


def _require(holds: bool, name: str, value: object, bound: str) -> None:
    if not holds:
        remedy = "; for greedy decoding set do_sample=False" if name == "temperature" else ""
        raise ValueError(f"{name}={value} must be {bound}{remedy}")


def effective_config(
    model: PreTrainedModel, generation_config: GenerationConfig
) -> GenerationConfig:
    """The config with what it leaves open filled from the model's own, as `generate` fills it."""
    config = copy.deepcopy(generation_config)
    config.update(**model.generation_config.to_dict(), defaults_only=True)
    return config


def settings_from(model: PreTrainedModel, generation_config: GenerationConfig) -> SamplingSettings:
    """The settings that `model.generate(generation_config=generation_config)` would follow.

    Fields left open are filled from `model.generation_config` and then from the defaults of
    `generate` (where top_k is 50). Check `can_sample` first: fields that we do not implement
    are not looked at here.

    Raises `ValueError` when no `max_new_tokens` is given or a value is out of bounds.
    Example: `GenerationConfig(max_new_tokens=8, do_sample=True, eos_token_id=[1, 2])` gives
    `SamplingSettings(8, (1, 2), pad_token_id=1, do_sample=True, top_k=50)`.
    """
    config = effective_config(model, generation_config)
    if config.max_new_tokens is None:
        raise ValueError("max_new_tokens=None must be a number; set it in the generation config")
    eos = config.eos_token_id
    eos_token_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    pad = config.pad_token_id
    return SamplingSettings(
        config.max_new_tokens,
        eos_token_ids,
        pad if pad is not None else eos_token_ids[0] if eos_token_ids else 0,
        do_sample=bool(config.do_sample),
        temperature=_or(config.temperature, 1.0),
        top_k=_or(config.top_k, 50),
        top_p=_or(config.top_p, 1.0),
        min_p=_or(config.min_p, 0.0),
        repetition_penalty=_or(config.repetition_penalty, 1.0),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def settings_or_reason(
    model: PreTrainedModel, generation_config: GenerationConfig
) -> SamplingSettings | str:
    """What to sample, or the reason of `can_sample` why our sampler does not serve it."""
    return can_sample(model, generation_config) or settings_from(model, generation_config)


def can_sample(model: PreTrainedModel, generation_config: GenerationConfig) -> str | None:
    """None when `sample` serves this model and config exactly, else the reason it does not.

    model: a transformers causal language model, or a PEFT model around one.
    A setting that asks for another way to the same tokens (a static or quantized cache, compiled
    steps, a prompt read in chunks, no cache) is a reason too: only `generate` follows it.
    Example: a config with `num_beams=4` gives "num_beams=4 is not implemented".
    """
    config = effective_config(model, generation_config)
    if config.cache_implementation in LAYER_KINDS:
        config.cache_implementation = generation_config.cache_implementation
    return _refuse_model(model) or _refuse_config(config)


def _refuse_model(model: Any) -> str | None:
    """The reason why this model cannot be decoded row by row with our cache, or None."""
    prompt_learning = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", 0)
    if prompt_learning:
        return "PEFT prompt learning puts virtual tokens before the prompt"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.is_encoder_decoder:
        return f"{base.config.model_type} is an encoder-decoder model"
    if base.config.get_text_config() is not base.config:
        return f"{base.config.model_type} takes more than text"
    # What `sample` passes: a model without position_ids would count padding as positions.
    wanted = {"past_key_values", "position_ids", "logits_to_keep"}
    if missing := wanted - set(inspect.signature(base.forward).parameters):
        return f"{type(base).__name__}.forward does not take {', '.join(sorted(missing))}"
    if base.config._attn_implementation not in ATTENTION:
        return f"attention {base.config._attn_implementation} is not among {', '.join(ATTENTION)}"
    # Rows are retired by indices on one device.
    if len(set(getattr(base, "hf_device_map", {"": 0}).values())) > 1:
        return "the model's layers lie on several devices"
    return refuse_cache(base.config)


def _refuse_config(config: GenerationConfig) -> str | None:
    """The first field that is set to something we do not implement, or None."""
    for name, value in config.to_dict().items():
        neutral = value in (None, False, [], {}) or value == NEUTRAL.get(name)
        if name in OUR_WAY:
            neutral = value in OUR_WAY[name]
        if name not in SERVED and not name.startswith("_") and not neutral:
            return f"{name}={value} is not implemented"
    return None
