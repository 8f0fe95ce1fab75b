"""The modes in which a model samples, put back afterwards."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from podsrl.sampling.memory import SHARE_OF_FREE_MEMORY, free_bytes

MIN_STEPS = 16
# Rounding may take this share of an adapter when it is added to its weights, by root mean squares.
FRAC_LOST = 0.05


@contextmanager
def evaluation(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, which also turns checkpointing off, then each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): that would also switch on modules that were in evaluation mode.
        for module in training:
            module.training = True


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """One autocast region around all steps, so that it keeps the weights it has cast."""
    if dtype is None:
        yield
    else:
        with torch.autocast(device.type, dtype=dtype):
            yield


@contextmanager
def merged_adapters(
    model: PreTrainedModel, autocast_dtype: torch.dtype | None = None, *, num_steps: int = MIN_STEPS
) -> Iterator[int]:
    """LoRA adapters added to the weights they adapt; gives how many layers have one product now.

    W + scaling B A stands in the place of W, which is not written to: afterwards the very same
    tensor is back, bit for bit, also after an error. autocast_dtype: of the autocast region in
    which the model will run; the sum of float32 weights is kept in it, which is what autocast would
    make of it, and at every step anew, since it keeps no casts of frozen weights. num_steps: steps
    that will be decoded; below 16 nothing is merged, as it takes the time that some 10 steps save.

    Left as they are, and right as they are: adapters that are switched off or merged already,
    DoRA and other variants, quantized layers, weights that another module uses too (a tied head),
    sharded weights, layers whose weights would lose more than a twentieth of the adapter to
    rounding (half-precision weights early in training), and all of them where the sums do not fit
    into half of what sampling may use.

    Example: rank 8 on q and v of 30 layers: 60 layers, 120 products and 60 sums less per token.
    """
    swapped: list[tuple[Any, Tensor]] = []
    try:
        pays = hasattr(model, "peft_config") and num_steps >= MIN_STEPS
        for layer in _mergeable(model) if pays else []:
            weight = layer.get_base_layer().weight
            if (merged := _merged_weight(layer, weight.data, autocast_dtype)) is not None:
                swapped.append((layer, weight.data))
                weight.data = merged
                layer.merged_adapters.extend(_active(layer))
        yield len(swapped)
    finally:
        for layer, original in swapped:
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = original


def _mergeable(model: nn.Module) -> list[Any]:
    """The layers of plain LoRA whose weights are theirs alone, if memory holds their sums."""
    # Imported here, as models without adapters have no use for peft.
    from peft.tuners.lora import Linear

    modules: list[Any] = list(model.modules())
    users = Counter(id(p) for module in modules for p in module._parameters.values())
    layers = []
    for layer in modules:
        # Not isinstance: a subclass has its own way to hold weights or to run.
        if type(layer) is not Linear or layer.merged or layer.disable_adapters:
            continue
        base, names = layer.get_base_layer(), _active(layer)
        plain = type(base) in (nn.Linear, Conv1D) and not hasattr(base.weight, "ds_id")
        plain = plain and not any(name in layer.lora_variant for name in names)
        plain = plain and not any(layer.lora_bias[name] for name in names)
        if plain and names and users[id(base.weight)] == 1:
            layers.append(layer)
    num_bytes = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    fits = not layers or num_bytes <= SHARE_OF_FREE_MEMORY / 2 * free_bytes(
        layers[0].get_base_layer().weight.device
    )
    return layers if fits else []


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _merged_weight(layer: Any, weight: Tensor, autocast_dtype: torch.dtype | None) -> Tensor | None:
    """Weight and adapters summed in float32 and rounded once; None if that loses the adapters."""
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        first, *others = (layer.get_delta_weight(name).float() for name in _active(layer))
        delta = sum(others, first)
        if weight.dtype == torch.float32:
            return delta.add_(weight).to(autocast_dtype or torch.float32)
        merged = (weight.float() + delta).to(weight.dtype)
        # A weight of half precision lies on the grid of that precision: what is added to it
        # vanishes below half a step of the grid, and the policy would not move as it is trained.
        lost = (merged.float() - weight.float() - delta).norm()
        return merged if lost <= FRAC_LOST * delta.norm() else None
