"""Which generation configs are served, which are refused and why, and what chunks are planned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CompileConfig,
    FalconH1Config,
    FalconH1ForCausalLM,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
)

from helpers.harness import build
from helpers.tiny import FAMILIES, make_model, save_tiny
from podsrl.sampling.cache import RolloutCache
from podsrl.sampling.memory import (
    bytes_per_row,
    cache_bytes_per_row,
    free_bytes,
    plan_chunks,
    rows_within,
)
from podsrl.sampling.settings import SamplingSettings, can_sample, settings_from


def config_with(**changes: Any) -> GenerationConfig:
    """What TRL builds by default, with changes."""
    fields = {
        "max_new_tokens": 8,
        "do_sample": True,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": [1],
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "cache_implementation": None,
        "disable_compile": True,
    }
    return GenerationConfig(**{**fields, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tested_family_is_served(family: str) -> None:
    assert can_sample(make_model(family), config_with()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2},
        {"bad_words_ids": [[5]]},
        {"suppress_tokens": [5]},
        {"begin_suppress_tokens": [5]},
        {"stop_strings": ["x"]},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 3},
        {"min_length": 3},
        {"typical_p": 0.5},
        {"top_h": 0.5},
        {"epsilon_cutoff": 0.1},
        {"eta_cutoff": 0.1},
        {"prompt_lookup_num_tokens": 2},
        {"guidance_scale": 2.0},
        {"penalty_alpha": 0.5},
        {"max_time": 1.0},
        {"forced_eos_token_id": 1},
        {"sequence_bias": {(5,): 1.0}},
        {"exponential_decay_length_penalty": (2, 1.1)},
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "hybrid"},
        {"cache_config": {"backend": "quanto", "nbits": 4}},
        {"compile_config": CompileConfig()},
        {"prefill_chunk_size": 64},
        {"remove_invalid_values": True},
        {"use_cache": False},
        {"field_of_a_later_release": 3},
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any]) -> None:
    (name,) = changes
    config = config_with()
    for field, value in changes.items():
        setattr(config, field, value)
    reason = can_sample(make_model(), config)
    assert reason is not None and reason.startswith(f"{name}=")


def test_a_field_the_model_sets_counts_as_it_does_in_generate() -> None:
    model = make_model()
    model.generation_config.suppress_tokens = [7]
    assert can_sample(model, config_with()) == "suppress_tokens=[7] is not implemented"


def test_a_cache_kind_the_checkpoint_names_is_no_request_but_any_other_is() -> None:
    """Gemma's checkpoints say "hybrid" of their layers; "static" is a choice, whoever made it."""
    model = make_model("gemma3")
    model.generation_config.cache_implementation = "hybrid"
    assert can_sample(model, config_with()) is None
    reason = "cache_implementation=hybrid is not implemented"
    assert can_sample(model, config_with(cache_implementation="hybrid")) == reason
    model.generation_config.cache_implementation = "static"
    assert "cache_implementation=static" in str(can_sample(model, config_with()))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_beams": 1},
        {"typical_p": 1.0},
        {"min_new_tokens": 0},
        {"use_cache": True},
        {"cache_implementation": "dynamic"},
    ],
)
def test_fields_that_change_nothing_are_served(changes: dict[str, Any]) -> None:
    assert can_sample(make_model(), config_with(**changes)) is None


def test_models_that_need_another_state_are_refused() -> None:
    bart = BartForConditionalGeneration(
        BartConfig(
            vocab_size=16,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
        )
    )
    assert "encoder-decoder" in str(can_sample(bart, config_with()))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    assert "does not take" in str(can_sample(mamba, config_with()))
    hybrid = FalconH1ForCausalLM(
        FalconH1Config(
            vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, mamba_d_ssm=16, mamba_n_heads=2,
            mamba_d_head=8, mamba_d_state=4,
        )
    )  # fmt: skip
    assert "cache layers of type" in str(can_sample(hybrid, config_with()))


def test_attention_that_is_not_tested_is_refused() -> None:
    model = make_model()
    model.set_attn_implementation("flex_attention")
    assert "attention flex_attention is not among" in str(can_sample(model, config_with()))


def test_lora_is_served_and_prompt_tuning_refused() -> None:
    lora = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert can_sample(lora, config_with()) is None
    tuning = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    assert "virtual tokens" in str(can_sample(get_peft_model(make_model(), tuning), config_with()))


def test_settings_are_those_of_the_config() -> None:
    config = config_with(
        temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.2, eos_token_id=[1, 5]
    )
    assert settings_from(make_model(), config) == SamplingSettings(
        8, (1, 5), 0, temperature=0.7, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.2
    )


def test_open_fields_are_filled_from_the_model_then_from_the_defaults_of_generate() -> None:
    model = make_model()
    model.generation_config.temperature = 0.6
    config = GenerationConfig(max_new_tokens=8, do_sample=True)
    # The tiny model's own pad and end tokens are 0 and 1; top_k is 50 by default in `generate`.
    assert settings_from(model, config) == SamplingSettings(8, (1,), 0, temperature=0.6, top_k=50)
    prepared, _ = model._prepare_generation_config(config)
    assert (prepared.temperature, prepared.top_k, prepared.top_p) == (0.6, 50, 1.0)
    assert config.temperature is None  # the caller's config is left as it was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0; for greedy"),
        ({"top_p": 1.5}, "top_p=1.5 must be in 0..1"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"min_p": -0.1}, "min_p=-0.1 must be in 0..1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be"),
    ],
)
def test_settings_out_of_bounds_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"max_new_tokens": 4, "eos_token_ids": (1,), "pad_token_id": 0, **changes}
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**fields)


def test_a_config_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens=None"):
        settings_from(make_model(), GenerationConfig(do_sample=True))


@pytest.mark.parametrize(
    ("request_PNB", "expected"),
    [
        ((4, 6, 100), [(range(0, 4), [6])]),
        ((4, 6, 24), [(range(0, 4), [6])]),
        ((4, 6, 12), [(range(0, 2), [6]), (range(2, 4), [6])]),
        # 17 // 6 = 2 prompts at once; 17 // 2 = 8 rollouts of each fit, more than the 6 wanted.
        ((3, 6, 17), [(range(0, 2), [6]), (range(2, 3), [6])]),
        ((2, 6, 4), [(range(0, 1), [3, 3]), (range(1, 2), [3, 3])]),
        ((1, 7, 3), [(range(0, 1), [3, 2, 2])]),
        ((1, 3, 1), [(range(0, 1), [1, 1, 1])]),
    ],
)
def test_chunks_by_hand(request_PNB: tuple[int, int, int], expected: list[Any]) -> None:
    assert plan_chunks(*request_PNB) == expected


def test_row_bytes_are_those_the_cache_allocates() -> None:
    for family in FAMILIES:
        model = make_model(family).eval()
        cache = RolloutCache.for_prompts(model.config, 24)
        with torch.no_grad():
            model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
        allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        # 2 layers x 2 (keys, values) x 2 heads x 8 x 24 tokens x 4 bytes = 6,144.
        assert allocated == cache_bytes_per_row(model.config, 24) == 6144
        # Half-size items; logits: 48 x (2 + 8) bytes; 20 bytes for each of 14 new tokens.
        settings = SamplingSettings(14, (1,), 0)
        options: dict[str, Any] = {"settings": settings, "dtype": torch.bfloat16}
        assert bytes_per_row(model.config, 10, **options) == 3072 + 480 + 280
        # Four rollouts to a prompt of 10: 14 + 3 of 24 tokens.
        assert bytes_per_row(model.config, 10, num_sharing=4, **options) == 2176 + 480 + 280
        # Sorting: 48 x (2 + 36); context: 8 bytes for each of 24 tokens.
        options["settings"] = SamplingSettings(14, (1,), 0, top_p=0.9, repetition_penalty=2.0)
        assert bytes_per_row(model.config, 10, **options) == 3072 + 1824 + 280 + 192


def test_rows_within_a_budget() -> None:
    assert rows_within(10_000_000, 3_317_760) == 3
    assert rows_within(100, 100) == 1
    with pytest.raises(ValueError, match="one rollout needs 1,001 bytes, more than the 1,000"):
        rows_within(1_000, 1_001)


def test_free_memory_is_between_nothing_and_a_petabyte() -> None:
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50


def test_a_static_cache_goes_to_generate_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny(tmp_path / "model")
    options = {"max_steps": 2, "cache_implementation": "static"}
    trainer = build(folder, tmp_path / "run", **options)
    generate, caches = trainer.model.generate, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        caches.append(kwargs["generation_config"].cache_implementation)
        return generate(*args, **kwargs)

    trainer.model.generate = spy
    with caplog.at_level("WARNING", logger="podsrl.trl.sampling"):
        trainer.train()
    messages = [r.getMessage() for r in caplog.records if r.name == "podsrl.trl.sampling"]
    assert len(messages) == 1 and "cache_implementation=static is not implemented" in messages[0]
    assert caches == ["static"] * 2
