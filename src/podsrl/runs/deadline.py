"""A time limit for reward functions: one that hangs ends the run, and with it all processes."""

import faulthandler
import functools
import inspect
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from accelerate import PartialState
from torch.distributed import DistError, PrefixStore, Store, TCPStore

SECONDS, SECONDS_PER_ROLLOUT = 30.0, 1.0
SECONDS_BEHIND = 30.0
LOOK_SECONDS = 1.0
GRACE_SECONDS = 10.0
HUNG = 76
"""Exit status of a process whose reward function did not even let itself be interrupted."""

_numbers = itertools.count()


class Pace:
    """How long each call of a reward function took on each process, as the processes tell.

    They call the same functions in the same order, so that the k-th calls belong together.

    store: where they tell it.
    """

    def __init__(self, store: Store, process: int, num_processes: int) -> None:
        self.store, self.process = store, process
        self.others = [other for other in range(num_processes) if other != process]
        self.call = 0

    def tell(self, seconds: float) -> None:
        """Tell the others that this process's call is done, and go on to the next."""
        self.store.set(f"{self.call}/{self.process}", str(seconds))
        # Nobody is 100 calls behind: rewards are gathered after each batch.
        self.store.delete_key(f"{self.call - 100}/{self.process}")
        self.call += 1

    def slowest(self) -> float | None:
        """Seconds of the slowest other process in this call; None while one is not done."""
        keys = [f"{self.call}/{other}" for other in self.others]
        try:
            if not self.store.check(keys):
                return None
            return max(float(self.store.get(key)) for key in keys)
        except DistError:  # it was in a process that has died: that ends this one, too
            return None


def pace_of_processes() -> Pace | None:
    """The pace of this run's processes; None where there is one, or no place to tell it."""
    state, address = PartialState(), os.environ.get("MASTER_ADDR")
    if state.num_processes == 1 or address is None:
        return None
    store = TCPStore(address, int(os.environ["MASTER_PORT"]), is_master=False)
    # torchrun's store outlives the processes that it starts anew.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"podsrl/rewards/{attempt}/{next(_numbers)}"
    return Pace(PrefixStore(prefix, store), state.process_index, state.num_processes)


def in_time(
    function: Callable[..., Any], limit_seconds: float | None, pace: Pace | None = None
) -> Callable[..., Any]:
    """Return the reward function with a time limit for each call; `TimeoutError` past it.

    A call that Python cannot interrupt ends the process 10 seconds later, with the stack on the
    screen. Only calls from the main thread, and of plain functions, are limited.

    Args:
        limit_seconds: None for 30 and one more for each rollout.
        pace: of several processes. Without `limit_seconds` a call is then late, too, once all the
            others are done and it has taken 30 seconds more than the slowest of them, and twice as
            long.
    """
    if inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        num_rollouts = len(kwargs.get("completions") or ())
        seconds = limit_seconds or SECONDS + SECONDS_PER_ROLLOUT * num_rollouts
        name = getattr(function, "__name__", "reward function")
        with _deadline(
            seconds,
            f"{name}, of {num_rollouts} rollouts",
            pace=pace if limit_seconds is None else None,
        ):
            return function(*args, **kwargs)

    return limited


@contextmanager
def _deadline(seconds: float, what: str, *, pace: Pace | None) -> Iterator[None]:
    """Raise `TimeoutError` in the body once it is late; SIGUSR2 wakes it where it waits."""
    ended, why = threading.Event(), [""]

    def end(number: int, frame: FrameType | None) -> None:
        if not ended.is_set():
            raise TimeoutError(f"the reward function {what}, took over {why[0]}")

    main = threading.main_thread().ident
    assert main is not None

    def watch() -> None:
        late = _late(ended, seconds, pace)
        if late is None:
            return
        why[0] = late
        signal.pthread_kill(main, signal.SIGUSR2)
        if not ended.wait(GRACE_SECONDS):
            _give_up(what)

    watcher = threading.Thread(target=watch, daemon=True)
    previous = signal.signal(signal.SIGUSR2, end)
    if sys.__stderr__ is not None:
        # The watcher runs where Python does; this ends a call that keeps Python to itself.
        faulthandler.dump_traceback_later(
            seconds + 2 * GRACE_SECONDS, exit=True, file=sys.__stderr__
        )
    start = time.monotonic()
    watcher.start()
    try:
        try:
            yield
        finally:
            ended.set()
    finally:
        watcher.join()
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGUSR2, previous)
    if pace is not None:
        pace.tell(time.monotonic() - start)


def _late(ended: threading.Event, limit: float, pace: Pace | None) -> str | None:
    """Wait for the end of a call; None where it came in time, else how late it is, in words."""
    start = time.monotonic()
    while (taken := time.monotonic() - start) < limit:
        slowest = pace.slowest() if pace and taken >= SECONDS_BEHIND else None
        if slowest is not None and taken >= slowest + max(slowest, SECONDS_BEHIND):
            return (
                f"{taken:.0f} seconds, where all other processes were done after {slowest:.1f}: "
                "mend it, or set reward_timeout_seconds to what a call may take"
            )
        if ended.wait(min(limit - taken, LOOK_SECONDS) if pace else limit - taken):
            return None
    return f"{limit:g} seconds: mend it, or raise reward_timeout_seconds"


def _give_up(what: str) -> None:
    print(f"podsrl: the reward function {what}, cannot be interrupted", file=sys.stderr)
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(HUNG)
