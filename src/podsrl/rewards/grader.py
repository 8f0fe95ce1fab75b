"""Grading in separate processes, because computer algebra can hang, crash, or eat the memory."""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 5.0
# Wall-clock limits are for what uses no processor; a busy machine must not come near them.
PATIENCE = 12.0  # times the limit of processor time
START_SECONDS = 600.0  # importing the algebra on a loaded machine
# By file name and with -P: the worker imports neither podsrl (hence no torch) nor its folder.
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))
Job = Mapping[str, Any]


class Grader:
    """Grades jobs in worker processes; a call that fails or hangs gives None and is counted.

    A job is `{"grader": "math", "gold": ..., "answer": ...}` or the like (see worker.py). Workers
    start with the first job, are new interpreters (nothing is forked), and end with the program.
    A worker that computes for `timeout_seconds` of processor time on one job is killed and
    replaced, so that a busy machine grades as an idle one does; so is one that says nothing for
    `PATIENCE` times as long by the clock. Works from any thread. `num_failures` counts the jobs
    without a score since the start.

    Example: `Grader().grade([{"grader": "math", "gold": "1+x", "answer": "x+1"}]) == [1.0]`.
    """

    def __init__(
        self,
        *,
        command: Sequence[str] = WORKER,
        num_workers: int | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        num_workers = num_workers or max(1, min(4, (os.cpu_count() or 2) - 1))
        self.timeout_seconds = timeout_seconds
        self.num_failures = 0
        self._num_workers = num_workers
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._workers = [_Worker(command, timeout_seconds) for _ in range(num_workers)]
        for worker in self._workers:
            self._idle.put(worker)
        atexit.register(self.close)

    def grade(self, jobs: Sequence[Job]) -> list[float | None]:
        """Return the score of each job in order; equal jobs are graded once.

        Raises: RuntimeError with the worker's own words when a worker cannot start, which is a
        broken installation and no property of the answer.
        """
        keys = [json.dumps(dict(job), sort_keys=True) for job in jobs]
        distinct = list(dict.fromkeys(keys))
        num_threads = min(self._num_workers, len(distinct))
        if num_threads <= 1:
            scores = [self._grade_one(key) for key in distinct]
        else:
            with ThreadPoolExecutor(num_threads) as threads:
                scores = list(threads.map(self._grade_one, distinct))
        score_of = dict(zip(distinct, scores, strict=True))
        result = [score_of[key] for key in keys]
        with self._lock:
            self.num_failures += result.count(None)
        return result

    def close(self) -> None:
        """End the workers; a later `grade` starts new ones."""
        for worker in self._workers:
            worker.stop()

    def _grade_one(self, job: str) -> float | None:
        worker = self._idle.get()
        try:
            return worker.grade(json.loads(job))
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, its replies read by a thread so that waiting can end."""

    def __init__(self, command: Sequence[str], timeout_seconds: float) -> None:
        self._command = list(command)
        self._timeout_seconds = timeout_seconds
        self._process: Any = None

    def grade(self, job: dict[str, Any]) -> float | None:
        is_new = self._process is None or self._process.poll() is not None
        if is_new:
            self._start()
        patience = PATIENCE * self._timeout_seconds
        job |= {"processor_seconds": self._timeout_seconds, "seconds": patience + 5}
        # Two replies: one when what the job needs is imported, one with the score. Only the
        # second is the job's own time.
        if self._send(job) is None or self._wait(START_SECONDS) is None:
            words = self._last_words()
            self.stop()
            if is_new:
                raise RuntimeError(f"the grading worker did not start: {words}")
            return None
        reply = self._wait(patience)
        if reply is None:  # hung or dead
            self.stop()
            return None
        score: float | None = reply.get("score")
        return score

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            with contextlib.suppress(BrokenPipeError):  # unsent bytes of a dead worker
                stream.close()
        self._process = None

    def _start(self) -> None:
        self.stop()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the run: a worker it ended would fail its job
        )
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(
            target=_read, args=(self._process.stdout, self._replies), daemon=True
        ).start()

    def _send(self, job: dict[str, Any]) -> bool | None:
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return True

    def _wait(self, seconds: float) -> dict[str, Any] | None:
        """The next reply; None when it does not come in time or the process has ended."""
        try:
            return self._replies.get(timeout=seconds)
        except queue.Empty:
            return None

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:]


def _read(stream: Any, replies: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    """Pass on each reply, and None at the end of the stream."""
    with stream:
        for line in stream:
            replies.put(json.loads(line))
    replies.put(None)


@cache
def shared_grader() -> Grader:
    """Return the one grader of this process."""
    return Grader()
