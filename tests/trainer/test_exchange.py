"""Kept rows travel between processes, and nothing else does."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from helpers.harness import build
from podsrl import PODSConfig
from podsrl.trl import exchange
from podsrl.trl.exchange import Exchange

CPU = torch.device("cpu")
# Two processes with four sampled rows each; kept are 1, 2, 3 and 6, two for each process.
KEPT = [1, 2, 3, 6]


class Wire:
    """Joins what two processes gather, by running the first up to its answer, then the second.

    Each process asks for the same things in the same order, so the first's questions of a dry run
    are known when the second asks; and the other way round.
    """

    def __init__(self) -> None:
        self.sent: list[list[Any]] = [[], []]
        self.turn = 0
        self.process = 0

    def _next(self, mine: Any) -> tuple[Any, Any]:
        mine_at, self.turn = self.turn, self.turn + 1
        if len(self.sent[self.process]) <= mine_at:
            self.sent[self.process].append(mine)
        self.sent[self.process][mine_at] = mine
        theirs = self.sent[1 - self.process]
        other = theirs[mine_at] if mine_at < len(theirs) else None
        return (mine, other) if self.process == 0 else (other, mine)

    def gather_object(self, values: list[Any]) -> list[Any]:
        first, second = self._next(values)
        return [*(first or []), *(second or [])]

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        first, second = self._next(values)
        shape = values.shape
        fitting = [torch.zeros(shape, dtype=values.dtype) if part is None or part.shape != shape
                   else part for part in (first, second)]  # fmt: skip
        return torch.cat(fitting)


def both(monkeypatch: pytest.MonkeyPatch, method: str, values: list[Any]) -> list[Any]:
    """What each of the two processes gets, of one value per row of all eight."""
    wire = Wire()
    monkeypatch.setattr(exchange, "gather_object", wire.gather_object)
    monkeypatch.setattr(exchange, "gather", wire.gather)
    found: list[Any] = [None, None]
    for _ in range(3):  # lengths have to be known before rows can be exchanged
        for process in (0, 1):
            wire.process, wire.turn = process, 0
            rows = Exchange(
                KEPT,
                num_sampled=4,
                own=slice(2 * process, 2 * process + 2),
                process=process,
                num_processes=2,
                device=CPU,
            )
            found[process] = getattr(rows, method)(values[4 * process : 4 * process + 4])
    both.wire = wire  # type: ignore[attr-defined]
    return found


def test_rows_reach_the_process_that_trains_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"row {i}" for i in range(8)]
    assert both(monkeypatch, "values", names) == [["row 1", "row 2"], ["row 3", "row 6"]]
    tokens = [list(range(i + 1)) for i in range(8)]
    assert both(monkeypatch, "tokens", tokens) == [[tokens[1], tokens[2]], [tokens[3], tokens[6]]]


def test_numbers_keep_every_bit_and_none_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[list[Any]] = [[0.1 * i, None][: 1 + i % 2] for i in range(8)]
    first, second = both(monkeypatch, "numbers", numbers)
    assert first[0][0] == 0.1 and first[0][1] != first[0][1]
    assert first[1] == [0.1 * 2] and second[1] == [0.1 * 6]


def test_dropped_rows_do_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 is dropped and the longest: its 1,000 tokens are in nothing that is sent."""
    tokens = [[7] * (1000 if i == 0 else 3) for i in range(8)]
    both(monkeypatch, "tokens", tokens)
    sent = both.wire.sent  # type: ignore[attr-defined]
    # Each process sends lengths, then rows: three rows at most, of three tokens of four bytes.
    num_bytes = [[each.numel() * each.element_size() for each in process] for process in sent]
    assert num_bytes == [[3 * 4, 3 * 3 * 4]] * 2
    both(monkeypatch, "values", [f"row {i}" for i in range(8)])
    assert both.wire.sent == [[["row 1", "row 2", "row 3"]], [["row 6"]]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("num_processes", "options", "told"),
    [
        (8, {"per_device_train_batch_size": 2, "budget": "pooled"}, None),
        (16, {"per_device_train_batch_size": 4}, None),
        # 16 x 2 rows of at most 12 tokens of 4 bytes are 1,536 bytes.
        (
            16,
            {"per_device_train_batch_size": 2},
            "groups straddle .* 32 kept .* 0.0 MiB.* such as 4",
        ),
        # 16 x 4 rows of at most 4,096 tokens of 4 bytes are 2^20 bytes.
        (
            16,
            {"per_device_train_batch_size": 4, "budget": "pooled", "max_completion_length": 4096},
            r"^budget='pooled' moves .* all 64 kept .* up to 1\.0 MiB.* set budget='per_prompt'",
        ),
    ],
)
def test_what_many_processes_exchange_is_told_once(
    tiny_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    num_processes: int,
    options: dict[str, Any],
    told: str | None,
) -> None:
    """The number of processes alone is a stand-in; the trainer is built and nothing is trained."""
    for owner, name in ((Accelerator, "num_processes"), (PODSConfig, "world_size")):
        monkeypatch.setattr(owner, name, property(lambda _: num_processes))
    with caplog.at_level(logging.WARNING, "podsrl"):
        build(tiny_folder, tmp_path, **options)
    messages = [record.getMessage() for record in caplog.records if "kept" in record.getMessage()]
    assert len(messages) == (told is not None)
    if told:
        assert re.search(told, messages[0])
