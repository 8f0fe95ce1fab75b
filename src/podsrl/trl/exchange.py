"""Kept rollouts go from the process that sampled them to the one that trains on them.

Shape letters: K kept rows that this process sampled, T tokens, B kept rows of all processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather, gather_object, pad_across_processes
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDED_ON_THE_LEFT = ("prompt_ids", "prompt_mask")
TRAVELS = ("tokens", "tokens", "tokens", "values", "numbers", None, "values", "values")
"""By which method the values of GRPOTrainer._generate go to another process: ids of prompt and
completion, tool mask, completion, log-probs, then `extra_fields`, which are in the rows by then,
the images of prompt and tools, and the latter alone."""


def rows_of_all(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows of all processes' batches, in order of the processes, of one width.

    batch: tensors with the rows first, equally many in each process; None and tensors without axes
    belong to all rows. Prompts are padded on the left and everything else on the right, with 0,
    which stands in the masks, too.

    Raises: `TypeError` for rows that are no tensor, in all processes alike.

    Example: completions ((5, 6)) here and ((7,)) there give ((5, 6), (7, 0)) in both.
    """
    joined: dict[str, Any] = {}
    for key, value in batch.items():
        if value is None or (isinstance(value, Tensor) and value.ndim == 0):
            joined[key] = value
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{key} holds {type(value).__name__}, and rows of tensors alone travel")
        if value.ndim > 1:
            left = key in PADDED_ON_THE_LEFT
            value = pad_across_processes(value, dim=1, pad_first=left)
        joined[key] = gather(value.contiguous())
    return joined


@dataclass(frozen=True)
class Picked:
    """Exchange where every process trains on rows that it sampled itself: nothing travels."""

    rows: Sequence[int]
    """Which of its own."""

    def values(self, values: Sequence[Any]) -> list[Any]:
        """Of one value per row that this process sampled, one per row that it trains on."""
        return [values[row] for row in self.rows]

    tokens = numbers = values


class Exchange:
    """Gives this process the kept rows that it trains on, where groups straddle processes.

    Kept rows alone travel, and tokens as one tensor. Every process must ask for the same things in
    the same order.

    Args:
        kept_rows: of all processes, ascending, counted over all sampled rows.
        num_sampled: rows that each process sampled.
        own: which of `kept_rows` this process trains on.
        process, num_processes, device: as the host's.

    Example: two processes with four sampled rows each, kept are 1, 2, 3 and 6: the first trains on
    rows 1 and 2, the second on 3, which it is given, and on 6.
    """

    def __init__(
        self,
        kept_rows: Sequence[int],
        *,
        num_sampled: int,
        own: slice,
        process: int,
        num_processes: int,
        device: torch.device,
    ) -> None:
        self.own, self.device = own, device
        sampler_of = [row // num_sampled for row in kept_rows]
        self.num_kept_of = [sampler_of.count(each) for each in range(num_processes)]
        self.here = [row % num_sampled for row in kept_rows if row // num_sampled == process]
        """Kept rows among those that this process sampled."""

    def values(self, values: Sequence[Any]) -> list[Any]:
        """Of one value per row that this process sampled, one per row that it trains on."""
        # Kept rows ascend, and so do the processes that sampled them: joined, they are in order.
        return list(gather_object([values[row] for row in self.here])[self.own])

    def tokens(self, values: Sequence[Sequence[int]]) -> list[list[int]]:
        """`values` for rows of token ids."""
        return self._exchanged([list(values[row]) for row in self.here], torch.int32)

    def numbers(self, values: Sequence[Sequence[float | None]]) -> list[list[float]]:
        """`values` for rows of numbers, in double precision; None, as vLLM gives it, is NaN."""
        filled = [[math.nan if x is None else x for x in values[row]] for row in self.here]
        return self._exchanged(filled, torch.float64)

    def _exchanged(self, rows: list[list[Any]], dtype: torch.dtype) -> list[list[Any]]:
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        lengths_B = self._joined(lengths)
        width = int(lengths_B.max())
        tensors = [torch.tensor(row, dtype=dtype) for row in rows]
        padded_KT = torch.zeros(len(rows), width, dtype=dtype)
        if tensors:
            longest = pad_sequence(tensors, batch_first=True)
            padded_KT[:, : longest.shape[1]] = longest
        rows_of_all = self._joined(padded_KT)
        pairs = zip(rows_of_all[self.own].tolist(), lengths_B[self.own].tolist(), strict=True)
        return [row[:length] for row, length in pairs]

    def _joined(self, mine: Tensor) -> Tensor:
        """The rows of all processes, which may have different numbers of them."""
        most = max(self.num_kept_of)
        shape = (most, *mine.shape[1:])
        filled = torch.zeros(shape, dtype=mine.dtype, device=self.device)
        filled[: len(mine)] = mine.to(self.device)
        parts = gather(filled).cpu().split(most)
        return torch.cat([part[:n] for part, n in zip(parts, self.num_kept_of, strict=True)])


@dataclass(frozen=True)
class Exchanged:
    """What is known of the rows that this process trains on."""

    columns: dict[int, list[Any]]
    """Of what GRPOTrainer._generate returned those that travel and are not empty, by place."""
    prompts: list[Any]
    logs: dict[str, list[Any]]
    """Columns that reward functions of any process logged, None where one has not."""


def exchanged(
    exchange: Exchange | Picked,
    *,
    generated: Sequence[Any],
    prompts: Sequence[Any],
    logs: dict[str, list[Any]],
) -> Exchanged:
    """All that TRL and reward functions have said of sampled rows, for those trained on here."""
    columns = {
        i: getattr(exchange, kind)(column)
        for i, (kind, column) in enumerate(zip(TRAVELS, generated, strict=True))
        if kind is not None and column
    }
    # Every process must exchange the same columns, also those that only some have logged.
    names = sorted(set(gather_object(list(logs))))
    nothing = [None] * len(prompts)
    found = {name: exchange.values(logs.get(name, nothing)) for name in names}
    return Exchanged(columns, exchange.values(prompts), found)
