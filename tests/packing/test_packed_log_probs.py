"""Log-probs, entropies and gradients of packed rows equal those of TRL's padded call."""

import copy
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM
from transformers.integrations import flex_attention as flex
from trl.trainer.utils import add_fused_lm_head

from helpers.tiny import FAMILIES, SIZES, make_model
from podsrl.packing.attention import SHARED_PREFIX, use_shared_prefix
from podsrl.packing.log_probs import log_probs_by_prompt, packed_log_probs
from podsrl.packing.pack import PackedBatch, pack

WIDTH, LENGTH = 12, 9
PROMPT_LENGTHS = [7, 12, 7, 3, 7, 3]
COMPLETION_LENGTHS = [9, 4, 1, 6, 0, 9]
OWNERS = [0, 1, 0, 3, 0, 3]
ATTENTIONS = ["eager", "sdpa", SHARED_PREFIX]


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three prompts with three, one and two rollouts, interleaved; row 4 is masked throughout."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 48, (6, WIDTH), generator=generator)[OWNERS]
    completions = torch.randint(3, 48, (6, LENGTH), generator=generator)
    prompt_mask = torch.arange(WIDTH) >= WIDTH - torch.tensor(PROMPT_LENGTHS)[:, None]
    mask = torch.arange(LENGTH) < torch.tensor(COMPLETION_LENGTHS)[:, None]
    return prompts.where(prompt_mask, 0), prompt_mask.long(), completions, mask.long()


def padded_log_probs(model: nn.Module, data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """What TRL's `_get_per_token_logps_and_entropies` does with text."""
    ids, mask = torch.cat([data[0], data[2]], 1), torch.cat([data[1], data[3]], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :WIDTH] = -100
    outputs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return outputs.log_probs[:, -LENGTH:], outputs.entropy[:, -LENGTH:]


def prepare(model: Any, attention: str, temperature: float = 1.0) -> Any:
    model.set_attn_implementation("eager" if attention == "eager" else "sdpa")
    if attention == SHARED_PREFIX:
        assert use_shared_prefix(model)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    return model


def run(model: nn.Module, packed: PackedBatch | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probs, entropies and parameter gradients of a loss that weighs every token apart."""
    model.zero_grad()
    if packed is None:
        log_probs, entropies = padded_log_probs(model, batch())
    else:
        log_probs, found = packed_log_probs(model, packed, compute_entropy=True)
        assert found is not None
        entropies = found
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(log_probs.shape, generator=generator) / log_probs.numel()
    (log_probs * weights + entropies * weights.flip(0)).sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return log_probs.detach(), entropies.detach(), grads


def assert_equal(model: nn.Module, packed: PackedBatch, bound: float = 1e-4) -> None:
    expected, entropies, grads = run(model, None)
    log_probs, packed_entropies, packed_grads = run(model, packed)
    assert log_probs.shape == (6, LENGTH)
    assert expected.std() > 0.5, "tokens must differ, or a wrong mask would pass"
    torch.testing.assert_close(log_probs, expected, atol=bound, rtol=0)
    torch.testing.assert_close(packed_entropies, entropies, atol=bound, rtol=0)
    assert packed_grads.keys() == grads.keys() and grads
    for name, grad in grads.items():
        torch.testing.assert_close(packed_grads[name], grad, atol=bound, rtol=1e-4, msg=name)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equal_to_padded(family: str, attention: str) -> None:
    # Gemma-3's window of 8 is less than the 21 columns.
    model = prepare(make_model(family), attention, temperature=0.7)
    assert_equal(model, pack(*batch()))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("model_class", "config_class", "extra"),
    [
        (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
        (GPT2LMHeadModel, GPT2Config, {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    ],
    ids=["window in every layer", "learned positions"],
)
def test_equal_for_other_positions(
    model_class: Any, config_class: Any, extra: dict[str, Any], attention: str
) -> None:
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, "initializer_range": 0.3, **extra}))
    assert_equal(prepare(model, attention), pack(*batch()))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_equal_with_gradient_checkpointing(attention: str, reentrant: bool) -> None:
    model = prepare(make_model("gemma3"), attention).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_equal(model, pack(*batch()))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_equal_with_lora(attention: str) -> None:
    model = prepare(make_model("qwen2"), attention)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    assert_equal(get_peft_model(model, config), pack(*batch()))


def test_equal_with_a_softcapped_head() -> None:
    model = make_model("gemma3", final_logit_softcapping=2.0)
    assert_equal(prepare(model, SHARED_PREFIX, temperature=1.3), pack(*batch()))


def test_equal_inside_ddp() -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    model = nn.parallel.DistributedDataParallel(prepare(make_model(), SHARED_PREFIX))
    reduced: list[int] = []
    model.register_comm_hook(None, lambda _, bucket: _counted(reduced, bucket))
    assert_equal(model, pack(*batch()))
    assert len(reduced) == 2, "one reduction for each of the two backward passes"
    dist.destroy_process_group()


def _counted(reduced: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    reduced.append(bucket.index())
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bf16_error_is_that_of_the_padded_path(attention: str) -> None:
    model = prepare(make_model("qwen3"), attention)
    truth, _, true_grads = run(copy.deepcopy(model), None)
    errors = {}
    for packed in (None, pack(*batch())):
        with torch.autocast("cpu", torch.bfloat16):
            log_probs, _, grads = run(model, packed)
        squares = [((grads[n] - g) ** 2).mean().item() for n, g in true_grads.items()]
        errors[packed is None] = (log_probs - truth).pow(2).mean().item(), sum(squares)
    for packed_square, padded_square in zip(errors[False], errors[True], strict=True):
        assert packed_square**0.5 <= 1.5 * padded_square**0.5
        assert padded_square > 0


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_nothing_but_kept_tokens_is_read_and_scored(attention: str) -> None:
    model, read, scored = prepare(make_model(), attention), [], []
    model.get_input_embeddings().register_forward_hook(lambda _, a, out: read.append(a[0].numel()))
    packed = pack(*batch())
    original = model.base_model.register_forward_hook

    def spy(hook: Any) -> Any:
        def gather(*args: Any) -> Any:
            output = hook(*args)
            scored.append(output.last_hidden_state.shape[1])
            return output

        return original(gather)

    model.base_model.register_forward_hook = spy
    packed_log_probs(model, packed)
    # Prompts of 7, 12 and 3 tokens once each; completions 9 + 4 + 1 + 6 + 0 + 9 = 29.
    assert read == [7 + 12 + 3 + 29] and scored == [29]
    assert not model.base_model._forward_hooks
    padded_log_probs(model, batch())
    assert read[1] == 6 * (WIDTH + LENGTH)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_all_rows_masked_give_zeros_and_no_nan(attention: str) -> None:
    model = prepare(make_model(), attention)
    data = batch()
    packed = pack(*data[:3], torch.zeros_like(data[3]))
    log_probs, entropies = packed_log_probs(model, packed, compute_entropy=True)
    assert entropies is not None and log_probs.shape == entropies.shape == (6, LENGTH)
    assert not log_probs.any() and not entropies.any()
    log_probs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_content_and_row_order_do_not_matter(attention: str) -> None:
    model = prepare(make_model("gemma3"), attention)
    prompts, prompt_mask, completions, mask = batch()
    expected, _ = packed_log_probs(model, pack(prompts, prompt_mask, completions, mask))
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    noisy = (prompts.where(prompt_mask.bool(), 40)[order], prompt_mask[order])
    noisy += (completions.where(mask.bool(), 41)[order], mask[order])
    found, _ = packed_log_probs(model, pack(*noisy))
    torch.testing.assert_close(found, expected[order], atol=1e-5, rtol=0)


def test_switching_attention_leaves_padded_batches_and_generation_alone() -> None:
    model, ids = make_model("gemma3").eval(), batch()[0][1:2]
    before, tokens = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=6)
    use_shared_prefix(model)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.generate(ids, max_new_tokens=6), tokens)
    assert not use_shared_prefix(make_model(attn_implementation="eager"))


@pytest.mark.parametrize("num_rows_per_pass", [None, 1, 4])
def test_log_probs_as_trl_asks_for_them(num_rows_per_pass: int | None) -> None:
    model, data, read = prepare(make_model(), SHARED_PREFIX), batch(), []
    expected, expected_entropies = padded_log_probs(model, data)
    model.get_input_embeddings().register_forward_hook(lambda _, a, out: read.append(a[0].numel()))
    ids, mask = torch.cat([data[0], data[2]], 1), torch.cat([data[1], data[3]], 1)
    log_probs, entropies = log_probs_by_prompt(
        model, ids, mask, LENGTH, num_rows_per_pass=num_rows_per_pass, compute_entropy=True
    )
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=0)
    # 51 tokens with each prompt once; 29 + 7 * 3 + 12 + 3 * 2 = 68 with one row at a time; in
    # passes of four at most one prompt, of 7 tokens, is read twice.
    low, high = {None: (51, 51), 1: (68, 68), 4: (51, 58)}[num_rows_per_pass]
    assert low <= sum(read) <= high
    assert log_probs_by_prompt(model, ids, mask, LENGTH)[1] is None


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_flex_attention_takes_the_block_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling the kernel for CPU takes minutes; the uncompiled one computes the same.
    def uncompiled(*args: Any, training: bool, **kwargs: Any) -> Any:
        return flex.flex_attention(*args, **kwargs)

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", uncompiled)
    model = prepare(make_model(family), "sdpa").eval()
    with torch.no_grad():
        expected, _ = padded_log_probs(model, batch())
        model.set_attn_implementation("flex_attention")
        found, _ = packed_log_probs(model, pack(*batch()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
