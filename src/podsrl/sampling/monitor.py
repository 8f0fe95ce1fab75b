"""What the sampler tells about rollouts that end, and how it is told to stop others.

Shape letters: B rows decoded together, T new tokens.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor


class Monitor(Protocol):
    """Hears of rollouts as they end. Rows count over all rollouts of a call, prompt by prompt."""

    def ended(self, row: int, tokens: list[int]) -> None:
        """Rollout `row` has ended, by an end token or at the length limit, with these tokens."""

    def rows_to_stop(self, step: int) -> Collection[int]:
        """Rows whose rollouts need not go on; ended rows among them are passed over.

        Asked after `ended` was called for all rows that ended up to this step of the rows decoded
        together: after step 0 and then every step on a CPU, every eighth on CUDA.
        """


class Watch:
    """Stands between a `Monitor`, or none, and rows decoded together, numbered 0..B-1 there."""

    def __init__(self, monitor: Monitor | None, first_row: int, num_rollouts: int) -> None:
        self.monitor = monitor
        self.first_row, self.num_rollouts = first_row, num_rollouts
        self.length_of_stopped: dict[int, int] = {}
        """Tokens of the rows that were stopped, by their numbers."""

    @property
    def is_on(self) -> bool:
        return self.monitor is not None

    def begin(self, count: int, num_done: int, eos_token_ids: Collection[int]) -> None:
        """`count` rollouts of each prompt come next, after `num_done` of each."""
        self.count, self.num_done = count, num_done
        self.eos_token_ids = frozenset(eos_token_ids)
        self.length_of_stopped = {}

    def row(self, number: int) -> int:
        """The monitor's row of one of the rows decoded together."""
        # Rows decoded together hold `count` rollouts of each prompt; those of one prompt decoded at
        # another time lie between them in the whole call.
        prompt, place = divmod(number, self.count)
        return self.first_row + prompt * self.num_rollouts + self.num_done + place

    def after_step(
        self,
        step: int,
        tokens_BT: Tensor,
        number_B: Tensor,
        ended_B: Tensor,
        *,
        length_B: Tensor | None = None,
    ) -> Tensor:
        """Report the rows that have ended; return ended_B with the rows to stop ended, too.

        length_B: tokens of each row, where they have not begun together; else step + 1.
        """
        if self.monitor is None:
            return ended_B
        self.report(
            number_B[ended_B], tokens_BT if length_B is not None else tokens_BT[:, : step + 1]
        )
        rows_to_stop = self.monitor.rows_to_stop(step)
        if not rows_to_stop:
            return ended_B
        ends_B = ended_B.tolist()
        lengths = [step + 1] * len(ends_B) if length_B is None else length_B.tolist()
        for place, number in enumerate(number_B.tolist()):
            if not ends_B[place] and self.row(number) in rows_to_stop:
                ends_B[place] = True
                self.length_of_stopped[number] = lengths[place]
        return torch.tensor(ends_B, device=ended_B.device)

    def report(self, number_K: Tensor, tokens_BT: Tensor) -> None:
        """Tell the monitor that the rows of these numbers have ended."""
        if self.monitor is None:
            return
        for number, tokens in zip(number_K.tolist(), tokens_BT[number_K].tolist(), strict=True):
            length = length_until_end(tokens, self.eos_token_ids)
            self.monitor.ended(self.row(number), tokens[:length])


def length_until_end(tokens: list[int], eos_token_ids: Collection[int]) -> int:
    """Number of tokens up to and with the first end token, or of all: [5, 1, 0], {1} give 2."""
    return next((i + 1 for i, token in enumerate(tokens) if token in eos_token_ids), len(tokens))
