"""Signals that end a run: at once where nothing is lost by it, else after the step under way.

Made before anything loads, so that a signal is heard at any moment: Ctrl-C, a scheduler's SIGTERM
or SIGUSR1 (SLURM's --signal), the SIGHUP of a closed terminal.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Breaks off what may be broken off: loading and evaluating."""


class Stop:
    """What this process was told.

    asked: whether to stop at the next boundary. A second Ctrl-C raises `KeyboardInterrupt` where it
    is; a second signal of another kind is the same wish once more (torchrun adds a SIGTERM to the
    terminal's Ctrl-C, a scheduler one to its SIGUSR1).
    """

    def __init__(self) -> None:
        self.asked = False
        self.quiet = False
        self._interrupts = 0
        self._num_inside = 0
        self._previous: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Hear the signals from now on; in a thread of its own a run hears none."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOP_SIGNALS:
            # nohup asks for this one to be ignored; Ctrl-C is the way compare ends its runs.
            if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._hear)

    def release(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In here a signal raises `Stopped` at once: what is under way can be begun anew."""
        if self.asked:
            raise Stopped
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            self.release()
            raise KeyboardInterrupt
        first, self.asked = not self.asked, True
        if self._num_inside:
            raise Stopped
        if first and not self.quiet:
            _say("stopping after this step; Ctrl-C once more to stop at once, without saving\n")


def _say(text: str) -> None:
    """Write past Python's buffers, which a handler may find in the midst of a write."""
    try:
        os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, text.encode())
    except (OSError, ValueError):  # nobody listens
        return


def _leave_terminal() -> None:
    """Send what is printed nowhere: a terminal that hung up answers every write with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
