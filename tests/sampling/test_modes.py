"""Adapters are merged while sampling, compute the same, and leave every weight as it was."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tiny import FAMILIES, make_model
from podsrl.sampling import modes
from podsrl.sampling.modes import merged_adapters
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def adapted(family: str = "llama", *, std: float = 0.3, model: Any = None, **options: Any) -> Any:
    """A tiny model whose adapters do something, unlike fresh ones, which are 0."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **options})
    lora = get_peft_model(make_model(family) if model is None else model, config).eval()
    torch.manual_seed(1)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    return lora


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1)


class Products(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def num_products(model: Any) -> int:
    with Products() as products:
        log_probs(model)
    return products.count["mm"] + products.count["addmm"]


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_log_probs_are_those_of_the_adapters_and_weights_come_back(family: str) -> None:
    model = adapted(family)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    expected, plain = log_probs(model), log_probs(model.get_base_model())
    with model.disable_adapter():
        without = log_probs(model)
    assert (expected - without).abs().max() > 1 and torch.equal(expected, plain)
    with merged_adapters(model) as num_layers:
        assert num_layers == 2 * 7
        torch.testing.assert_close(log_probs(model), expected, atol=1e-4, rtol=0)
        # One product for each of 7 projections of 2 layers and for the head; three with adapters.
        assert num_products(model) == 2 * 7 + 1
    assert num_products(model) == 3 * 2 * 7 + 1
    for name, parameter in model.named_parameters():
        pointer, values = before[name]
        assert parameter.data_ptr() == pointer and torch.equal(parameter, values), name
    assert torch.equal(log_probs(model), expected)


def test_weights_come_back_after_an_error() -> None:
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), merged_adapters(model):
        raise KeyError
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert num_products(model) == 43


def test_gradients_after_sampling_are_those_without_it() -> None:
    gradients = []
    for samples in (False, True):
        model = adapted().train()
        if samples:
            sample(model, [[5, 6, 7]], 4, settings=SamplingSettings(16, (), 0))
        model(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 28  # A and B of 14 layers
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_sampling_runs_on_merged_weights() -> None:
    model, seen = adapted(), []
    model.get_base_model().register_forward_hook(
        lambda *_: seen.append(sum(bool(getattr(m, "merged", False)) for m in model.modules()))
    )
    sample(model, [[5, 6, 7]], 4, settings=SamplingSettings(16, (), 0))
    assert seen == [14] * 16
    sample(model, [[5, 6, 7]], 4, settings=SamplingSettings(15, (), 0))
    assert seen[16:] == [0] * 15  # too few steps to pay for the merging


def test_two_active_adapters_are_both_merged() -> None:
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    expected = log_probs(model)
    with merged_adapters(model) as num_layers:
        assert num_layers == 14
        torch.testing.assert_close(log_probs(model), expected, atol=1e-4, rtol=0)
    assert torch.equal(log_probs(model), expected)


def test_adapters_that_are_off_or_merged_already_are_left_alone() -> None:
    model = adapted()
    with model.disable_adapter():
        expected = log_probs(model)
        with merged_adapters(model) as num_layers:
            assert num_layers == 0
            assert torch.equal(log_probs(model), expected)
    model.merge_adapter()
    with merged_adapters(model) as num_layers:
        assert num_layers == 0
    assert all(m.merged for m in model.modules() if hasattr(m, "merged_adapters"))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_are_left_alone(options: dict[str, Any]) -> None:
    model = adapted(model=make_model("qwen2"), target_modules=["q_proj"], **options)
    expected = log_probs(model)
    with merged_adapters(model) as num_layers:
        assert num_layers == 0
        assert torch.equal(log_probs(model), expected)


def test_a_tied_head_is_not_merged_into_the_embedding() -> None:
    model = adapted(
        model=make_model(tie_word_embeddings=True), target_modules=["lm_head", "q_proj"]
    )
    expected = log_probs(model)
    with merged_adapters(model) as num_layers:
        assert num_layers == 2  # q of both layers
        torch.testing.assert_close(log_probs(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("std", "num_merged"), [(1e-4, 0), (3.0, 14)])
def test_an_adapter_that_half_precision_would_round_away_is_not_merged(
    std: float, num_merged: int
) -> None:
    """Weights of 0.3 in bfloat16 lie 0.3 / 256 to 0.3 / 128 apart; 1e-4 x 4 x 2 x 0.1 is lost."""
    model = adapted(model=make_model().bfloat16(), std=std)
    with merged_adapters(model) as num_layers:
        assert num_layers == num_merged
    with merged_adapters(adapted(std=std)) as num_layers:
        assert num_layers == 14  # in float32 nothing is lost


def test_under_autocast_the_sum_is_cast_once_and_is_what_autocast_makes_of_it() -> None:
    model, expected = adapted(), adapted()
    expected.merge_adapter()
    with torch.autocast("cpu", torch.bfloat16):
        truth = log_probs(expected)
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.get_base_layer().weight
    with merged_adapters(model, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        assert weight.dtype == torch.bfloat16
        assert torch.equal(log_probs(model), truth)
    assert weight.dtype == torch.float32


def test_without_memory_for_the_sums_nothing_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(target_modules=["q_proj"])
    # 2 layers of 32 x 32 float32 = 8,192 bytes; a quarter of what is free is theirs.
    monkeypatch.setattr(modes, "free_bytes", lambda device: 4 * 8192 - 1)
    with merged_adapters(model) as num_layers:
        assert num_layers == 0
    monkeypatch.setattr(modes, "free_bytes", lambda device: 4 * 8192)
    with merged_adapters(model) as num_layers:
        assert num_layers == 2


def test_models_without_adapters_are_left_alone() -> None:
    with merged_adapters(make_model()) as num_layers:
        assert num_layers == 0
