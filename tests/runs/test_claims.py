"""One worker per run: claims made by many processes at once, claims that go stale, take-overs."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from podsrl.runs import claims
from podsrl.runs.claims import (
    TAKEN_OVER,
    Claim,
    forget_claims,
    held,
    is_claimed,
    machine,
    owner,
    try_claim,
)

NUM_PROCESSES, NUM_RUNS = 8, 25


def claim_all(folder: Path, barrier: Any, queue: Any) -> None:
    """Try to claim every run, all processes in the same order at the same time."""
    look = claims._numbers

    def look_slowly(run: Path) -> list[int]:  # so that all have looked before one has claimed
        numbers = look(run)
        time.sleep(0.005)
        return numbers

    claims._numbers = look_slowly
    barrier.wait()
    taken = [i for i in range(NUM_RUNS) if try_claim(folder / str(i)) is not None]
    queue.put(taken)
    barrier.wait()  # a claim lasts as long as its process


def race(folder: Path) -> list[int]:
    """All runs claimed by all processes together, sorted."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(NUM_PROCESSES, timeout=20), context.Queue()
    processes = [
        context.Process(target=claim_all, args=(folder, barrier, queue))
        for _ in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    taken = [run for _ in processes for run in queue.get(timeout=60)]
    for process in processes:
        process.join(timeout=60)
    return sorted(taken)


def write_claim(folder: Path, number: int = 1, **changes: Any) -> Path:
    holder = {
        "machine": machine(),
        "worker": {"pid": os.getpid(), "start": psutil.Process().create_time()},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"claim-{number}.json"
    path.write_text(json.dumps(holder))
    return path


def ended_process() -> dict[str, Any]:
    """A process that has been and is no more."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = psutil.Process(child.pid).create_time()
    child.communicate(b"\n")
    return {"pid": child.pid, "start": start}


def test_each_run_is_claimed_by_exactly_one_of_many_processes(tmp_path: Path) -> None:
    assert race(tmp_path) == list(range(NUM_RUNS))


def test_each_stale_claim_is_taken_over_by_exactly_one(tmp_path: Path) -> None:
    ended = ended_process()
    for run in range(NUM_RUNS):
        write_claim(tmp_path / str(run), worker=ended)
    assert race(tmp_path) == list(range(NUM_RUNS))
    assert all((tmp_path / str(run) / "claim-2.json").exists() for run in range(NUM_RUNS))


def test_a_claim_lasts_until_it_is_released(tmp_path: Path) -> None:
    assert not is_claimed(tmp_path)
    claim = try_claim(tmp_path)
    assert claim is not None and is_claimed(tmp_path) and try_claim(tmp_path) is None
    claim.release()
    assert not is_claimed(tmp_path)
    again = try_claim(tmp_path)
    assert again is not None and again.path.name == "claim-2.json"


def test_a_living_process_here_keeps_its_claim_however_old(tmp_path: Path) -> None:
    path = write_claim(tmp_path)
    os.utime(path, (0, 0))
    assert try_claim(tmp_path) is None


def test_a_number_that_another_process_has_by_now_is_no_holder(tmp_path: Path) -> None:
    start = psutil.Process().create_time()
    write_claim(tmp_path, worker={"pid": os.getpid(), "start": start - 5000})
    assert try_claim(tmp_path) is not None


def test_a_child_that_outlives_its_worker_keeps_the_claim(tmp_path: Path) -> None:
    child = {"pid": os.getpid(), "start": psutil.Process().create_time()}
    write_claim(tmp_path, worker=ended_process(), child=child)
    assert try_claim(tmp_path) is None
    write_claim(tmp_path, worker=ended_process(), child=ended_process())
    assert try_claim(tmp_path) is not None


@pytest.mark.parametrize(("age", "stale"), [(50.0, False), (150.0, True)])
def test_a_claim_from_elsewhere_is_judged_by_its_age(
    tmp_path: Path, age: float, stale: bool
) -> None:
    path = write_claim(tmp_path, machine="another host", worker=ended_process())
    os.utime(path, (time.time() - age, time.time() - age))
    assert (try_claim(tmp_path, stale_seconds=100.0) is not None) == stale


def test_a_claim_without_text_is_one_being_made(tmp_path: Path) -> None:
    (tmp_path / "claim-1.json").touch()
    assert try_claim(tmp_path) is None
    os.utime(tmp_path / "claim-1.json", (0, 0))
    assert try_claim(tmp_path) is not None


def test_refreshing_makes_a_claim_young_and_tells_of_a_takeover(tmp_path: Path) -> None:
    path = write_claim(tmp_path, machine="another host")
    os.utime(path, (0, 0))
    assert Claim(path).refresh()
    assert try_claim(tmp_path, stale_seconds=100.0) is None
    os.utime(path, (0, 0))
    assert try_claim(tmp_path, stale_seconds=100.0) is not None
    assert not Claim(path).refresh()


def test_claims_of_a_finished_run_are_forgotten(tmp_path: Path) -> None:
    write_claim(tmp_path, 1), write_claim(tmp_path, 12)
    forget_claims(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_held_stays_fresh_and_is_forgotten_at_the_end(tmp_path: Path) -> None:
    claim = try_claim(tmp_path)
    assert claim is not None
    os.utime(claim.path, (0, 0))
    with held(claim, every_seconds=0.01):
        deadline = time.monotonic() + 10
        while claim.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claim.path.stat().st_mtime > 0
        assert owner(tmp_path).startswith(f"process {os.getpid()} on host ")
    assert not list(tmp_path.glob("claim-*"))


def test_a_process_whose_claim_was_followed_ends_and_writes_no_more(tmp_path: Path) -> None:
    """As after a machine slept for long: another host has made the next claim meanwhile."""
    script = """
import pathlib, sys, time
from podsrl.runs.claims import held, try_claim
folder = pathlib.Path(sys.argv[1])
claim = try_claim(folder)
with held(claim, every_seconds=0.05):
    (folder / "claim-2.json").write_text("{}")
    time.sleep(60)
    (folder / "written").touch()
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=50)
    assert done.returncode == TAKEN_OVER
    assert (tmp_path / "claim-2.json").exists() and not (tmp_path / "written").exists()
