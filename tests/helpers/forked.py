"""Processes that begin with everything imported: children of one process per test worker.

Importing torch, transformers and TRL takes five seconds of a processor, more than most of these
processes work. What is tested of a process of its own stays: signals, exit status, environment,
output, gloo between several. How Python itself starts is tested by those that start it anew.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from podsrl.compare import queue
from podsrl.runs.callbacks import WORKER

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["podsrl.runs.training", "podsrl.cli.train", "trl", "datasets"])


def _become(
    words: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    output: Path,
    new_session: bool,
) -> None:
    """Be `python WORDS`, a script or `-m` and a module, in a folder, that prints into a file."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if WORKER in environment:  # a run looks whether its parent lives that it was started by
        os.environ[WORKER] = str(os.getppid())
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    if new_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


class Forked:
    """`subprocess.Popen` of this Python on a script or module, as far as it is needed here."""

    def __init__(
        self,
        words: Sequence[object],
        output: Path,
        environment: Mapping[str, str] | None = None,
        *,
        new_session: bool = False,
    ) -> None:
        known = (list(map(str, words)), dict(environment or os.environ), Path.cwd())
        self._process = _forkserver.Process(target=_become, args=(*known, output, new_session))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_together(
    words: Sequence[object], num_processes: int, folder: Path, *, timeout_seconds: float
) -> tuple[int, str]:
    """Status and output of a script in several gloo processes: 0, or of the first that failed.

    As under torchrun, whose variables they find, the others are then told to end, and killed when
    they have not ended after 30 seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port())}
    logs = [folder / f"output-{rank}.txt" for rank in range(num_processes)]
    processes = [
        Forked(words, log, os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, log in enumerate(logs)
    ]
    deadline, status = time.monotonic() + timeout_seconds, 0
    while any(process.poll() is None for process in processes):
        failed = [each.returncode for each in processes if each.returncode]
        if not status and (failed or time.monotonic() > deadline):
            status, deadline = failed[0] if failed else -1, time.monotonic() + 30
            for process in processes:
                process.send_signal(signal.SIGTERM)
        elif status and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    status = status or next((each.returncode for each in processes if each.returncode), 0)
    return status, "".join(log.read_text() for log in logs)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.fixture()
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a comparison begin with everything imported."""

    def popen(command: list[str], *, stdout: Any, env: Mapping[str, str], **_: Any) -> Forked:
        return Forked(command[1:], Path(stdout.name), env, new_session=True)

    stand_in = SimpleNamespace(
        Popen=popen,
        DEVNULL=subprocess.DEVNULL,
        STDOUT=subprocess.STDOUT,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    monkeypatch.setattr(queue, "subprocess", stand_in)
