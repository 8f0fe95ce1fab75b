"""Attention of a packed row: without masks where causal order says it all, by every kernel alike.

And reading its rows: the values, and gradients that do not change from run to run.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.nn.functional import scaled_dot_product_attention
from trl.trainer.utils import add_fused_lm_head

from helpers.tiny import make_model
from podsrl.packing import attention
from podsrl.packing.attention import FLASH, rows_at, shared_prefix, use_shared_prefix
from podsrl.packing.log_probs import packed_log_probs
from podsrl.packing.masks import dense_mask
from podsrl.packing.pack import PackedBatch, pack
from podsrl.packing.support import packing_reason

WIDTH, LENGTH = 12, 9


def batch(lengths: list[int], kept: int = 3) -> PackedBatch:
    """Prompts of these lengths, `kept` completions of 9, 8, ... tokens to each, interleaved."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 48, (len(lengths), WIDTH), generator=generator).repeat(kept, 1)
    prompt_mask = torch.arange(WIDTH) >= WIDTH - torch.tensor(lengths).repeat(kept)[:, None]
    completions = torch.randint(3, 48, (len(prompts), LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < LENGTH - (torch.arange(len(prompts)) % LENGTH)[:, None]
    return pack(prompts, prompt_mask, completions, mask)


@pytest.mark.parametrize("max_lengths", [None, 1])
@pytest.mark.parametrize("has_flash", [False, True])
@pytest.mark.parametrize("window", [None, 30, 8])
@pytest.mark.parametrize("lengths", [[12], [5, 5], [7, 12, 1, 12]], ids=str)
def test_output_is_that_of_a_dense_mask(
    monkeypatch: pytest.MonkeyPatch,
    lengths: list[int],
    window: int | None,
    has_flash: bool,
    max_lengths: int | None,
) -> None:
    """Windows that hide nothing (30 of 21 columns) and that do; values and gradients."""
    monkeypatch.setattr(attention, "_has_flash", lambda like: has_flash)
    packed = batch(lengths)
    torch.manual_seed(0)
    states = [x.requires_grad_() for x in torch.randn(3, 1, 2, packed.num_tokens, 4).unbind()]
    prefix = shared_prefix(packed, max_lengths)
    output, _ = attention.shared_prefix_attention(
        torch.nn.Module(), *states, None, shared_prefix=prefix, sliding_window=window
    )
    expected = scaled_dot_product_attention(*states, dense_mask(packed, window)).transpose(1, 2)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    weights = torch.randn_like(output)
    grads = torch.autograd.grad((output * weights).sum(), states)
    for grad, wanted in zip(
        grads, torch.autograd.grad((expected * weights).sum(), states), strict=True
    ):
        torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=0)
    padded = max_lengths == 1 and len(set(lengths)) > 1
    assert len(prefix.problems) == (2 if padded else 2 * len(set(lengths)))
    rules = {type(mask) for mask in prefix.masks.values()}
    if window != 8 and not padded:
        # On CUDA no mask is made; a CPU's kernel needs one for completions, without rows.
        assert rules == {type(None), CausalBias if has_flash else Tensor}
        assert all(m is None or has_flash or m.shape[0] == 1 for m in prefix.masks.values())


def test_one_length_is_two_problems_and_three_lengths_are_six() -> None:
    """Prompts of 7, 12, 1, 12 tokens with 3 completions each: 36 + 32 prompt, 12 x 9 cells."""
    prefix = shared_prefix(batch([7, 12, 1, 12]))
    found = [(each.num_rows, each.num_queries, each.num_keys) for each in prefix.problems]
    assert found == [(1, 1, 1), (3, 9, 10), (1, 7, 7), (3, 9, 16), (2, 12, 12), (6, 9, 21)]
    assert len(prefix.query_index) == 1 + 27 + 7 + 27 + 24 + 54
    assert all(each.filled_BK is None for each in prefix.problems)


def model_on(implementation: str, **options: Any) -> Any:
    if options.get("family") == "gemma3":
        options["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    model = make_model(num_hidden_layers=3, **options)
    if implementation == FLASH:
        model.config._attn_implementation_internal = FLASH
    else:
        assert use_shared_prefix(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def saved_masks(model: Any, packed: PackedBatch) -> dict[int, int]:
    """Bytes of what is kept for the backward pass and has the shape of queries by keys."""
    shapes = {(9, 21), (12, 12), (9, 16), (7, 7)}
    found: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        if saved.ndim >= 2 and tuple(saved.shape[-2:]) in shapes:
            found[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        log_probs, _ = packed_log_probs(model, packed)
    log_probs.sum().backward()
    return found


def test_no_layer_keeps_a_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 layers, 6 rows of 9 queries by 21 keys: bool masks cost 3 x (6 x 189 + 2 x 144) x 4 bytes.

    SDPA makes a float mask of a bool one in every layer, (B, 1, T, C) for completions and
    (P, 1, W, W) for prompts. Here one of 9 x 21 floats serves all layers and rows.
    """
    model = model_on("sdpa")
    assert sorted(saved_masks(model, batch([12, 12])).values()) == [9 * 21 * 4]
    # Unequal prompts: one mask per length; prompts have none.
    assert sorted(saved_masks(model, batch([7, 12])).values()) == [9 * 16 * 4, 9 * 21 * 4]
    # With masks for the padding, as with very many lengths: one per problem, not per layer.
    monkeypatch.setattr(attention, "MAX_LENGTHS", 0)
    assert sorted(saved_masks(model, batch([7, 12])).values()) == [
        2 * 12 * 12 * 4,
        6 * 9 * 21 * 4,
    ]


def test_a_bool_mask_is_what_every_layer_would_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count above can fail: the same masks as bools are kept by all three layers."""
    monkeypatch.setattr(attention, "MAX_LENGTHS", 0)
    original = attention.SharedPrefix.mask

    def as_bool(self: Any, *args: Any) -> Tensor:
        mask = original(self, *args)
        assert mask is not None
        return mask == 0

    monkeypatch.setattr(attention.SharedPrefix, "mask", as_bool)
    found = saved_masks(model_on("sdpa"), batch([12, 12]))
    assert sum(found.values()) == 3 * (6 * 189 + 2 * 144) * 4


def flash_by_definition(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What flash attention computes, in the form in which transformers calls it.

    Causal order is from the lower right, a window of w is the w - 1 keys before the query and its
    own. Positions that start again would be read as packed sequences.
    """
    assert attention_mask is None or attention_mask.shape == (len(key), key.shape[2])
    if attention_mask is None:
        assert position_ids is None or bool((position_ids.diff() == 1).all())
    back = torch.arange(key.shape[2])[-query.shape[2] :, None] - torch.arange(key.shape[2])
    sees = (back >= 0) & (back < (sliding_window or 10**9))
    if attention_mask is not None:
        sees = (sees & attention_mask[:, None, None].bool()) | (back == 0)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    output = scaled_dot_product_attention(query, key, value, sees, scale=scaling)
    return output.transpose(1, 2), None


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("lengths", [[12, 12], [7, 12, 3]], ids=str)
def test_flash_attention_2_is_packed(
    monkeypatch: pytest.MonkeyPatch, family: str, lengths: list[int]
) -> None:
    """By a stand-in for the kernel that does what its documentation says, as there is no GPU here.

    On a GPU `packing_reason` compares packed and padded log-probs before anything is trained.
    """
    calls: list[tuple[int, ...]] = []

    def kernel(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        calls.append(tuple(args[1].shape))
        return flash_by_definition(*args, **kwargs)

    monkeypatch.setattr(attention, "flash_attention_forward", kernel)
    packed = batch(lengths)
    expected, _ = packed_log_probs(model_on("sdpa", family=family), packed)
    model = model_on(FLASH, family=family)
    found, _ = packed_log_probs(model, packed)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(calls) == 3 * 2 * len(set(lengths))  # layers x (prompts, completions) x lengths
    assert model.config._attn_implementation == FLASH


def test_flash_attention_2_is_accepted_after_the_check_of_its_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "flash_attention_forward", flash_by_definition)
    model = model_on(FLASH)
    assert packing_reason(model) is None

    def upper_left(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Old kernels count causal order from the upper left."""
        module, query, key, value, mask = args
        if mask is None and query.shape[2] < key.shape[2]:
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        return flash_by_definition(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "flash_attention_forward", upper_left)
    assert "differ by" in str(packing_reason(model))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_rows_at_reads_and_adds_up() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    found = rows_at(values, torch.tensor([[0, 0], [2, 0]]))
    assert found.tolist() == [[[1.0], [1.0]], [[3.0], [1.0]]]
    (found * torch.tensor([[[1.0], [10.0]], [[100.0], [1000.0]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1011.0], [0.0], [100.0]]  # 1 + 10 + 1000, never, 100


@pytest.mark.usefixtures("two_threads")
def test_gradients_of_a_shared_prompt_are_the_same_in_every_run() -> None:
    """16 completions of 24 tokens read the keys of one prompt of 48; `values[index]` fails here."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(48 + 16 * 24, 3, 64, generator=generator, requires_grad=True)
    own = 48 + torch.arange(16 * 24).view(16, 24)
    index = torch.cat([torch.arange(48).expand(16, -1), own], 1)
    weights = torch.randn(16, 72, 3, 64, generator=generator)
    runs = [torch.autograd.grad(rows_at(keys, index), keys, weights)[0] for _ in range(20)]
    assert all(torch.equal(runs[0], run) for run in runs)
    expected = torch.cat([weights[:, :48].sum(0), weights[:, 48:].flatten(0, 1)])
    torch.testing.assert_close(runs[0], expected, rtol=0, atol=1e-5)
