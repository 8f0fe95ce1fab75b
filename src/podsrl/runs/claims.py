"""Who works on a run: claims in its folder, so that no two processes, on any hosts, share one.

A claim is the file claim-K.json, made with O_EXCL: of all that try, one succeeds. A claim is never
removed to make room, because two workers that both saw it go stale could then each hold a claim.
Instead claim K + 1 follows a stale or released claim K, and again one worker alone can make it.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

STALE_SECONDS = 600.0
REFRESH_SECONDS = 60.0
TAKEN_OVER = 75
"""Exit status of a process whose run another host has taken over meanwhile."""


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds."""

    path: Path

    def refresh(self) -> bool:
        """Say that the holder is alive; False when another worker has taken the run over."""
        try:
            os.utime(self.path)
        except FileNotFoundError:  # taken over, ended there and forgotten
            return False
        return _number(self.path) == max(_numbers(self.path.parent))

    def name_process(self, pid: int) -> None:
        """Let the claim last as long as this child, too: it may outlive us and still write."""
        self._write({**_holder(), "child": _process(pid)})

    def release(self) -> None:
        """Let the next worker take the run at once."""
        self._write({"released": True})

    def _write(self, content: dict[str, Any]) -> None:
        unfinished = self.path.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        os.replace(unfinished, self.path)


def try_claim(folder: Path, *, stale_seconds: float = STALE_SECONDS) -> Claim | None:
    """Claim the run of this folder for this process; None while another worker has it.

    A claim of a process of this machine lasts as long as the process, and the child it names. A
    claim from elsewhere lasts until it was not refreshed for `stale_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = max(_numbers(folder), default=0)
    if last and not _is_over(_path(folder, last), stale_seconds):
        return None
    path = _path(folder, last + 1)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(_holder(), file)
    return Claim(path)


def is_claimed(folder: Path, *, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether a worker has the run of this folder now."""
    last = max(_numbers(folder), default=0)
    return bool(last) and not _is_over(_path(folder, last), stale_seconds)


def is_own(folder: Path) -> bool:
    """Whether this very process has the run of this folder now."""
    last = max(_numbers(folder), default=0)
    if not last:
        return False
    holder = json.loads(_path(folder, last).read_text(encoding="utf-8") or "{}")
    return bool(holder.get("machine") == machine() and holder["worker"] == _process(os.getpid()))


def owner(folder: Path) -> str:
    """Who has the run of this folder, for people to read.

    Example: "process 4711 on host gpu-3".
    """
    last = max(_numbers(folder), default=0)
    try:
        holder = json.loads(_path(folder, last).read_text(encoding="utf-8"))
        return f"process {holder['worker']['pid']} on host {holder['host']}"
    except (OSError, ValueError, KeyError):  # released, forgotten or being written this moment
        return "another process"


@contextmanager
def held(claim: Claim | None, *, every_seconds: float = REFRESH_SECONDS) -> Iterator[None]:
    """Keep the claim fresh while the body runs, and forget it when the body has ended."""
    if claim is None:
        yield
        return
    ended = threading.Event()

    def refresh() -> None:
        # Followed by another host's: after a sleep of more than `STALE_SECONDS`. Nobody may ask
        # what is lost then, as two processes that write into one folder lose all.
        while not ended.wait(every_seconds):
            if not claim.refresh():
                os._exit(TAKEN_OVER)

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        forget_claims(claim.path.parent)


def forget_claims(folder: Path) -> None:
    """Remove all claims of a run that is over: who claims it later looks at its files anew."""
    for number in _numbers(folder):
        _path(folder, number).unlink(missing_ok=True)


def machine() -> str:
    """A name that processes share exactly when they see the same process ids."""
    parts = [socket.gethostname()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        if path.is_symlink():
            parts.append(os.readlink(path))
        elif path.is_file():
            parts.append(path.read_text().strip())
    return " ".join(parts)


def _holder() -> dict[str, Any]:
    return {
        "machine": machine(),
        "host": socket.gethostname(),
        "worker": _process(os.getpid()),
        "time": time.time(),
    }


def _process(pid: int) -> dict[str, Any]:
    """A process so that its number is not taken for another one's later."""
    return {"pid": pid, "start": psutil.Process(pid).create_time()}


def _is_over(path: Path, stale_seconds: float) -> bool:
    """Whether the claim was released, its process has ended, or its machine was not heard of."""
    try:
        text = path.read_text(encoding="utf-8")
        age = _now(path.parent) - path.stat().st_mtime
    except FileNotFoundError:  # forgotten, since the run has its result
        return False
    if not text:  # made this moment, or by a worker that ended right then
        return age > stale_seconds
    holder = json.loads(text)
    if holder.get("released"):
        return True
    if holder["machine"] == machine():
        return not any(_is_alive(**holder[key]) for key in ("worker", "child") if key in holder)
    return age > stale_seconds


def _is_alive(pid: int, start: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - start) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _now(folder: Path) -> float:
    """The time on the clock that stamps files here, which may be a file server's."""
    probe = folder / f".now-{uuid.uuid4().hex}"
    probe.touch()
    seconds = probe.stat().st_mtime
    probe.unlink()
    return seconds


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"


def _number(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _numbers(folder: Path) -> list[int]:
    return [_number(path) for path in folder.glob("claim-*.json")]
