"""kill -9 at random and at chosen moments, signals, a full disk: then resume, and compare."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fault_rows import moments
from fault_rows.case import Attempt, Row, Verdict, finished_or
from fault_rows.outcome import checkpoint_steps, last_line, metrics_of
from fault_rows.server import Ended

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)
AT_ONCE = (signal.SIGQUIT,)
"""They say that a process is to end now, as SIGKILL does: what is not saved is given up."""
MOMENTS: dict[str, tuple[str, int]] = {
    "before the model is loaded": (r"os.mkdir run$", 1),
    "first evaluation": ("evaluation begins", 1),
    "first step": ("rollouts.jsonl.gz$", 1),
    "between steps": ("open run/metrics.jsonl$", 2),
    "last step": ("open run/rollouts.jsonl.gz$", 4),
    "after the last step": ("open run/metrics.jsonl$", 4),
    "saving the model": ("before run/model", 1),
    "last evaluation": ("evaluation begins", 2),
}
NUM_DISKS = 10


def kill_anywhere(attempt: Attempt) -> Verdict:
    """Kill after a uniformly random share of the uninterrupted run's seconds; then resume."""
    seconds = attempt.random.uniform(0, 1.05) * attempt.bench.seconds
    child = attempt.start(attempt.words())
    time.sleep(seconds)
    child.kill()
    return resume(attempt, child.wait())


def kill_while(kind: str) -> Callable[[Attempt], Verdict]:
    """Kill at a random moment of this kind: half of them at once, half a little later."""

    def try_it(attempt: Attempt) -> Verdict:
        draw = attempt.random
        numbers = [i for i, n in enumerate(attempt.bench.names) if moments.kind_of(n) == kind]
        number = draw.choice(numbers)
        delay = draw.choice((0.0, draw.uniform(0, 0.03)))
        reading, writing = os.pipe()

        def act() -> None:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            os.write(writing, b"!")

        setup = moments.at_moment(attempt.run_folder, lambda n, _: n == number, act)
        child = attempt.start(attempt.words(), setup)
        os.close(writing)
        if os.read(reading, 1):
            time.sleep(delay)
            child.kill()
        os.close(reading)
        return resume(attempt, child.wait())

    return try_it


def resume(
    attempt: Attempt, killed: Ended, *, may_kill_again: bool = True, **changes: str
) -> Verdict:
    """Resume, in a third of the attempts after a second kill; start anew where nothing is saved."""
    if killed.status == 0:
        return finished_or(attempt, killed, "had finished before")
    if killed.has_traceback:
        return Verdict(f"traceback: {last_line(killed)}", "at once")
    words = attempt.words("--resume", **changes)
    if may_kill_again and attempt.random.random() < 1 / 3:
        child = attempt.start(words)
        time.sleep(attempt.random.uniform(0, 0.8) * attempt.bench.seconds)
        child.kill()
        child.wait()
    whole = whole_checkpoint(attempt.run_folder)
    ended = attempt.run(words)
    if ended.status == 2 and not ended.has_traceback:
        if whole is not None:
            return Verdict(f"refused though step {whole} is saved: {last_line(ended)}", "resumed")
        return finished_or(attempt, attempt.run(attempt.words(**changes)), "started anew")
    return finished_or(attempt, ended, "resumed" if whole is not None else "resumed from nothing")


def whole_checkpoint(folder: Path) -> int | None:
    """The highest step whose checkpoint has its last file: transformers writes the state last."""
    steps = [
        step
        for step in checkpoint_steps(folder)
        if (state := folder / f"checkpoint-{step}" / "trainer_state.json").is_file()
        and state.stat().st_size
    ]
    return max(steps, default=None)


def send_signal(attempt: Attempt) -> Verdict:
    """A signal to a run that saves no checkpoints by itself: what it had trained must be kept."""
    pattern, which = list(MOMENTS.values())[attempt.number % len(MOMENTS)]
    number = SIGNALS[attempt.number % len(SIGNALS)]  # 8 and 5: all pairs in 40 attempts
    changes = {"save_strategy": None, "save_steps": None}
    setup = moments.at_moment(
        attempt.run_folder, moments.nth(pattern, which), lambda: os.kill(os.getpid(), number)
    )
    ended = attempt.run(attempt.words(**changes), setup)
    what = f"{number.name} {list(MOMENTS)[attempt.number % len(MOMENTS)]}"
    steps = len(metrics_of(attempt.run_folder))
    finished = (attempt.run_folder / "result.json").exists()
    if ended.timed_out or ended.has_traceback:
        return Verdict("hung" if ended.timed_out else f"traceback: {last_line(ended)}", what)
    lost = steps and not finished and whole_checkpoint(attempt.run_folder) is None
    if lost and number not in AT_ONCE:
        return Verdict(f"{steps} trained steps lost", what)
    verdict = resume(attempt, ended, may_kill_again=False, **changes)
    return Verdict(verdict.failure, f"{what}: {verdict.outcome}")


def fill_disk(attempt: Attempt) -> Verdict:
    """A disk that is full after a share of what a run writes; more room, then resume."""
    disk = attempt.folder / "disk"
    disk.mkdir()
    sizes = [p.stat().st_size for p in (attempt.bench.scratch / "reference").rglob("*")]
    pages = sum(-(-size // 4096) for size in sizes)
    size = 4096 * int(pages * (attempt.number % NUM_DISKS + 0.5) / NUM_DISKS)
    mount(disk, "size", size)
    try:
        run = disk / "run"
        ended = attempt.run(attempt.words(output=run))
        if ended.status == 0:
            return Verdict("finished on a full disk", "not full")
        if ended.has_traceback or ended.timed_out:
            return Verdict(f"traceback or hang: {last_line(ended)}", "full")
        if "space" not in ended.text:
            return Verdict(f"does not say that the disk is full: {last_line(ended)}", "full")
        mount(disk, "remount,size", 2**28)
        inner = Attempt(attempt.bench, attempt.row, attempt.number, disk)
        return resume(inner, ended, may_kill_again=False)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def mount(folder: Path, option: str, size: int) -> None:
    """Mount or remount a file system in memory, of this size; needs root."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"{option}={size}", "podsrl-faults", str(folder)], check=True
    )


ROWS = {
    "kill": Row("kill -9 at any moment, then --resume", 150, 2, kill_anywhere),
    "kill_checkpoint": Row(
        "kill -9 while a checkpoint is written", 60, 2, kill_while("checkpoint")
    ),
    "kill_model": Row("kill -9 while the trained model is saved", 45, 2, kill_while("model")),
    "kill_evaluation": Row("kill -9 during an evaluation", 45, 1, kill_while("evaluation")),
    "signals": Row("8 moments x INT, TERM, HUP, USR1, QUIT", 40, 4, send_signal),
    "disk": Row("a disk that becomes full", NUM_DISKS, 2, fill_disk, needs_root=True),
}
