"""Weights in blocks: the bits of plain bfloat16 products, and layers that are left as they were."""

import copy
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from helpers.tiny import FAMILIES, make_model
from podsrl.sampling import blocked_weights as module
from podsrl.sampling import sample as sampling
from podsrl.sampling.blocked_weights import blocked_weights
from podsrl.sampling.mixture import Agent, decode_mixture
from podsrl.sampling.settings import SamplingSettings

BF16 = torch.bfloat16
SETTINGS = SamplingSettings(max_new_tokens=16, eos_token_ids=(3,), pad_token_id=0)
PROMPTS = [[5, 6, 7, 8], [9, 5]]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or not torch.backends.mkldnn.is_available()
    or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="needs an x86 processor with bfloat16 products of oneDNN",
)


def autocast(enabled: bool = True) -> Any:
    return torch.autocast("cpu", BF16, enabled=enabled)


def num_replaced(model: nn.Module) -> int:
    return sum("forward" in vars(each) for each in model.modules())


class Layers(nn.Module):
    """Layers of the shapes of SmolLM2-135M, the head cut short, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = [(576, 192), (576, 1536), (1536, 576), (576, 4000)]
        self.each = nn.ModuleList(nn.Linear(i, o, bias=i == 1536) for i, o in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("num_rows", [1, 7, 16, 64, 200])
def test_products_have_the_bits_of_plain_ones(num_rows: int, dtype: torch.dtype) -> None:
    layers = Layers().to(dtype)
    for layer in layers.each:
        wide = torch.randn(num_rows, 3, 2 * layer.in_features)
        for x in (wide[:, :1, ::2], wide[:, 0, : layer.in_features], wide[0, 0, ::2]):
            with torch.no_grad(), autocast():
                plain = layer(x)
                with blocked_weights(layers) as num_layers:
                    found = layer(x)
            assert num_layers == 4 and num_replaced(layers) == 0
            assert found.dtype == plain.dtype == BF16 and found.shape == plain.shape
            # To the bit with AMX or AVX512-BF16; without them oneDNN adds up in another order.
            torch.testing.assert_close(found, plain, atol=0.02, rtol=0)
            if has_amx():
                assert torch.equal(found, plain)


def has_amx() -> bool:
    with open("/proc/cpuinfo") as lines:
        return "amx_bf16" in lines.read()


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_are_the_same_bits_with_and_without(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counts = make_model(family), []
    state = copy.deepcopy(model.state_dict())

    @contextmanager
    def counting(*args: Any, **options: Any) -> Iterator[int]:
        with blocked_weights(*args, **options) as count:
            counts.append(count)
            yield count

    def rollouts(dtype: torch.dtype | None) -> Any:
        return sampling.sample(
            model,
            PROMPTS,
            8,
            settings=SETTINGS,
            generator=torch.Generator().manual_seed(2),
            autocast_dtype=dtype,
            return_log_probs=True,
        )

    monkeypatch.setattr(sampling, "blocked_weights", counting)
    found = rollouts(BF16)
    with autocast():  # as evaluations sample
        assert rollouts(None) == found
    monkeypatch.setattr(module, "_has_blocks", lambda: False)
    plain = rollouts(BF16)
    num_layers = sum(type(each) is nn.Linear for each in model.modules())
    assert counts == [num_layers, num_layers, 0]
    if has_amx():
        assert found.completion_ids == plain.completion_ids and found.log_probs == plain.log_probs
    assert num_replaced(model) == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_that_takes_part_twice_in_a_mixture_is_changed_once_and_put_back() -> None:
    model = make_model()
    agent = Agent(model, 1, lambda states: states[:, 0])
    found, alone = (
        decode_mixture(
            agents,
            PROMPTS,
            SETTINGS,
            generator=torch.Generator().manual_seed(3),
            autocast_dtype=BF16,
        )[0]
        for agents in ([agent, agent], [agent])
    )
    assert [each.token_ids for each in found] == [each.token_ids for each in alone]
    assert num_replaced(model) == 0


def test_layers_are_put_back_after_an_error() -> None:
    model = make_model()
    with pytest.raises(KeyError), autocast(), blocked_weights(model) as count:
        assert count == num_replaced(model) > 0
        raise KeyError
    assert num_replaced(model) == 0


def test_a_layer_that_runs_outside_autocast_runs_in_its_own_precision() -> None:
    layers, x = Layers(), torch.randn(4, 576)
    plain = layers.each[0](x)
    with autocast(), blocked_weights(layers):
        assert layers.each[0](x).dtype == BF16
        with autocast(enabled=False):
            inside = layers.each[0](x)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)


class Own(nn.Linear):
    """Has its own way to run."""


def test_what_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = Layers()
    layers.each.append(Own(8, 8))
    layers.each[0].forward = lambda x: x  # type: ignore[method-assign]
    layers.each[1].weight.ds_id = 1
    layers.each[2].double()
    for is_cast, steps, expected in [(True, 16, 1), (True, 15, 0), (False, 16, 0)]:
        with autocast(is_cast), blocked_weights(layers, num_steps=steps) as count:
            assert count == expected
    assert "forward" in vars(layers.each[0])  # the one that was there
    with torch.autocast("cpu", torch.float16), blocked_weights(Layers()) as count:
        assert count == 0
    with blocked_weights(Layers().bfloat16()) as count:  # runs in bfloat16 of its own
        assert count == 4
    with autocast(), blocked_weights(Layers().to("meta")) as count:
        assert count == 0
    # 576*192 + 2*576*1536 + 576*4000 weights of 2 bytes are 8,368,128; a quarter of what is free
    # may go to them.
    for free, expected in [(4 * 8_368_128, 4), (4 * 8_368_128 - 4, 0)]:
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free: free)
        with autocast(), blocked_weights(Layers()) as count:
            assert count == expected
    monkeypatch.undo()
    with torch.backends.mkldnn.flags(enabled=False), autocast(), blocked_weights(Layers()) as count:
        assert count == 0


def test_torch_still_has_the_operations() -> None:
    """They are not part of torch's public interface: where one has gone, this says so."""
    assert module._has_blocks()
