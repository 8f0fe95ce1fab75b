"""Workers of a comparison, with a small script in the place of podsrl train."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.tiny_runs import SAVES_WHEN_STOPPED
from podsrl.compare import queue as run_queue
from podsrl.compare.comparison import PlannedRun
from podsrl.compare.queue import Worker, state_of

# Ends as its folder's file `behaviour` says; counts its starts; a checkpoint is its stop.
TRAIN = """
import json, pathlib, signal, sys, time, zipfile
folder = pathlib.Path(sys.argv[1])
with (folder / "starts").open("a") as file:
    file.write(" ".join(sys.argv[2:]) + ";")
behaviour = (folder / "behaviour").read_text() if (folder / "behaviour").exists() else ""
print("behaving:", behaviour, flush=True)
"""
TRAIN += (
    SAVES_WHEN_STOPPED
    + """
if behaviour == "wait" and "--resume" not in sys.argv:
    time.sleep(60)
if behaviour == "fail":
    sys.exit("no memory left")
(folder / "result.json").write_text(json.dumps({"seed": 0}))
"""
)


@pytest.fixture()
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)

    def command(run: PlannedRun, *, resume: bool) -> list[str]:
        flags = ["--resume"] if resume else []
        return [sys.executable, str(script), str(run.folder), *flags]

    monkeypatch.setattr(run_queue, "train_command", command)
    monkeypatch.setattr(run_queue, "POLL_SECONDS", 0.02)
    return [
        PlannedRun(arm=arm, seed=0, folder=tmp_path / arm / "seed-0", settings={"seed": 0})
        for arm in ("a", "b", "c")
    ]


def behave(run: PlannedRun, behaviour: str) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "behaviour").write_text(behaviour)


def starts(run: PlannedRun) -> list[str]:
    path = run.folder / "starts"
    return path.read_text().split(";")[:-1] if path.exists() else []


def work(runs: list[PlannedRun], **options: bool) -> list[tuple[str, str]]:
    events: list[tuple[str, str]] = []
    Worker(runs, tell=lambda event, run, _: events.append((event, run.arm)), **options).work()
    return [event for event in events if event[0] != "running"]


def test_runs_go_in_order_and_are_never_repeated(runs: list[PlannedRun]) -> None:
    assert [state_of(run) for run in runs] == ["to do"] * 3
    assert work(runs) == [(e, arm) for arm in "abc" for e in ("started", "finished")]
    assert [state_of(run) for run in runs] == ["finished"] * 3
    assert work(runs) == []
    assert [len(starts(run)) for run in runs] == [1, 1, 1]
    assert not list(runs[0].folder.glob("claim-*"))
    assert (runs[0].folder / "recipe.yaml").read_text() == "seed: 0\n"


def test_a_failed_run_is_recorded_and_the_others_go_on(runs: list[PlannedRun]) -> None:
    behave(runs[1], "fail")
    assert ("failed", "b") in work(runs)
    assert [state_of(run) for run in runs] == ["finished", "failed", "finished"]
    failure = json.loads((runs[1].folder / "failed.json").read_text())
    assert failure["exit_status"] == 1
    assert failure["last_lines"][-2:] == ["behaving: fail", "no memory left"]
    assert work(runs) == []
    behave(runs[1], "")
    assert work(runs, retry_failed=True) == [("started", "b"), ("finished", "b")]
    assert not (runs[1].folder / "failed.json").exists()


def test_a_retry_that_fails_again_is_not_retried_for_ever(runs: list[PlannedRun]) -> None:
    behave(runs[0], "fail")
    work(runs)
    assert work(runs, retry_failed=True) == [("started", "a"), ("failed", "a")]


def test_a_stopped_run_goes_on_from_its_checkpoint(runs: list[PlannedRun]) -> None:
    behave(runs[1], "wait")
    events: list[str] = []
    worker = Worker(runs, tell=lambda event, run, _: events.append(event))
    thread = threading.Thread(target=worker.work)
    thread.start()
    deadline = time.monotonic() + 30
    while not (runs[1].folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state_of(runs[1]) == "running"
    worker.stop()
    thread.join(timeout=30)
    assert events[-1] == "stopped"
    assert [state_of(run) for run in runs] == ["finished", "half done", "to do"]
    assert work(runs) == [(e, arm) for arm in "bc" for e in ("started", "finished")]
    assert starts(runs[1]) == ["", "--resume"]
    assert not (runs[1].folder / "checkpoint-3").exists()


def test_two_workers_share_the_runs(runs: list[PlannedRun]) -> None:
    """The first is held up in run a; the second does the rest and leaves a to the first."""
    behave(runs[0], "wait")
    first = Worker(runs, tell=lambda *_: None)
    thread = threading.Thread(target=first.work)
    thread.start()
    deadline = time.monotonic() + 30
    while not (runs[0].folder / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert work(runs) == [(e, arm) for arm in "bc" for e in ("started", "finished")]
    first.stop()
    thread.join(timeout=30)
    assert [len(starts(run)) for run in runs] == [1, 1, 1]


def test_a_run_taken_over_by_another_worker_is_ended_here(
    runs: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_queue, "REFRESH_SECONDS", 0.0)
    behave(runs[0], "wait")
    events: list[str] = []

    def tell(event: str, run: PlannedRun, seconds: float) -> None:
        events.append(event)
        if event == "started":  # as if this machine had slept for long
            (run.folder / "claim-2.json").write_text(json.dumps({"released": True}))

    Worker(runs[:1], tell=tell).work()
    assert events[0] == "started" and events[-1] == "lost"
    assert not (runs[0].folder / "failed.json").exists()


def test_an_attempt_without_checkpoint_leaves_nothing_to_the_next(runs: list[PlannedRun]) -> None:
    folder = runs[0].folder
    (folder / "before").mkdir(parents=True)
    (folder / "checkpoint-7").mkdir()  # cut off while it was written
    for name in ("config.json", "curve.jsonl", "metrics.jsonl"):
        (folder / name).write_text("old")
    assert work(runs[:1]) == [("started", "a"), ("finished", "a")]
    assert starts(runs[0]) == [""]
    left = {path.name for path in folder.iterdir()}
    assert left == {"recipe.yaml", "log.txt", "result.json", "starts", "ready"}
