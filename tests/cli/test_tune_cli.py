"""podsrl tune from end to end on a tiny model: killed, resumed by two workers, confirmed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from helpers.tiny_runs import tiny_recipe
from podsrl.cli.tune import main


@pytest.fixture()
def tune_file(tiny_folder: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "recipe": tiny_recipe(tiny_folder, learning_rate=1e-3),
        "space": {"num_rollouts": [2, 4, 8], "learning_rate": {"low": "1e-4", "high": "1e-2"}},
        "trials": 3,
        "budget": "steps",
        "max_steps": 2,
        "evaluate_every_steps": 1,
        "confirm_settings": 0,
        "output_dir": str(tmp_path / "out"),
    }
    path.write_text(yaml.safe_dump(content))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "podsrl.cli", "tune", str(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def kill_in_its_first_trial(worker: subprocess.Popen[str], folder: Path) -> None:
    """As a machine that dies: the worker and the run that it started."""
    deadline = time.monotonic() + 120
    claims: list[Any] = []
    while not any("child" in claim for claim in claims) and time.monotonic() < deadline:
        time.sleep(0.05)
        texts = [path.read_text() for path in folder.glob("claim-*.json")]
        claims = [json.loads(text) for text in texts if text]
    (child,) = (claim["child"]["pid"] for claim in claims if "child" in claim)
    run = psutil.Process(child)
    worker.kill()
    os.kill(child, signal.SIGKILL)
    worker.wait()
    psutil.wait_procs([run])


@pytest.mark.slow
def test_a_killed_search_is_finished_by_two_workers(tune_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_in_its_first_trial(start(tune_file), out / "trial-000" / "seed-0")
    assert not (out / "trial-000" / "seed-0" / "result.json").exists()
    workers = [start(tune_file), start(tune_file)]
    texts = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], texts
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(row["trial"], row["state"], row["steps"]) for row in rows] == [
        (number, "finished", 2) for number in range(3)
    ]
    assert [row["chosen"] for row in rows] == ["recipe", "random", "random"]
    assert all(len(row["accuracy"]) == 3 and 0 <= row["score"] <= 1 for row in rows)
    # n = 2 is below m, and was never tried.
    assert {row["values"]["num_rollouts"] for row in rows} <= {4, 8}
    logs = [(out / f"trial-00{k}" / "seed-0" / "log.txt").read_text() for k in range(3)]
    assert [log.count("$ ") for log in logs] == [2, 1, 1]
    assert sum(text.count(": started") for text in texts) == 3


def test_dry_run_says_what_would_run_and_writes_nothing(
    tune_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tune_file), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "3 of 3 trials to do, then 0 runs to confirm, 2 optimizer steps each" in text
    assert "recipe: learning_rate=0.001, num_rollouts=8" in text
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line(tune_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none.yaml"]) == 2
    assert "podsrl tune: tune file none.yaml does not exist" in capsys.readouterr().err
    content = yaml.safe_load(tune_file.read_text())
    tune_file.write_text(yaml.safe_dump(content | {"space": {"learning_rat": [1, 2]}}))
    assert main([str(tune_file)]) == 2
    assert "unknown setting of space: learning_rat; did you mean" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "learning_rate: {low: 1.0e-6, high: 1.0e-4, scale: log}" in text
    assert "confirm_seeds: 4" in text and "--retry_failed" in text
