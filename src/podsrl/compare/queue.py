"""Runs of a comparison, one process each, shared with whoever works on the same folder.

A run's folder holds, besides what `podsrl train` writes:

recipe.yaml    what it was told; `podsrl train` repeats the run from it
log.txt        what it printed, all attempts one after the other
failed.json    exit status and the last lines of the log, where it failed
claim-K.json   who works on it (see claims.py)
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from podsrl.compare.comparison import PlannedRun
from podsrl.runs.callbacks import WORKER
from podsrl.runs.checkpoints import STATE, checkpoints, newest_whole, step_of
from podsrl.runs.claims import Claim, forget_claims, is_claimed, try_claim
from podsrl.runs.folder import RUN_FILES, write_json

OUTCOMES = ("finished", "failed", "stopped", "lost")
REFRESH_SECONDS = 20.0
POLL_SECONDS = 0.2
LINES_OF_LOG = 30

Told = Callable[[str, PlannedRun, float], None]


def state_of(run: PlannedRun) -> str:
    """finished, failed, running (somewhere), half done (a checkpoint is there) or to do."""
    if (run.folder / "result.json").exists():
        return "finished"
    if is_claimed(run.folder):
        return "running"
    if (run.folder / "failed.json").exists():
        return "failed"
    # Whether it is whole, too, is looked at when the run is taken: that reads all of it.
    saved = any((path / STATE).exists() for path in checkpoints(run.folder))
    return "half done" if saved else "to do"


class Worker:
    """Takes one run after the other that nobody has taken, each in a process of its own.

    environment: added to that of the run's processes, for example CUDA_VISIBLE_DEVICES.
    tell: called with ("started", run, 0.0), with ("running", run, seconds) several times a second,
    and with an outcome of `OUTCOMES`.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        *,
        tell: Told,
        environment: Mapping[str, str] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.runs = runs
        self.tell = tell
        self.environment = {**os.environ, **(environment or {}), WORKER: str(os.getpid())}
        self.retry_failed = retry_failed
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def work(self) -> None:
        """Run until no run is left that could be taken, or until told to stop."""
        tried: set[Path] = set()
        while not self._stopped.is_set():
            taken = self._take(tried)
            if taken is None:
                return
            run, claim = taken
            tried.add(run.folder)
            self._run(run, claim)

    def stop(self) -> None:
        """End the run under way after its step, with a checkpoint; a second call ends it now."""
        self._stopped.set()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def _take(self, tried: set[Path]) -> tuple[PlannedRun, Claim] | None:
        for run in self.runs:
            if run.folder in tried or not self._is_open(run):
                continue
            claim = try_claim(run.folder)
            if claim is None:
                continue
            # Another worker may have ended it between the look and the claim.
            if self._is_open(run):
                return run, claim
            claim.release()
        return None

    def _is_open(self, run: PlannedRun) -> bool:
        if (run.folder / "result.json").exists():
            return False
        return self.retry_failed or not (run.folder / "failed.json").exists()

    def _run(self, run: PlannedRun, claim: Claim) -> None:
        self.tell("started", run, 0.0)
        start = time.perf_counter()
        command = _prepare(run)
        with (run.folder / "log.txt").open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches the run once, through stop, and not twice.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
            claim.name_process(self._process.pid)
            mine = self._watch(run, claim, self._process, start)
        seconds = time.perf_counter() - start
        outcome = self._outcome(run, mine, self._process.returncode)
        if outcome == "failed":
            _record_failure(run, self._process.returncode, seconds)
        if outcome == "finished":
            _tidy(run)
        elif mine:
            claim.release()
        self.tell(outcome, run, seconds)

    def _watch(
        self, run: PlannedRun, claim: Claim, process: subprocess.Popen[bytes], start: float
    ) -> bool:
        """Wait for the process, saying that we live; False when the run was taken over."""
        refreshed = time.perf_counter()
        if self._stopped.is_set():  # told between the claim and the start of the process
            process.send_signal(signal.SIGINT)
        while True:
            try:
                process.wait(POLL_SECONDS)
                return True
            except subprocess.TimeoutExpired:
                now = time.perf_counter()
                self.tell("running", run, now - start)
            if now - refreshed > REFRESH_SECONDS:
                refreshed = now
                if not claim.refresh():
                    process.kill()
                    process.wait()
                    return False

    def _outcome(self, run: PlannedRun, mine: bool, status: int) -> str:
        if not mine:
            return "lost"
        if status == 0 and (run.folder / "result.json").exists():
            return "finished"
        return "stopped" if self._stopped.is_set() else "failed"


def _prepare(run: PlannedRun) -> list[str]:
    """Write the recipe, clear away what an attempt without checkpoint left, name the command."""
    checkpoint, _ = newest_whole(run.folder)
    for path in checkpoints(run.folder):
        if checkpoint is None or step_of(path) > step_of(checkpoint):
            shutil.rmtree(path)
    (run.folder / "failed.json").unlink(missing_ok=True)
    if checkpoint is None:
        for name in (*RUN_FILES, "after"):
            path = run.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
    recipe = run.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run.settings, sort_keys=False), encoding="utf-8")
    return train_command(run, resume=checkpoint is not None)


def train_command(run: PlannedRun, *, resume: bool) -> list[str]:
    """What trains the run, from the beginning or from its last checkpoint."""
    command = [sys.executable, "-m", "podsrl.cli", "train", str(run.folder / "recipe.yaml")]
    return [*command, *(["--resume"] if resume else [])]


def _tidy(run: PlannedRun) -> None:
    """Remove what only an unfinished run needs."""
    if run.settings.get("save_strategy", "no") == "no":
        for path in run.folder.glob("checkpoint-*"):
            shutil.rmtree(path)
    forget_claims(run.folder)


def _record_failure(run: PlannedRun, status: int, seconds: float) -> None:
    lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    content: dict[str, Any] = {
        "exit_status": status,
        "seconds": seconds,
        "last_lines": lines[-LINES_OF_LOG:],
    }
    write_json(run.folder / "failed.json", content)
