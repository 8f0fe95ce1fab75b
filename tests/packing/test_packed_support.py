"""Which models are refused, and why; what is accepted was tested on the model itself."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from helpers.tiny import FAMILIES, SIZES, make_model
from podsrl.packing.attention import SHARED_PREFIX
from podsrl.packing.support import packing_reason


def prepared(family: str = "llama", **changes: Any) -> Any:
    model = make_model(family, **changes)
    add_fused_lm_head(model)
    return model


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("scale", [0.3, 0.02])
def test_tested_families_are_accepted_and_switched(family: str, scale: float) -> None:
    model = prepared(family, initializer_range=scale).train()
    assert packing_reason(model) is None
    assert model.config._attn_implementation == SHARED_PREFIX
    assert model.training


def test_eager_is_accepted_as_it_is() -> None:
    model = prepared(attn_implementation="eager")
    assert packing_reason(model) is None
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", list(FAMILIES))
def test_low_precision_is_accepted(family: str) -> None:
    assert packing_reason(prepared(family).bfloat16()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert packing_reason(prepared(family)) is None


def test_lora_is_accepted_and_prompt_learning_is_not() -> None:
    lora = get_peft_model(prepared(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert packing_reason(lora) is None
    for config in (
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ):
        assert "virtual tokens" in str(packing_reason(get_peft_model(prepared(), config)))


def test_other_architectures_are_refused() -> None:
    mamba = MambaConfig(vocab_size=48, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert "not attention" in str(packing_reason(MambaForCausalLM(mamba)))
    bloom = BloomConfig(vocab_size=48, hidden_size=16, n_layer=1, n_head=2)
    assert "attention interface" in str(packing_reason(BloomForCausalLM(bloom)))


def test_models_that_see_are_refused() -> None:
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"intermediate_size": 8, "image_size": 16, "patch_size": 8}
    text = {**SIZES, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    reason = packing_reason(Gemma3ForConditionalGeneration(config))
    assert "reads more than text" in str(reason)


def test_attention_and_layers_that_cannot_share_are_refused() -> None:
    model = prepared()
    model.config._attn_implementation_internal = "flash_attention_3"
    assert "flash_attention_3 cannot" in str(packing_reason(model))
    model = prepared("qwen3")
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert "attend in chunks" in str(packing_reason(model))


def test_compiled_models_are_refused() -> None:
    assert "compiled" in str(packing_reason(torch.compile(prepared())))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_ignores_positions_fails_the_check(attention: str) -> None:
    model = prepared(attn_implementation=attention)
    rotary = model.base_model.rotary_emb.forward

    def count_from_zero(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return rotary(hidden, torch.arange(position_ids.shape[1])[None])

    model.base_model.rotary_emb.forward = count_from_zero
    assert "differ by" in str(packing_reason(model))


def test_a_model_that_hides_its_window_is_refused() -> None:
    model = prepared("gemma3")
    for layer in model.base_model.layers:
        layer.self_attn.sliding_window = None
    assert "sliding window" in str(packing_reason(model))
