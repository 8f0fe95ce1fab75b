"""Runs podsrl's commands in forked children, which a parent has spared the heavy imports.

A child is a process of its own, with a session of its own: it can be killed, signalled and refused
its disk as one started from a shell. What it prints goes to a file.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PRELOAD = (
    "podsrl.cli.train", "podsrl.runs.training", "podsrl.sampling.complete", "podsrl.packing.pack",
    "transformers.models.llama.modeling_llama", "matplotlib.pyplot", "math_verify", "psutil",
)  # fmt: skip
Setup = Callable[[], None]


@dataclass
class Ended:
    """How a child ended: its exit status (negative: the signal), and all that it printed."""

    status: int
    text: str
    seconds: float
    timed_out: bool = False

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.text


class Child:
    """One command under way in a forked process."""

    def __init__(self, words: Sequence[str], output: Path, setup: Setup | None = None) -> None:
        self.output = output
        output.write_bytes(b"")  # a child may be killed before it prints
        self.start = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(words, output, setup)

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, timeout_seconds: float = 120.0) -> Ended:
        """Wait for the end; a child that takes longer is killed and marked."""
        deadline = time.perf_counter() + timeout_seconds
        timed_out = False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() > deadline:
                timed_out = True
                os.killpg(self.pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.005)
        text = self.output.read_text(encoding="utf-8", errors="replace")
        seconds = time.perf_counter() - self.start
        return Ended(os.waitstatus_to_exitcode(status), text, seconds, timed_out)


def run(
    words: Sequence[str], output: Path, setup: Setup | None = None, timeout_seconds: float = 120.0
) -> Ended:
    """Run one command of podsrl to its end."""
    return Child(words, output, setup).wait(timeout_seconds)


def call(function: Callable[[], int], output: Path, timeout_seconds: float = 120.0) -> Ended:
    """Run a function in a child instead of a command; its result is the exit status."""

    def setup() -> None:
        raise SystemExit(function())

    return Child([], output, setup).wait(timeout_seconds)


def preload(words: Sequence[str], scratch: Path) -> None:
    """Import what a run of these words imports, having watched one do so in a child."""
    import torch

    torch.set_num_threads(1)
    for name in PRELOAD:
        importlib.import_module(name)
    listing = scratch / "modules.json"

    def list_modules() -> None:
        import atexit

        atexit.register(lambda: listing.write_text(json.dumps(sorted(sys.modules))))

    run(words, scratch / "preload.txt", list_modules)
    for name in json.loads(listing.read_text()):
        if not name.startswith(("__", "torch._dynamo", "torch._inductor")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    _warm_up(scratch)


def _warm_up(scratch: Path) -> None:
    """Fill the caches that every run fills, and spare children the collection of our garbage."""
    import matplotlib.pyplot as pyplot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(scratch / "model")
    AutoTokenizer.from_pretrained(scratch / "model")
    figure, _ = pyplot.subplots(layout="constrained")
    figure.savefig(scratch / "warm.png")
    pyplot.close(figure)
    gc.collect()
    gc.freeze()


def _be_child(words: Sequence[str], output: Path, setup: Setup | None) -> None:
    """Never returns: a forked child must not go on with its parent's work."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)  # nohup has some of them ignored
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if setup is not None:
            setup()
        from podsrl.cli import main

        status = main(list(words))
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        import atexit

        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status or 0)
