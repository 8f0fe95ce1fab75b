"""The precision in which a packed row's attention is computed."""

from collections.abc import Callable

import torch
from torch import Tensor

# Beyond, what float32 saves in time is little and what it takes in memory is much: both directions
# take .35 of half precision's time at 72 keys, .44 at 110, .7 at 512, 1.07 at 1,024 (LOG.md).
MAX_KEYS_IN_FLOAT32 = 512


def computing_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which torch multiplies this one: autocast's where it would cast it."""
    if dtype == torch.float64 or not torch.is_autocast_enabled(device.type):
        return dtype
    return torch.get_autocast_dtype(device.type)


def in_faster_precision(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """`attend(query, key, value)`, on a CPU in float32 where torch's half precision is slower.

    query, key, value: (B, H, positions, D). The result is rounded to the precision that it would
    have had, autocast's or the states' own; it is nearer to the exact one. Elsewhere than on a CPU,
    in float32 and beyond 512 keys nothing is changed.

    Example: under bfloat16 autocast 24 queries of 72 keys are multiplied in float32, and the output
    is bfloat16.
    """
    if query.device.type != "cpu" or key.shape[-2] > MAX_KEYS_IN_FLOAT32:
        return attend(query, key, value)
    dtype = computing_dtype(query.device, query.dtype)
    if dtype not in (torch.bfloat16, torch.float16):
        return attend(query, key, value)
    with torch.autocast("cpu", enabled=False):
        return attend(query.float(), key.float(), value.float()).to(dtype)
