"""Tiny random models, a character tokenizer and countable rewards, shared by the tests."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL = ["<pad>", "<eos>", "<bos>"]
CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyz."
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }} {{ message['content'] }}."
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

FAMILIES: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 8,
        },
    ),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A character tokenizer with 45 tokens and a one-letter-per-role chat template."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    fast.padding_side = "left"
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random two-layer model of the family; weights larger than usual so that tokens differ."""
    torch.manual_seed(seed)
    model_class, config_class, extra = FAMILIES[family]
    config = config_class(**{**SIZES, "initializer_range": 0.3, **extra, **changes})
    return model_class(config)


def save_tiny(folder: Path, family: str = "llama", **changes: Any) -> str:
    """Write a tiny model and its tokenizer to the folder and return its path."""
    make_model(family, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def text_of(completion: Any) -> str:
    """The text of a completion, conversational or plain."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def digit_reward(completions: list[Any], **_: Any) -> list[float]:
    """Share of digits among the characters: graded, deterministic, varied on random models."""
    texts = [text_of(completion) for completion in completions]
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in texts]


def even_reward(completions: list[Any], **_: Any) -> list[float]:
    """1 for completions of even length: a 0/1 reward that random models get half the time."""
    return [float(len(text_of(completion)) % 2 == 0) for completion in completions]
