"""Weights kept, while a model samples on a CPU, in the blocks that its processor multiplies.

oneDNN, which computes torch's bfloat16 products, reads a weight in blocks of its own and brings a
plain matrix there at every product. With the rows of decoding that is a tenth to two fifths of the
product's time, and nothing of it is new from one token to the next: here it is done once per call.
"""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from podsrl.sampling.cache import computing_dtype
from podsrl.sampling.memory import SHARE_OF_FREE_MEMORY, free_bytes
from podsrl.sampling.modes import MIN_STEPS

# For how many rows the blocks are made. One layout serves them all: made for 16, 64, 256 or 1,024
# rows, products of 1 to 1,024 rows take the same time within the noise (LOG.md).
NUM_ROWS = 64


@contextmanager
def blocked_weights(model: PreTrainedModel, *, num_steps: int = MIN_STEPS) -> Iterator[int]:
    """Linear layers multiply by bfloat16 weights in blocks; gives how many layers do.

    A layer gets a `forward` of its own and loses it afterwards, also after an error; weights are
    not touched, and must not change meanwhile, as the blocks are a copy. To be entered within the
    autocast region in which the model runs, if any. num_steps: steps that will be decoded; below 16
    nothing is done, as the blocks take the time that some 4 steps save.

    Results are those of the plain layers under the same autocast, to the bit where oneDNN adds up
    in the same order: with AMX and weights of SmolLM2-135M or Qwen2.5-0.5B up to 256 rows, and
    always to rounding.

    Left as they are: layers off the CPU or in another precision, subclasses of `nn.Linear` and
    layers whose `forward` somebody else has replaced, sharded weights, and all of them on
    processors without bfloat16 products of oneDNN, on others than x86 (not measured), or where the
    copies do not fit into half of what sampling may use.

    Example: SmolLM2-135M, 30 layers of 7 products and a head: 211 layers, 269 MB.
    """
    layers = _blockable(model) if num_steps >= MIN_STEPS else []
    changed: list[nn.Linear] = []
    try:
        for layer in layers:
            vars(layer)["forward"] = _forward_in_blocks(layer)
            changed.append(layer)
        yield len(changed)
    finally:
        for layer in changed:
            del vars(layer)["forward"]


def _blockable(model: nn.Module) -> list[nn.Linear]:
    """The layers that would run in bfloat16 on this processor, if memory holds their copies."""
    if not _has_blocks():
        return []
    # Not isinstance: a subclass has its own way to hold weights or to run.
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        # A shard of a weight is of another class or a vector.
        and type(module.weight) is nn.Parameter
        and module.weight.dim() == 2
        and not hasattr(module.weight, "ds_id")
        and module.weight.device.type == "cpu"
        and module.weight.dtype in (torch.float32, torch.bfloat16)
        and computing_dtype(module.weight.device, module.weight.dtype) == torch.bfloat16
    ]
    num_bytes = sum(layer.weight.numel() * torch.bfloat16.itemsize for layer in layers)
    usable = SHARE_OF_FREE_MEMORY / 2 * free_bytes(torch.device("cpu"))
    return layers if num_bytes <= usable else []


def _has_blocks() -> bool:
    """Whether this processor has bfloat16 products of oneDNN that take weights in blocks."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        # Torch keeps these two to itself and may take them away.
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _forward_in_blocks(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What `layer` computes under bfloat16 autocast, its weight brought into blocks beforehand."""
    plain, is_bfloat16 = layer.forward, layer.weight.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        blocks = torch.ops.mkldnn._reorder_linear_weight(layer.weight.bfloat16(), NUM_ROWS)
        bias = None if layer.bias is None else layer.bias.bfloat16()

    def forward(x: Tensor) -> Tensor:
        # A model may switch autocast off around a layer, as some do around a router of experts.
        if torch.is_autocast_enabled("cpu") or (is_bfloat16 and x.dtype == torch.bfloat16):
            return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), blocks, bias, "none", [], "")
        return plain(x)

    return forward
