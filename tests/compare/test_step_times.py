"""Seconds per step of arms in turn, with a small function in the place of the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from helpers.tiny_runs import tiny_recipe
from podsrl.cli.compare import main
from podsrl.compare import step_times
from podsrl.compare.comparison import PlannedRun, load_comparison
from podsrl.runs.step_times import read_step_times, step_time


@pytest.fixture()
def spec(tiny_folder: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "recipe": tiny_recipe(tiny_folder),
        "arms": {"grpo": {}, "pods": {}},
        "seeds": [5, 9],
        "budget": "steps",
        "max_steps": 50,
        "output_dir": str(tmp_path / "out"),
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_median_and_its_interval() -> None:
    # One repeat of three steps: of 27 draws the median is 1 in 7 (two or three 1s), so 2.5 % lies
    # there, and 3 in 7.
    assert step_time([[1.0, 3.0, 2.0]]) == {"value": 2.0, "low": 1.0, "high": 3.0}
    assert step_time([[2.0, 2.0], [2.0, 2.0]]) == {"value": 2.0, "low": 2.0, "high": 2.0}
    # Repeats are drawn whole: with 1 s in one and 3 s in the other, both twice in a quarter each.
    assert step_time([[1.0] * 10, [3.0] * 10]) == {"value": 2.0, "low": 1.0, "high": 3.0}


def test_arms_alternate_and_the_file_is_what_the_report_reads(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int]] = []

    def seconds_of(run: PlannedRun) -> list[float]:
        seen.append((run.arm, run.seed))
        return [1.0, 1.0, 1.0] if run.arm == "grpo" else [2.0, 2.0, 5.0]

    monkeypatch.setattr(step_times, "_seconds_of_steps", seconds_of)
    assert main([str(spec), "--time_steps"]) == 0
    # Three repeats, over the seeds in turn, each of which begins with another arm.
    assert seen == [
        *(("grpo", 5), ("pods", 5)),
        *(("pods", 9), ("grpo", 9)),
        *(("grpo", 5), ("pods", 5)),
    ]
    path = tmp_path / "out" / "seconds_per_step.json"
    found = read_step_times(path)
    assert found["grpo"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (found["pods"]["value"], found["pods"]["low"]) == (2.0, 2.0)
    content = json.loads(path.read_text())
    assert content["seconds_per_step"]["pods"]["repeats"] == [[2.0, 2.0, 5.0]] * 3
    assert content["versions"]["trl"]
    assert "pods: 2.000 s a step (95 % interval 2.000 to " in capsys.readouterr().out
    assert not (tmp_path / "out" / "comparison.json").exists()  # no run has begun


def test_what_cannot_be_timed(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_times, "state_of", lambda run: "running")
    assert main([str(spec), "--time_steps"]) == 2
    assert "grpo seed 5 is being trained: steps are timed alone" in capsys.readouterr().err
    content = yaml.safe_load(spec.read_text())
    del content["budget"], content["max_steps"]
    spec.write_text(yaml.safe_dump(content | {"training_seconds": 5}))
    assert main([str(spec), "--time_steps"]) == 2
    assert "the comparison's budget is seconds: leave it out" in capsys.readouterr().err
    assert main([str(spec), "--time_steps", "--dry_run"]) == 2


@pytest.mark.slow
def test_a_process_of_its_own_takes_the_steps(spec: Path, tmp_path: Path) -> None:
    comparison = load_comparison(spec)
    (run,) = comparison.runs(["pods"], [5])
    seconds = step_times._seconds_of_steps(run)
    assert len(seconds) == step_times.NUM_STEPS - step_times.NUM_UNCOUNTED == 10
    assert all(0 < each < 60 for each in seconds)
    assert not (tmp_path / "out").exists()


def test_steps_that_fail_are_told(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = load_comparison(spec)
    broken: dict[str, Any] = {"max_steps": 0}
    monkeypatch.setattr(step_times, "MEASURING", broken)
    with pytest.raises(ValueError, match="pods seed 5: its steps failed: podsrl train: max_steps"):
        step_times.time_steps(comparison, comparison.runs(["pods"], [5]), Console(quiet=True))
