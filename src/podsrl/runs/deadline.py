"""A time limit for reward functions: one that hangs ends the run, and with it all processes."""

import faulthandler
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SECONDS, SECONDS_PER_ROLLOUT = 30.0, 1.0
GRACE_SECONDS = 10.0
HUNG = 76
"""Exit status of a process whose reward function did not even let itself be interrupted."""


def in_time(function: Callable[..., Any], limit_seconds: float | None) -> Callable[..., Any]:
    """Return the reward function with a time limit for each call; `TimeoutError` past it.

    limit_seconds: None for 30 and one more for each rollout. A call that Python cannot interrupt
    ends the process 10 seconds later, with the stack on the screen. Only calls from the main
    thread, and of plain functions, are limited.
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
        with _deadline(seconds, f"{name}, of {num_rollouts} rollouts"):
            return function(*args, **kwargs)

    return limited


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """Raise `TimeoutError` in the body after so many seconds; SIGUSR2 wakes it where it waits."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(
            f"the reward function {what}, took over {seconds:g} seconds: mend it, or raise "
            "reward_timeout_seconds"
        )

    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR2))
    last = threading.Timer(seconds + GRACE_SECONDS, _give_up, (what,))
    timer.daemon = last.daemon = True
    previous = signal.signal(signal.SIGUSR2, end)
    timer.start()
    last.start()
    try:
        yield
    finally:
        timer.cancel()
        last.cancel()
        signal.signal(signal.SIGUSR2, previous)


def _give_up(what: str) -> None:
    print(f"podsrl: the reward function {what}, cannot be interrupted", file=sys.stderr)
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(HUNG)
