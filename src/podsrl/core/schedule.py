"""How many rollouts per prompt are kept as training goes on."""

import math
from typing import Any


def kept_at(step: int, num_steps: int, *, start: int, end: int, unit: int = 1) -> int:
    """Return how many rollouts per prompt are kept at a step: from `start` up to `end`.

    The numbers start, start + unit, ..., end each hold for an equal share of the steps, in order.
    The idea, to down-sample hard at first and less and less later, is that of D3S (arXiv
    2509.22115); its own schedule was not read, and this one is the simplest of the kind.

    Args:
        step: optimizer steps done, 0 at the start of training.
        num_steps: steps over which the number grows; beyond them it is `end`.
        start, end: both multiples of `unit`, start <= end.
        unit: see `smallest_unit`.

    Example: from 2 to 8 in units of 2 over 100 steps: 2 at steps 0 to 24, 4 from 25, 6 from 50,
    8 from 75.
    """
    num_levels = (end - start) // unit + 1
    return start + unit * min(num_levels - 1, step * num_levels // max(1, num_steps))


def smallest_unit(num_kept: int, batch_size: int) -> int:
    """The unit in which kept rollouts per prompt can change without breaking micro-batches.

    A micro-batch of `batch_size` rows at `num_kept` per prompt has batch_size * k / num_kept rows
    at k per prompt, which must be whole: k is a multiple of num_kept / gcd(num_kept, batch_size).
    Example: 8 kept and 2 rows a micro-batch: k is a multiple of 4.
    """
    return num_kept // math.gcd(num_kept, batch_size)


def num_kept_now(args: Any, state: Any) -> int:
    """How many rollouts per prompt a run with these arguments keeps in the state it is in."""
    start, end = args.num_generations_start, args.num_generations
    if start is None:
        return int(end)
    unit = smallest_unit(end, args.per_device_train_batch_size)
    num_steps = args.num_generations_steps or state.max_steps
    return kept_at(state.global_step, num_steps, start=start, end=end, unit=unit)
