"""Weights that FSDP2 shards over processes, whole in each of them while it samples.

A pass over sharded weights gathers them from all processes, and in sampling that would be at every
token; rollouts of different processes end at different steps besides.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.distributed.fsdp import FSDPModule
from trl import GRPOTrainer

LARGEST_SHARE_OF_MEMORY = 0.5


def why_not_whole(host: GRPOTrainer) -> str | None:
    """Why the weights that are sharded in training cannot be whole for sampling; None if they can.

    Told from the device's whole memory, not from what is free of it: a run must say the same at
    each step and after a resume.
    """
    if host._dist.fsdp_version != 2:
        return "FSDP of version 1 shards the weights while sampling"
    mixed = host.accelerator.mixed_precision in ("bf16", "fp16")
    needed = sum(w.numel() * (2 if mixed else w.itemsize) for w in host.model.parameters())
    memory = _memory_bytes(host.accelerator.device)
    if needed > LARGEST_SHARE_OF_MEMORY * memory:
        return (
            f"the weights are sharded, and take {needed / 2**30:.1f} GiB together, more than "
            f"{LARGEST_SHARE_OF_MEMORY:.0%} of a device's {memory / 2**30:.1f}"
        )
    return None


@contextmanager
def whole_weights(host: GRPOTrainer) -> Iterator[None]:
    """FSDP2's weights are gathered once, before the enclosed block, and stay until its end.

    In the block a pass exchanges nothing, so that processes may make different numbers of passes.
    Every process must enter it. Does nothing where weights are not sharded by FSDP2.
    """
    model = host.accelerator.unwrap_model(host.model_wrapped)
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            again = bool(host.accelerator.state.fsdp_plugin.reshard_after_forward)
            module.set_reshard_after_forward(again, recurse=False)
        # As accelerate has it: what is needed last in forward is needed first in backward.
        for module in (model, model.get_output_embeddings()):
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(False, recurse=False)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
