"""What every attempt gets, and what it gives back."""

import math
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_rows import moments, server, tiny
from fault_rows.outcome import Left, differences, last_line, left_by
from fault_rows.server import Ended, Setup


@dataclass
class Attempt:
    """One attempt of one row, in a folder of its own."""

    bench: "Bench"
    row: str
    number: int
    folder: Path

    @property
    def random(self) -> random.Random:
        """The same draws for the same attempt, whenever it is run."""
        return random.Random(f"{self.row} {self.number}")

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    def words(self, *more: str, **changes: Any) -> list[str]:
        output = changes.pop("output", self.run_folder)
        return [*tiny.words(self.bench.scratch, output, **changes), *more]

    def start(self, words: list[str], setup: Setup | None = None, name: str = "a") -> server.Child:
        return server.Child(words, self.folder / f"printed-{name}.txt", setup)

    def run(
        self, words: list[str], setup: Setup | None = None, timeout_seconds: float = 120.0
    ) -> Ended:
        return self.start(words, setup).wait(timeout_seconds)


@dataclass(frozen=True)
class Verdict:
    """`failure`: what was wrong, None if nothing. `outcome`: in a word what came of it."""

    failure: str | None
    outcome: str


@dataclass
class Bench:
    """The model, the questions and the uninterrupted run that attempts are compared with."""

    scratch: Path
    reference: Left
    seconds: float
    names: list[str]
    """The moments of the uninterrupted run, in order."""
    cache: dict[str, Any] = field(default_factory=dict)


Try = Callable[[Attempt], Verdict]


@dataclass(frozen=True)
class Row:
    """A kind of fault: how often it is tried, in full and in the quick version."""

    about: str
    full: int
    quick: int
    attempt: Try
    needs_root: bool = False


def make_bench(scratch: Path) -> Bench:
    """Make model and questions, import what runs need, and run once without a fault."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    made = server.call(lambda: tiny.save_model(scratch / "model") or 0, scratch / "printed.txt")
    if made.status:
        raise RuntimeError(f"no tiny model could be made: {last_line(made)}")
    tiny.save_questions(scratch / "questions.jsonl")
    server.preload(tiny.words(scratch, scratch / "preload"), scratch)
    folder, listing = scratch / "reference", scratch / "moments.jsonl"
    ended = server.run(
        tiny.words(scratch, folder), scratch / "printed.txt", moments.list_moments(folder, listing)
    )
    if ended.status:
        raise RuntimeError(f"the run without a fault failed:\n{ended.text[-3000:]}")
    names = moments.read_moments(listing)
    return Bench(scratch, left_by(folder), ended.seconds, names)


def spread(cases: Mapping[str, Any], number: int) -> tuple[str, Any]:
    """The case of this number in an order that mixes neighbours, so that few tell of all."""
    stride = next(n for n in (37, 41, 43) if math.gcd(n, len(cases)) == 1)
    return list(cases.items())[number * stride % len(cases)]


def finished_or(attempt: Attempt, ended: Ended, what: str) -> Verdict:
    """The verdict on a command that should have finished the run as if nothing had happened."""
    if ended.timed_out:
        return Verdict("hung", what)
    if ended.has_traceback:
        return Verdict(f"traceback: {last_line(ended)}", what)
    if ended.status:
        return Verdict(f"status {ended.status}: {last_line(ended)}", what)
    return Verdict(differences(newest_run(attempt.folder), attempt.bench.reference), what)


def newest_run(folder: Path) -> Path:
    """The run folder in which something was written last: a new run may be numbered."""
    runs = [path for path in folder.glob("run*") if path.is_dir()]
    return max(runs, key=lambda path: (path / "metrics.jsonl").stat().st_mtime_ns
               if (path / "metrics.jsonl").exists() else 0, default=folder / "run")  # fmt: skip
