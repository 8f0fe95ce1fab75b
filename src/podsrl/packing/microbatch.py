"""Micro-batches that keep the rollouts of one prompt together and carry equal numbers of tokens."""

import heapq
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def balance(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    groups: Sequence[int],
    num_batches: int,
) -> list[list[int]]:
    """Divide rows into `num_batches` micro-batches of equally many rows and nearly equal tokens.

    A prompt counts once per micro-batch that holds it. Equal row counts keep the loss what it was:
    TRL averages some losses per micro-batch. Groups of one size stay whole, or are cut into equal
    parts when a micro-batch is smaller than a group; units are handed out largest first, each to
    the lightest micro-batch with room. Where sizes differ or do not divide a micro-batch, rows are
    cut in group order, so that a micro-batch tears at most two groups. The result depends on the
    arguments alone.

    Args:
        prompt_lengths, completion_lengths: tokens of each row.
        groups: equal numbers name rows of one prompt.
        num_batches: must divide the number of rows.

    Returns:
        Row indices of each micro-batch, ascending.

    Raises:
        ValueError: lists of unequal length, or rows that do not divide evenly.

    Example:
        >>> balance([5] * 8, [9, 9, 1, 1, 1, 1, 9, 9], [0, 0, 1, 1, 2, 2, 3, 3], 2)
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    num_rows = len(groups)
    if not len(prompt_lengths) == len(completion_lengths) == num_rows:
        raise ValueError(
            f"{len(prompt_lengths)} prompt lengths, {len(completion_lengths)} completion lengths "
            f"and {num_rows} groups; pass one of each per row."
        )
    if num_batches < 1 or num_rows % num_batches:
        raise ValueError(
            f"{num_rows} rows cannot be divided into {num_batches} micro-batches of equal size; "
            "choose a divisor of the number of rows."
        )
    size = num_rows // num_batches
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    largest = max(len(rows) for rows in members.values())
    unit = math.gcd(size, *(len(rows) for rows in members.values()))
    # A unit is the largest piece that fills batches and groups alike. If that is less than a group
    # (and than a batch), small pieces would scatter groups over batches, and each would read its
    # prompt again: then rows are cut in group order.
    if unit < min(size, largest):
        ordered = [row for rows in members.values() for row in rows]
        return [sorted(ordered[i * size : (i + 1) * size]) for i in range(num_batches)]
    units = [part for rows in members.values() for part in _cut(rows, completion_lengths, unit)]
    tokens = [prompt_lengths[u[0]] + sum(completion_lengths[row] for row in u) for u in units]
    return _hand_out(units, tokens, num_batches, size)


def whole_groups(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    groups: Sequence[int],
    num_batches: int,
) -> list[list[int]]:
    """Divide rows into `num_batches` micro-batches of nearly equal tokens that tear no group.

    `balance` where all groups have one size that divides a micro-batch. Otherwise groups are handed
    out largest first, each to the lightest micro-batch: these then have different numbers of rows,
    and with fewer groups than micro-batches some have none.

    Args, result and what is raised: as `balance`.

    Example:
        >>> whole_groups([1] * 6, [5] * 6, [0, 0, 0, 1, 2, 2], 2)
        [[0, 1, 2], [3, 4, 5]]
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    sizes = {len(rows) for rows in members.values()}
    if len(sizes) == 1 and len(groups) % (num_batches * max(sizes)) == 0:
        return balance(prompt_lengths, completion_lengths, groups, num_batches)
    units = list(members.values())
    tokens = [prompt_lengths[u[0]] + sum(completion_lengths[row] for row in u) for u in units]
    return _hand_out(units, tokens, num_batches, len(groups))


def balance_processes(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    groups: Sequence[int],
    *,
    num_processes: int,
    num_batches: int,
) -> list[list[list[int]]]:
    """Divide the rows of all processes into as many micro-batches for each, of nearly equal tokens.

    Equally many rows in each, as `balance` has it; the k-th micro-batches of the processes run at
    one time. Groups are halved, and halved again, where that makes the heaviest micro-batches
    lighter although a prompt is then read in more of them.

    num_batches: micro-batches of each process. The other arguments: as of `balance`.

    Returns:
        For each process its micro-batches, of row indices.

    Example: of two groups one has nothing to read; each process gets half of the other.
        >>> balance_processes([5, 5, 0, 0], [9, 9, 0, 0], [0, 0, 1, 1], num_processes=2,
        ...                   num_batches=1)
        [[[0, 2]], [[1, 3]]]
    """
    num_parts = num_processes * num_batches
    size = len(groups) // num_parts
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    unit = math.gcd(size, *(len(rows) for rows in members.values()))
    plans = []
    while True:
        units = [part for rows in members.values() for part in _cut(rows, completion_lengths, unit)]
        tokens = [prompt_lengths[u[0]] + sum(completion_lengths[row] for row in u) for u in units]
        parts = _hand_out(units, tokens, num_parts, size)
        plans.append([parts[process::num_processes] for process in range(num_processes)])
        if unit % 2:
            break
        unit //= 2
    return min(plans, key=lambda plan: slowest(prompt_lengths, completion_lengths, groups, plan))


def slowest(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    groups: Sequence[int],
    plan: Sequence[Sequence[Sequence[int]]],
) -> int:
    """Tokens that processes wait for: of the heaviest k-th micro-batch, summed over k.

    Arguments and plan: as of `balance_processes`.

    Example:
        >>> slowest([5, 5, 0, 0], [9, 9, 0, 0], [0, 0, 1, 1], [[[0, 1]], [[2, 3]]])
        23
    """

    def tokens(rows: Sequence[int]) -> int:
        prompts = {groups[row]: prompt_lengths[row] for row in rows}
        return sum(prompts.values()) + sum(completion_lengths[row] for row in rows)

    return sum(max(map(tokens, together)) for together in zip(*plan, strict=True))


def _cut(rows: list[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Parts of `size` rows, the longest rows dealt back and forth so that parts weigh alike."""
    num_parts = len(rows) // size
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    # 0 1 2 2 1 0 0 1 2 ...: who gets the longer row in one turn gets the shorter one in the next.
    for place, row in enumerate(sorted(rows, key=lambda row: (-lengths[row], row))):
        turn, seat = divmod(place, num_parts)
        parts[seat if turn % 2 == 0 else num_parts - 1 - seat].append(row)
    return parts


def _hand_out(
    units: list[list[int]], tokens: list[int], num_batches: int, size: int
) -> list[list[int]]:
    """Each unit to the lightest batch with room: units of one size, or room for all in each."""
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    lightest = [(0, batch) for batch in range(num_batches)]
    # Largest first, each to the lightest: what is small is left to even out the loads.
    for index in sorted(range(len(units)), key=lambda index: (-tokens[index], index)):
        load, batch = heapq.heappop(lightest)
        batches[batch] += units[index]
        if len(batches[batch]) < size:
            heapq.heappush(lightest, (load + tokens[index], batch))
    return [sorted(rows) for rows in batches]


def regroup(batches: list[dict[str, Any]], rows: list[list[int]]) -> list[dict[str, Any]]:
    """The same rows dealt out anew: batch i of the result holds `rows[i]`.

    Args:
        batches: dictionaries with the same keys. Tensors with axes and lists are batch-first;
            None and 0-d tensors belong to all batches alike and are handed on.
        rows: row numbers, counted through `batches` in order; each row exactly once.

    Raises:
        ValueError: rows that are not a permutation.
    """
    joined = {key: _join([batch[key] for batch in batches]) for key in batches[0]}
    num_rows = sum(len(part) for part in rows)
    if sorted(row for part in rows for row in part) != list(range(num_rows)):
        raise ValueError(f"rows must name each of {num_rows} rows exactly once, got {rows}.")
    return pick(joined, rows)


def pick(batch: dict[str, Any], rows: list[list[int]]) -> list[dict[str, Any]]:
    """Batches of some of the rows of one: batch i of the result holds `rows[i]`."""
    return [{key: _take(value, part) for key, value in batch.items()} for part in rows]


def _join(values: list[Any]) -> Any:
    first = values[0]
    if first is None or (isinstance(first, Tensor) and first.ndim == 0):
        return first
    return torch.cat(values) if isinstance(first, Tensor) else [x for part in values for x in part]


def _take(value: Any, rows: list[int]) -> Any:
    if value is None or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    if isinstance(value, Tensor):
        return value[torch.tensor(rows, dtype=torch.long, device=value.device)]
    return [value[row] for row in rows]
