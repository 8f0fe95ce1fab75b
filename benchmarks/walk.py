"""How far a reader walks through the package to follow one training step: moves and files.

    python benchmarks/walk.py            the figures
    python benchmarks/walk.py --route    and every file, in the order in which it is entered

Traced is the first step of the tests' tiny trainer (n = 8, m = 4, two prompts, every optional
feature off), from on_step_begin to on_step_end: sampling, rewards, selection, loss, backward,
optimizer. The first, because it also looks up what later steps remember.

The walk. Code stands in one file of src/podsrl or in TRL's grpo_trainer.py (one file more, called
TRL). Whenever a call or a return brings it to another of these files, that is one move, and the
file is entered; other libraries' files are passed through.

Rooms. A room whose inside is entered and left as a whole counts as one file, because a reader may
take its result for granted: packing/ is one, core/select.py, core/rules.py and core/order.py are
one, and sampling/ is one for each of its files that another room calls. While code is in a room,
calls into files of rooms are no moves (the model that sampling/ calls may come back through
packing/attention.py); a call to any other file is. The raw figures know no rooms.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import trl.trainer.grpo_trainer
from transformers import TrainerCallback
from trl import GRPOTrainer

import podsrl

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(podsrl.__file__).parent
HOST_FILE = trl.trainer.grpo_trainer.__file__
HOST = "TRL"
CHOICE = "core/select+rules+order"
CHOICE_FILES = ("core/select.py", "core/rules.py", "core/order.py", CHOICE)


def file_of(code: CodeType) -> str | None:
    """The file as the walk names it: relative to the package, TRL, or None for any other."""
    if code.co_filename == HOST_FILE:
        return HOST
    path = Path(code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None


def room_of(file: str) -> str | None:
    """The room that stands for the file once it is entered, itself for a room, else None.

    >>> room_of("packing/pack.py"), room_of("core/order.py"), room_of("trl/packed.py")
    ('packing/', 'core/select+rules+order', None)
    """
    if file in CHOICE_FILES:
        return CHOICE
    if file.startswith("packing/"):
        return "packing/"
    return file if file.startswith("sampling/") else None


@dataclass
class Walk:
    """The walk so far; an instance is a profile function for `sys.setprofile`.

    `entered` holds every file (with `by_room`: or room) in the order in which it was entered.
    """

    by_room: bool
    entered: list[str] = field(default_factory=list)
    _here: str | None = None
    _stack: list[str | None] = field(default_factory=list)

    @property
    def num_moves(self) -> int:
        """Times that another file was entered."""
        return len(self.entered)

    @property
    def num_files(self) -> int:
        """Different files that were entered."""
        return len(set(self.entered))

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self._stack.append(self._here)
            file = file_of(frame.f_code)
            if file is not None:
                self._call(file)
        elif event == "return" and self._stack:  # not the return of whoever began the trace
            self._go(self._stack.pop())

    def _call(self, file: str) -> None:
        if not self.by_room:
            self._go(file)
        elif not (self._is_in_room() and room_of(file)):
            self._go(room_of(file) or file)

    def _is_in_room(self) -> bool:
        return self._here is not None and room_of(self._here) is not None

    def _go(self, file: str | None) -> None:
        if file is not None and file != self._here:
            self.entered.append(file)
        self._here = file


class TraceFirstStep(TrainerCallback):
    """Turns the walk on when the first step begins and off when it ends."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            sys.setprofile(self.walk)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        sys.setprofile(None)


def walk_one_step(trainer: GRPOTrainer, *, by_room: bool) -> Walk:
    """The walk of the trainer's first step; the trainer is one that has not trained yet."""
    walk = Walk(by_room)
    trainer.add_callback(TraceFirstStep(walk))
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    return walk


def described(walk: Walk) -> str:
    """The figures in one line, and how often each file was entered in another."""
    how = "rooms as one file" if walk.by_room else "every file by itself"
    counts = ", ".join(f"{file} {count}" for file, count in Counter(walk.entered).most_common())
    return f"{how}: {walk.num_moves} moves, {walk.num_files} files\n  entered: {counts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--route", action="store_true", help="print the files in order, too")
    show_route = parser.parse_args().route
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.harness import build
    from helpers.tiny import save_tiny

    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "model")
        for by_room in (True, False):
            trainer = build(model, Path(folder) / f"run-{by_room}", max_steps=1)
            walk = walk_one_step(trainer, by_room=by_room)
            print(described(walk))
            if show_route and by_room:
                print("  route:", " > ".join(walk.entered))


if __name__ == "__main__":
    main()
