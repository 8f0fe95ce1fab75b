"""Rollouts that read one copy of their prompt's keys draw what rollouts with copies draw."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from helpers.tiny import FAMILIES, SIZES, make_model
from podsrl.packing.attention import use_shared_prefix
from podsrl.sampling import sample as sampling
from podsrl.sampling import shared_prompt
from podsrl.sampling.cache import RolloutCache, RolloutLayer
from podsrl.sampling.sample import SampledRollouts, sample
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.shared_prompt import can_share_prompts, sharing_pays

# Padded differently; the second is longer than the window of 8, which rollouts of 16 leave behind.
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 4, 4, 9, 30, 4]]


def windowed() -> Any:
    torch.manual_seed(0)
    config = MistralConfig(**{**SIZES, "initializer_range": 0.3, "sliding_window": 8})
    return MistralForCausalLM(config)


def learned_positions() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**SIZES, "initializer_range": 0.3}))


MODELS = {family: (lambda family=family: make_model(family)) for family in FAMILIES}
MODELS |= {"window in every layer": windowed, "learned positions": learned_positions}


def run(
    monkeypatch: pytest.MonkeyPatch, model: Any, share: bool, prompts: Any = PROMPTS, **options: Any
) -> SampledRollouts:
    monkeypatch.setattr(sampling, "sharing_pays", lambda *_, **__: share)
    fields = {"max_new_tokens": 16, "eos_token_ids": (1, 7, 11, 20), "pad_token_id": 0}
    settings = SamplingSettings(**{**fields, **options.pop("settings", {})})
    generator = torch.Generator().manual_seed(7)
    return sample(
        model, prompts, 9, settings=settings, generator=generator, return_log_probs=True, **options
    )


def flat(rollouts: SampledRollouts) -> Tensor:
    assert rollouts.log_probs is not None
    return torch.tensor([x for row in rollouts.log_probs for x in row])


@pytest.mark.parametrize(
    "settings",
    [{}, {"repetition_penalty": 1.3, "top_p": 0.9}, {"eos_token_ids": ()}],
    ids=["rows end", "cut and penalised", "no row ends"],
)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_copied_prompts_and_log_probs_to_rounding(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    model = MODELS[name]().eval()
    copied = run(monkeypatch, model, False, settings=settings)
    shared = run(monkeypatch, model, True, settings=settings)
    assert shared.completion_ids == copied.completion_ids
    assert len({tuple(row) for row in shared.completion_ids}) > 15
    torch.testing.assert_close(flat(shared), flat(copied), atol=2e-5, rtol=0)


@pytest.mark.parametrize("max_rows", [4, 18])
def test_chunks_and_one_prompt_alone_share_too(
    monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    model = make_model("gemma3").eval()
    copied = run(monkeypatch, model, False)
    shared = run(monkeypatch, model, True, max_rows=max_rows)
    assert shared.completion_ids == copied.completion_ids
    alone = run(monkeypatch, model, True, prompts=PROMPTS[:1])
    assert alone.completion_ids == copied.completion_ids[:9]


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model().eval()
    whole = run(monkeypatch, model, True)
    monkeypatch.setattr(shared_prompt, "NUM_SCORES_CPU", 1)  # each row by itself
    parts = run(monkeypatch, model, True)
    assert parts.completion_ids == whole.completion_ids
    torch.testing.assert_close(flat(parts), flat(whole), atol=2e-5, rtol=0)


def test_a_wrong_prompt_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: rows that read another row's prompt draw other tokens."""
    model = make_model().eval()
    right = run(monkeypatch, model, True)
    assign = shared_prompt.SharedPrompts.assign
    monkeypatch.setattr(
        shared_prompt.SharedPrompts, "assign", lambda self, source_B: assign(self, source_B.flip(0))
    )
    assert run(monkeypatch, model, True).completion_ids != right.completion_ids


def test_adapters_and_autocast_sample_with_a_shared_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(make_model("qwen3"), config).train()
    expected = run(monkeypatch, model, False).completion_ids
    assert run(monkeypatch, model, True).completion_ids == expected
    assert model.config._attn_implementation == "sdpa" and model.training


@pytest.mark.parametrize("half", [True, False])
def test_half_precision_is_no_further_from_the_truth(
    monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    """Log-probs of the tokens drawn, against float32: root mean square errors within 1.5 times."""
    model = make_model("llama").eval()
    errors = {}
    for share in (False, True):
        low = make_model("llama").eval()
        options = {"autocast_dtype": torch.bfloat16}
        if half:
            low, options = low.bfloat16(), {}
        rollouts = run(monkeypatch, low, share, settings={"eos_token_ids": ()}, **options)
        ids = [PROMPTS[i // 9] + row for i, row in enumerate(rollouts.completion_ids)]
        with torch.no_grad():
            truth = [
                model(torch.tensor([row])).logits[0, -17:-1].log_softmax(-1)[range(16), row[-16:]]
                for row in ids
            ]
        errors[share] = (flat(rollouts) - torch.cat(truth)).square().mean().sqrt()
    assert 0 < errors[True] <= 1.5 * errors[False]


def test_prompts_are_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 rollouts of 3 prompts of up to 12 tokens, at most 16 new ones, 2 layers of 2 heads of 8.

    Copies: 27 rows of 28 positions; shared: 27 rows of 16, beside 3 prompts of 12.
    """
    sizes: list[int] = []
    allocate = RolloutLayer._allocate

    def spy(layer: Any, keys: Tensor, values: Tensor, rows: int) -> None:
        allocate(layer, keys, values, rows)
        sizes.append(layer.keys.numel())

    monkeypatch.setattr(RolloutLayer, "_allocate", spy)
    model = make_model().eval()
    run(monkeypatch, model, False, settings={"eos_token_ids": ()})
    assert sizes == [3 * 12 * 16] * 2 + [27 * 28 * 16] * 2
    sizes.clear()
    run(monkeypatch, model, True, settings={"eos_token_ids": ()})
    assert sizes == [3 * 12 * 16] * 2 + [27 * 16 * 16] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_the_model_attends_as_before_afterwards_also_after_an_error(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    model = make_model().eval()
    if packed:
        assert use_shared_prefix(model)
    before = model.config._attn_implementation
    expected = run(monkeypatch, model, False).completion_ids
    assert run(monkeypatch, model, True).completion_ids == expected
    assert model.config._attn_implementation == before

    def fail(*_: Any, **__: Any) -> None:
        assert model.config._attn_implementation == shared_prompt.SHARED_PROMPT
        raise KeyError

    monkeypatch.setattr(sampling, "next_logits", fail)
    with pytest.raises(KeyError):
        run(monkeypatch, model, True)
    assert model.config._attn_implementation == before


def test_attention_with_other_terms_is_refused() -> None:
    cache = RolloutCache.for_prompts(make_model().config, 4)
    with pytest.raises(ValueError, match="softcap is not implemented"):
        shared_prompt.shared_prompt_attention(
            torch.nn.Module(), *[torch.zeros(1)] * 3, None, shared_prompts=cache, softcap=1.0
        )


def test_which_models_share() -> None:
    assert all(can_share_prompts(make_model(family)) for family in FAMILIES)
    assert not can_share_prompts(make_model(attn_implementation="eager"))
    chunked = make_model()
    chunked.config.layer_types = ["chunked_attention", "full_attention"]
    assert not can_share_prompts(chunked)


def test_when_sharing_pays() -> None:
    assert sharing_pays(16, 200, 0, cuda=False)  # 15 * 200 = 3,000
    assert not sharing_pays(16, 45, 0, cuda=False)  # 675, the default recipe
    assert not sharing_pays(1, 10**6, 10**6, cuda=False)
    # A layer of 8 key heads of 128 in bfloat16: 2 * 8 * 128 * 2 = 4,096 bytes per position.
    assert sharing_pays(64, 2048, 4096, cuda=True)  # 63 * 2048 * 4096 = 528 MB
    assert not sharing_pays(16, 2048, 4096, cuda=True)  # 126 MB


def test_where_copies_do_not_fit_prompts_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 prompts of up to 12 tokens, 4 rollouts of 16 tokens, 2 x 2 x 2 x 8 x 4 = 256 bytes a token.

    Copied: 28 * 256 + 48 * 12 + 16 * 20 = 8,064 a row, 12 rows = 96,768; shared: 19 * 256 = 4,864
    and the same 896, 5,760 a row. Half of 138,240 bytes holds 12 of those, and 8 copies.
    """
    seen: list[tuple[int, bool]] = []
    start = sampling.start

    def spy(prompts: Any, source_B: Tensor, settings: Any, *, share: bool) -> Any:
        seen.append((len(source_B), share))
        return start(prompts, source_B, settings, share=share)

    monkeypatch.setattr(sampling, "start", spy)
    settings = SamplingSettings(16, (), 0)
    for num_bytes in (2 * 96_768, 138_240):
        monkeypatch.setattr(sampling, "free_bytes", lambda device, free=num_bytes: free)
        sample(make_model(), PROMPTS, 4, settings=settings)
    assert seen == [(12, False), (12, True)]
