"""Several processes: two runs for one folder, and one of two ranks killed."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

from fault_rows import moments
from fault_rows.case import Attempt, Row, Verdict, finished_or
from fault_rows.damage import killed_run
from fault_rows.outcome import Left, differences, last_line, left_by, refused_in_one_line
from fault_rows.server import Child, Ended

GRACE_SECONDS = 30.0  # torchrun's, between SIGTERM and SIGKILL


def race(attempt: Attempt) -> Verdict:
    """Two runs begin at once for one folder: two fresh ones, two resumes, or a late resume."""
    kind = ("two fresh runs", "two resumes", "resume of a live run")[attempt.number % 3]
    begin = time.monotonic() + 0.3

    def together() -> None:
        time.sleep(max(0.0, begin - time.monotonic()))

    fresh, again = attempt.words(), attempt.words("--resume")
    if kind == "two resumes":
        shutil.copytree(killed_run(attempt.bench), attempt.run_folder)
        fresh = again
    if kind == "resume of a live run":
        first = attempt.start(fresh, name="a")
        if not wait_for(attempt.run_folder / "checkpoint-1", seconds=60):
            return Verdict("the first run made no checkpoint", kind)
        children = [first, attempt.start(again, name="b")]
    else:
        second = again if kind == "two resumes" else fresh
        children = [
            attempt.start(fresh, together, name="a"), attempt.start(second, together, name="b")
        ]  # fmt: skip
    return judge_race(attempt, [child.wait() for child in children], kind)


def judge_race(attempt: Attempt, ended: list[Ended], kind: str) -> Verdict:
    """Each run is refused in one line or has finished in a folder of its own."""
    finished = [end for end in ended if end.status == 0]
    for end in ended:
        if end.status and (wrong := refused_in_one_line(end)):
            return Verdict(wrong, kind)
    folders = [path for path in attempt.folder.glob("run*") if (path / "result.json").exists()]
    if not finished:
        return Verdict(f"both refused: {last_line(ended[0])}", kind)
    if len(folders) != len(finished):
        return Verdict(f"{len(finished)} runs finished in {len(folders)} folders", kind)
    for folder in folders:
        if wrong := differences(folder, attempt.bench.reference):
            return Verdict(wrong, kind)
    return Verdict(None, f"{kind}: {len(finished)} finished, {2 - len(finished)} refused")


def wait_for(path: Path, *, seconds: float) -> bool:
    """Whether the path appears in time."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def kill_rank(attempt: Attempt) -> Verdict:
    """Kill one of two ranks at a random moment of rank 0; torchrun's SIGTERM and SIGKILL follow."""
    reference = two_ranks_reference(attempt)
    numbers = range(len(attempt.bench.cache["moments of two"]))
    number, victim = attempt.random.choice(numbers), attempt.random.randrange(2)
    reading, writing = os.pipe()
    watch = moments.at_moment(
        attempt.run_folder, lambda n, _: n == number, lambda: os.write(writing, b"!") and None
    )
    ranks = start_ranks(attempt, attempt.words(**RANK_BATCH), watch)
    os.close(writing)
    if not os.read(reading, 1):
        return Verdict("ended before the kill", "two ranks")
    os.close(reading)
    ranks[victim].kill()
    end_like_torchrun(ranks, victim)
    resumed = [r.wait(180) for r in start_ranks(attempt, attempt.words("--resume", **RANK_BATCH))]
    if all(end.status == 2 and not end.has_traceback for end in resumed):
        if any(attempt.run_folder.glob("checkpoint-*/trainer_state.json")):
            return Verdict(f"refused: {last_line(resumed[0])}", "two ranks")
        words = attempt.words(**RANK_BATCH, output=attempt.folder / "run-anew")
        ended = [rank.wait(180) for rank in start_ranks(attempt, words)]
        return against(attempt, ended[0], reference, "run-anew", "started anew")
    return against(attempt, resumed[0], reference, "run", "resumed")


RANK_BATCH = {"per_device_train_batch_size": 4}


def start_ranks(attempt: Attempt, words: list[str], watch: object = None) -> list[Child]:
    """Two ranks, as torchrun sets them up; rank 0 is watched."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def setup(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        if rank == 0 and callable(watch):
            watch()

    return [attempt.start(words, lambda r=rank: setup(r), name=f"rank-{rank}") for rank in (0, 1)]


def end_like_torchrun(ranks: list[Child], victim: int) -> None:
    ranks[victim].wait()
    ranks[1 - victim].kill(signal.SIGTERM)
    ranks[1 - victim].wait(GRACE_SECONDS)


def two_ranks_reference(attempt: Attempt) -> Left:
    """What an uninterrupted run of two ranks leaves; made once."""
    bench = attempt.bench
    if "two ranks" not in bench.cache:
        folder = bench.scratch / "two"
        folder.mkdir()
        first = Attempt(bench, "two", 0, folder)
        listing = folder / "moments.jsonl"
        watch = moments.list_moments(first.run_folder, listing)
        ended = [rank.wait(180) for rank in start_ranks(first, first.words(**RANK_BATCH), watch)]
        if any(end.status for end in ended):
            raise RuntimeError(f"two ranks do not run here:\n{ended[0].text[-2000:]}")
        bench.cache["two ranks"] = left_by(first.run_folder)
        bench.cache["moments of two"] = moments.read_moments(listing)
    found = bench.cache["two ranks"]
    assert isinstance(found, Left)
    return found


def against(attempt: Attempt, ended: Ended, reference: Left, name: str, what: str) -> Verdict:
    """As `finished_or`, against another reference and in a folder known by name."""
    verdict = finished_or(attempt, ended, what)
    if ended.status or ended.has_traceback or ended.timed_out:
        return verdict
    return Verdict(differences(attempt.folder / name, reference), what)


ROWS = {
    "races": Row("two runs for one folder at once", 20, 3, race),
    "ranks": Row("one of two ranks killed", 10, 1, kill_rank),
}
