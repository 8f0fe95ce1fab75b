"""Rollouts sampled from shared prompts are those of `generate`, for every family and way to run."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from helpers.tiny import FAMILIES, make_model
from podsrl.sampling import cache
from podsrl.sampling import sample as sampling
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

PAD, EOS = 0, 1
# 3, 12 and 7 tokens: padded differently, and the second is longer than Gemma's window of 8.
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 4, 4, 9, 30, 4]]


def settings_with(**changes: Any) -> SamplingSettings:
    return SamplingSettings(
        **{"max_new_tokens": 16, "eos_token_ids": (EOS,), "pad_token_id": PAD, **changes}
    )


def until_end(tokens: list[int], eos_token_ids: tuple[int, ...]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in eos_token_ids:
            return tokens[: i + 1]
    return tokens


def generate_greedily(
    model: PreTrainedModel, prompts: list[list[int]], settings: SamplingSettings
) -> list[list[int]]:
    """What `generate` gives for each prompt alone, cut after the first end token."""
    rows = []
    for ids in prompts:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=list(settings.eos_token_ids),
            pad_token_id=PAD,
            repetition_penalty=settings.repetition_penalty,
        )
        rows.append(until_end(output[0, len(ids) :].tolist(), settings.eos_token_ids))
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family: str, attention: str) -> None:
    model = make_model(family).eval()
    model.set_attn_implementation(attention)
    settings = settings_with(do_sample=False, max_new_tokens=20)
    expected = generate_greedily(model, PROMPTS, settings)
    rollouts = sample(model, PROMPTS, 2, settings=settings).completion_ids
    assert rollouts == [row for row in expected for _ in range(2)]
    assert len({tuple(row) for row in expected}) == 3  # prompts do lead to different answers


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_one_length_need_no_mask_and_give_the_same(family: str) -> None:
    model = make_model(family).eval()
    prompts = [[5, 6, 7, 8] * 3, [9, 8, 7, 6] * 3]
    settings = settings_with(do_sample=False)
    expected = generate_greedily(model, prompts, settings)
    assert sample(model, prompts, 1, settings=settings).completion_ids == expected


def test_several_end_tokens_end_rollouts_and_stay_in_them() -> None:
    model = make_model("qwen2").eval()
    free = generate_greedily(model, PROMPTS, settings_with(eos_token_ids=()))
    # The third and fifth tokens of two free-running answers become end tokens.
    eos_token_ids = (free[0][2], free[1][4])
    settings = settings_with(do_sample=False, eos_token_ids=eos_token_ids)
    rollouts = sample(model, PROMPTS, 3, settings=settings).completion_ids
    assert rollouts[::3] == [until_end(row, eos_token_ids) for row in free]
    assert len(rollouts[0]) <= 3 and len(rollouts[3]) <= 5 and rollouts[0][-1] in eos_token_ids


def test_without_end_tokens_every_rollout_runs_to_the_limit() -> None:
    settings = settings_with(eos_token_ids=(), max_new_tokens=5)
    rollouts = sample(make_model(), PROMPTS, 4, settings=settings).completion_ids
    assert [len(row) for row in rollouts] == [5] * 12


def test_one_new_token_is_drawn_from_the_prompt_alone() -> None:
    model = make_model().eval()
    settings = settings_with(max_new_tokens=1, do_sample=False)
    expected = generate_greedily(model, PROMPTS, settings)
    assert sample(model, PROMPTS, 1, settings=settings).completion_ids == expected


def test_greedy_with_repetition_penalty_is_that_of_generate() -> None:
    model = make_model("llama", seed=3).eval()
    settings = settings_with(do_sample=False, repetition_penalty=3.0, max_new_tokens=20)
    expected = generate_greedily(model, PROMPTS, settings)
    assert expected != generate_greedily(model, PROMPTS, settings_with(max_new_tokens=20))
    assert sample(model, PROMPTS, 1, settings=settings).completion_ids == expected


def sampled(model: PreTrainedModel, **options: Any) -> list[list[int]]:
    settings = settings_with(eos_token_ids=(1, 7, 11, 20), repetition_penalty=1.1, top_p=0.9)
    generator = torch.Generator().manual_seed(7)
    return sample(model, PROMPTS, 9, settings=settings, generator=generator, **options)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_retiring_ended_rows_changes_no_rollout(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(family).eval()
    num_rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: num_rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    retiring = sampled(model, return_log_probs=True)
    hook.remove()
    # 3 prompts are read once each; then 27 rows, fewer and fewer as rollouts end.
    assert num_rows[0] == 3 and num_rows[1] <= 27
    assert num_rows[1:] == sorted(num_rows[1:], reverse=True) and num_rows[-1] < 20
    lengths = [len(row) for row in retiring.completion_ids]
    # A row is decoded for each of its tokens but the first, which the prompt gives.
    assert sum(num_rows[1:]) == sum(lengths) - 27
    monkeypatch.setattr(sampling, "retire", lambda rows, token_B: token_B)
    keeping = sampled(model, return_log_probs=True)
    assert keeping.completion_ids == retiring.completion_ids
    flat = [
        torch.tensor([x for row in each.log_probs for x in row]) for each in (keeping, retiring)
    ]
    torch.testing.assert_close(flat[0], flat[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_rows", [2, 4, 9])
def test_greedy_rollouts_do_not_depend_on_chunks(max_rows: int) -> None:
    model = make_model("gemma3").eval()
    settings = settings_with(do_sample=False)
    whole = sample(model, PROMPTS, 5, settings=settings, max_rows=15).completion_ids
    parts = sample(model, PROMPTS, 5, settings=settings, max_rows=max_rows).completion_ids
    assert parts == whole


@pytest.mark.parametrize("max_rows", [2, 9, 18])
def test_no_forward_has_more_rows_than_allowed_and_prompts_are_read_once(max_rows: int) -> None:
    model = make_model().eval()
    shapes: list[tuple[int, int]] = []
    logit_positions: set[int] = set()
    hooks = [
        model.register_forward_pre_hook(
            lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        ),
        model.register_forward_hook(
            lambda _, args, output: logit_positions.add(output.logits.shape[1])
        ),
    ]
    rollouts = sampled(model, max_rows=max_rows).completion_ids
    for hook in hooks:
        hook.remove()
    assert logit_positions == {1}
    assert len(rollouts) == 27
    assert max(rows for rows, _ in shapes) <= max_rows
    # 9 rollouts each: two prompts at once at 18 rows, else one by one.
    assert sum(rows for rows, length in shapes if length > 1) == 3


def test_a_seed_gives_the_same_rollouts_again_and_another_seed_others() -> None:
    model = make_model()
    settings = settings_with()
    draws = [
        sample(
            model, PROMPTS, 4, settings=settings, generator=torch.Generator().manual_seed(seed)
        ).completion_ids
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(row) for row in draws[0]}) > 6  # rollouts of one prompt differ


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_a_fresh_forward_pass(family: str) -> None:
    model = make_model(family).eval()
    settings = settings_with(temperature=0.7, eos_token_ids=(1, 7))
    result = sample(model, PROMPTS, 3, settings=settings, return_log_probs=True)
    assert result.log_probs is not None
    for i, (tokens, log_probs) in enumerate(
        zip(result.completion_ids, result.log_probs, strict=True)
    ):
        prompt = PROMPTS[i // 3]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        fresh = (logits / 0.7).log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
        torch.testing.assert_close(torch.tensor(log_probs), fresh, atol=1e-4, rtol=0)


def test_training_model_with_checkpointing_samples_the_same_and_keeps_its_modes() -> None:
    model = make_model("gemma3", attention_dropout=0.5)
    expected = sampled(model.eval()).completion_ids
    model.gradient_checkpointing_enable()
    model.train()
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    assert sampled(model).completion_ids == expected
    assert [module.training for module in model.modules()] == modes
    assert model.is_gradient_checkpointing
    assert not all(modes) and any(modes)


def test_modes_are_put_back_when_the_model_fails() -> None:
    model = make_model().train()
    with pytest.raises(IndexError):
        sample(model, [[10_000]], 1, settings=settings_with())
    assert all(module.training for module in model.modules())


def test_lora_model_samples_with_its_adapter() -> None:
    model = make_model("qwen3")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    settings = settings_with(do_sample=False)
    expected = generate_greedily(adapted.eval(), PROMPTS, settings)
    adapted.train()
    assert sample(adapted, PROMPTS, 1, settings=settings).completion_ids == expected
    with adapted.disable_adapter():
        assert sample(adapted, PROMPTS, 1, settings=settings).completion_ids != expected


class CountCasts(TorchDispatchMode):
    """Counts casts by the address of the tensor that is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.casts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["copied", "shared", "refilled"])
def test_keys_kept_as_attention_reads_them_change_no_bit(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Casting what was kept in float32 for every token, and casting it once, is the same."""
    model = make_model("qwen2").eval()
    monkeypatch.setattr(sampling, "sharing_pays", lambda *args, **kwargs: way != "copied")
    kept: list[torch.dtype] = []
    in_half = cache.computing_dtype

    def found(computing_dtype: Any) -> Any:
        def noted(device: torch.device, dtype: torch.dtype) -> torch.dtype:
            kept.append(computing_dtype(device, dtype))
            return kept[-1]

        monkeypatch.setattr(cache, "computing_dtype", noted)
        return sample(
            model,
            PROMPTS,
            4,
            settings=settings_with(),
            generator=torch.Generator().manual_seed(0),
            autocast_dtype=torch.bfloat16,
            max_rows=6 if way == "refilled" else None,
            return_log_probs=True,
        )

    assert found(in_half) == found(lambda device, dtype: dtype)
    assert set(kept) == {torch.bfloat16, torch.float32}


def test_the_dtype_that_attention_reads() -> None:
    cpu = torch.device("cpu")
    assert cache.computing_dtype(cpu, torch.float32) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert cache.computing_dtype(cpu, torch.float32) == torch.bfloat16
        assert cache.computing_dtype(cpu, torch.float64) == torch.float64


def test_autocast_casts_each_weight_once_for_all_steps() -> None:
    model = make_model().eval()
    settings = settings_with(do_sample=False, max_new_tokens=6, eos_token_ids=())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = generate_greedily(model, PROMPTS[:1], settings)
    with CountCasts() as count:
        got = sample(model, PROMPTS[:1], 1, settings=settings, autocast_dtype=torch.bfloat16)
    assert got.completion_ids == expected
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    # 2 layers of 7 projections, and the output head; 6 forward passes.
    assert [count.casts[weight.data_ptr()] for weight in weights] == [1] * 15
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "one or more prompts"),
        ({"prompt_ids": [[4], []]}, "one or more prompts"),
        ({"num_rollouts": 0}, "num_rollouts=0 must be at least 1"),
        ({"max_rows": 0}, "max_rows=0 must be at least 1"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], message: str) -> None:
    request = {"prompt_ids": PROMPTS, "num_rollouts": 2, "settings": settings_with(), **changes}
    with pytest.raises(ValueError, match=message):
        sample(make_model(), **request)
