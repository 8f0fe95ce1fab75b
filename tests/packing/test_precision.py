"""Attention of packed rows on a CPU: in float32 where that is faster, rounded as it was."""

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from helpers.tiny import make_model
from podsrl.packing.attention import use_shared_prefix
from podsrl.packing.precision import MAX_KEYS_IN_FLOAT32, in_faster_precision


def states(num_keys: int = 40, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 4, 8, 16), (2, 2, num_keys, 16), (2, 2, num_keys, 16)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def attend(*qkv: Any) -> Any:
    return scaled_dot_product_attention(*qkv, enable_gqa=True)


def seen(num_keys: int, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """In which precision attention is computed under the present autocast, and its output's."""
    computed = []

    def noting(*qkv: Any) -> Any:
        is_cast = torch.is_autocast_enabled("cpu")
        computed.append(torch.get_autocast_dtype("cpu") if is_cast else qkv[0].dtype)
        assert len({each.dtype for each in qkv}) == 1
        return attend(*qkv)

    output = in_faster_precision(noting, *states(num_keys, dtype))
    return computed[0], output.dtype


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_which_precision_is_computed_in_and_which_comes_out(half: torch.dtype) -> None:
    most, full = MAX_KEYS_IN_FLOAT32, torch.float32
    assert seen(40, full) == (full, full)
    # A model of half precision, then one of float32 under autocast.
    assert seen(most, half) == (full, half) and seen(most + 1, half) == (half, half)
    with torch.autocast("cpu", half):
        assert seen(most, full) == (full, half) and seen(most + 1, full) == (half, half)


def test_float32_and_float64_are_passed_on_untouched() -> None:
    for dtype in (torch.float32, torch.float64):
        given: list[Any] = []
        qkv = states(40, dtype)
        in_faster_precision(lambda *each, given=given: given.extend(each) or attend(*each), *qkv)
        assert all(mine is theirs for mine, theirs in zip(qkv, given, strict=True))
    with torch.autocast("cpu", torch.bfloat16):  # which does not cast float64
        assert in_faster_precision(attend, *states(40, torch.float64)).dtype == torch.float64


def test_output_and_gradients_are_nearer_to_exact_ones_than_those_of_half_precision() -> None:
    upstream = torch.randn(2, 4, 8, 16)

    def found(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        qkv = states(40, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = function(*qkv)
        return [output.double(), *torch.autograd.grad(output, qkv, upstream.to(output.dtype))]

    exact = found(attend, torch.float64)
    plain = found(attend, torch.float32)
    ours = found(lambda *qkv: in_faster_precision(attend, *qkv), torch.float32)
    for true, half, full in zip(exact, plain, ours, strict=True):
        error, error_of_half = ((x.double() - true).norm() / true.norm() for x in (full, half))
        # The output and what comes back through it are rounded to 8 bits: 2**-9 at most each.
        assert error <= 2**-8 and error < 0.75 * error_of_half


def test_a_padded_batch_is_left_alone() -> None:
    """Unpacked rows go to transformers' own attention, whose bits are the stock host's."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = make_model()(ids).logits
        model = make_model()
        assert use_shared_prefix(model)
        assert torch.equal(model(ids).logits, stock)
