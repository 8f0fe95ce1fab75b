"""The precision in which torch computes."""

import torch


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products and attention read tensors of this dtype now: autocast's, if on.

    Example: float32 on a CPU is bfloat16 under `torch.autocast("cpu")`; float64, which autocast
    leaves alone, stays.
    """
    if dtype == torch.float64 or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)
