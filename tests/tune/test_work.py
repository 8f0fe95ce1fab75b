"""Workers of a search and its confirmation, with a small script in the place of podsrl train."""

import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from helpers.tiny_runs import SAVES_WHEN_STOPPED
from podsrl.compare import queue as run_queue
from podsrl.compare.comparison import PlannedRun
from podsrl.runs.claims import try_claim
from podsrl.tune import work
from podsrl.tune.screen import work_on_search
from podsrl.tune.tuning import Tuning, load_tuning
from podsrl.tune.work import TuneWorker

# Accuracy rises with the learning rate; a run fails, or waits to be stopped, as a file says.
TRAIN = """
import json, pathlib, signal, sys, time, yaml, zipfile
recipe = yaml.safe_load(pathlib.Path(sys.argv[1]).read_text())
folder = pathlib.Path(recipe["output_dir"])
root = pathlib.Path(sys.argv[2])
with (folder / "starts").open("a") as file:
    file.write(" ".join(sys.argv[3:]) + ";")
"""
TRAIN += (
    SAVES_WHEN_STOPPED
    + """
named = folder.parent.name
if (root / f"{named}.wait").exists() and "--resume" not in sys.argv:
    time.sleep(60)
if (root / f"{named}.fail").exists():
    sys.exit("no memory left")
accuracy = 0.3 + 1000 * recipe["learning_rate"] + 0.001 * (recipe["seed"] % 3)
rows = [{"step": k, "mark_seconds": k, "training_seconds": k, "accuracy": accuracy} for k in (0, 1)]
(folder / "curve.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
(folder / "result.json").write_text("{}")
"""
)


@pytest.fixture()
def tuning(tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuning:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)

    def command(run: PlannedRun, *, resume: bool) -> list[str]:
        recipe = str(run.folder / "recipe.yaml")
        return [sys.executable, str(script), recipe, str(tmp_path), *(["--resume"] * resume)]

    monkeypatch.setattr(run_queue, "train_command", command)
    monkeypatch.setattr(run_queue, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(work, "POLL_SECONDS", 0.02)
    return load(tiny_folder, tmp_path)


def load(tiny_folder: str, tmp_path: Path, **changes: Any) -> Tuning:
    recipe = {
        "task": "arithmetic",
        "model": tiny_folder,
        "num_generations": 4,
        "num_rollouts": 8,
        "per_device_train_batch_size": 8,
        "train_limit": 8,
        "evaluate_limit": 8,
        "learning_rate": 1e-5,
    }
    content = {
        "recipe": recipe,
        "space": {"learning_rate": {"low": 1e-6, "high": 1e-4, "scale": "log"}},
        "trials": 7,
        "training_seconds": 60,
        "confirm_settings": 2,
        "confirm_seeds": 2,
        "output_dir": str(tmp_path / "out"),
        **changes,
    }
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_tuning(path)


def starts(folder: Path) -> list[str]:
    path = folder / "starts"
    return path.read_text().split(";")[:-1] if path.exists() else []


def search(tuning: Tuning, **options: Any) -> tuple[int, str]:
    text = io.StringIO()
    given = {"devices": None, "retry_failed": False, **options}
    status = work_on_search(tuning, console=Console(file=text, width=300), **given)
    return status, text.getvalue()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def test_search_and_confirmation(tuning: Tuning) -> None:
    status, text = search(tuning)
    assert status == 0
    trials = tuning.trials()
    assert [trial.state for trial in trials] == ["finished"] * 7
    assert [trial.chosen for trial in trials] == ["recipe", *["random"] * 4, *["model"] * 2]
    assert len(starts(tuning.output_dir / "trial-000" / "seed-0")) == 1
    rows = [json.loads(r) for r in (tuning.output_dir / "results.jsonl").read_text().splitlines()]
    assert [row["trial"] for row in rows] == list(range(7))
    assert all(
        row["score"] == pytest.approx(0.3 + 1000 * row["values"]["learning_rate"]) for row in rows
    )
    found = json.loads((tuning.output_dir / "confirmed.json").read_text())
    best = max(trials, key=lambda trial: trial.values["learning_rate"])
    assert found["winner"] == best.name and found["seeds"] == [1, 2] and len(found["arms"]) == 3
    assert f"{best.name} is better than the recipe" in text and "7 of 7 done" in text
    written = yaml.safe_load((tuning.output_dir / "best.yaml").read_text())
    assert written["learning_rate"] == best.values["learning_rate"]
    again, text = search(tuning)
    assert again == 0 and "started" not in text and f"{best.name} is better" in text


def test_a_stopped_search_goes_on_from_its_checkpoint(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "trial-002.wait").touch()
    worker = TuneWorker(tuning, tell=lambda *_: None)
    thread = threading.Thread(target=worker.work)
    thread.start()
    folder = tuning.folder(2) / "seed-0"
    wait_for(folder / "ready")
    assert [trial.state for trial in tuning.trials()] == ["finished", "finished", "running"]
    worker.stop()
    thread.join(timeout=30)
    assert tuning.trials()[2].state == "half done"
    values = [trial.values for trial in tuning.trials()]
    assert search(tuning)[0] == 0
    assert [trial.values for trial in tuning.trials()][:3] == values
    assert starts(folder) == ["", "--resume"]


def test_two_workers_share_the_trials(tuning: Tuning) -> None:
    assert search(tuning, devices=["0", "1"])[0] == 0
    assert len(tuning.trials()) == 7
    for trial in tuning.trials():
        assert len(starts(trial.run.folder)) == 1


def test_a_trial_of_another_worker_is_waited_for(tuning: Tuning) -> None:
    """It may be the best, so that nothing is confirmed before it has ended."""
    folder = tuning.folder(0) / "seed-0"
    worker = TuneWorker(tuning, tell=lambda *_: None)
    worker._propose([])
    claim = try_claim(folder)
    assert claim is not None
    thread = threading.Thread(target=worker.work)
    thread.start()
    wait_for(tuning.folder(6) / "seed-0" / "result.json")
    time.sleep(0.2)
    assert thread.is_alive()
    claim.release()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert [trial.state for trial in tuning.trials()] == ["finished"] * 7


def test_a_failed_trial_is_told_and_retried_when_asked(tuning: Tuning, tmp_path: Path) -> None:
    (tmp_path / "trial-001.fail").touch()
    status, text = search(tuning)
    assert status == 1 and "trial-001: failed" in text
    assert [trial.state for trial in tuning.trials()].count("finished") == 6
    assert (tuning.output_dir / "confirmed.json").exists()
    assert search(tuning)[0] == 1 and len(starts(tuning.folder(1) / "seed-0")) == 1
    assert search(tuning, retry_failed=True)[0] == 1
    assert len(starts(tuning.folder(1) / "seed-0")) == 2
    (tmp_path / "trial-001.fail").unlink()
    assert search(tuning, retry_failed=True)[0] == 0


def test_more_trials_go_on_where_the_search_ended(
    tuning: Tuning, tiny_folder: str, tmp_path: Path
) -> None:
    assert search(tuning)[0] == 0
    before = [trial.values for trial in tuning.trials()]
    more = load(tiny_folder, tmp_path, trials=9)
    assert search(more)[0] == 0
    assert [trial.values for trial in more.trials()][:7] == before and len(more.trials()) == 9


def test_proposals_depend_on_seed_and_scores_alone(
    tuning: Tuning, tiny_folder: str, tmp_path: Path
) -> None:
    assert search(tuning)[0] == 0
    other = load(tiny_folder, tmp_path, output_dir=str(tmp_path / "again"))
    assert search(other)[0] == 0
    assert [t.values for t in tuning.trials()] == [t.values for t in other.trials()]
