"""podsrl compare from end to end on a tiny model, and what it says of bad input."""

import json
from pathlib import Path

import pytest
import yaml

from helpers.tiny_runs import learned, rows_of, same_model, tiny_recipe
from podsrl.cli.compare import main
from podsrl.compare.comparison import load_comparison
from podsrl.runs.evaluations import CURVE

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "training_seconds",
    "step",
    "accuracy",
    "format_rate",
    "both_rate",
    "mean_length",
    "frac_cut_off",
    "reward",
    "kept_reward",
    "wall_seconds",
    "mark_seconds",
}


@pytest.fixture()
def comparison(tiny_folder: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "recipe": tiny_recipe(tiny_folder, learning_rate=1e-3),
        "arms": {"grpo": {}, "pods": {}},
        "seeds": 1,
        "training_seconds": 0.4,
        "evaluate_every_seconds": 0.2,
        "output_dir": str(tmp_path / "out"),
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_two_arms_of_one_seed(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(comparison)]) == 0
    assert "2 finished" in capsys.readouterr().out
    for arm in ("grpo", "pods"):
        folder = tmp_path / "out" / arm / "seed-0"
        rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
        assert [row["mark_seconds"] for row in rows] == pytest.approx([0.0, 0.2, 0.4])
        assert all(set(row) == KEYS for row in rows)
        result = json.loads((folder / "result.json").read_text())
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        phases = ("sampling", "rewards", "selection", "update")
        seconds = [sum(step[f"time/{phase}_seconds"] for phase in phases) for step in steps]
        # Within one step of the budget: spent by the last step, and not before it.
        assert sum(seconds) >= 0.4 > sum(seconds[:-1])
        assert result["seconds"]["training"] == pytest.approx(sum(seconds))
        assert not (folder / "model").exists() and not list(folder.glob("checkpoint-*"))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/result.json")}
    assert main([str(comparison)]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_by_steps_the_same_arm_and_seed_learns_the_same_to_the_bit(
    comparison: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(comparison.read_text())
    for name in ("training_seconds", "evaluate_every_seconds"):
        del content[name]
    content |= {"budget": "steps", "max_steps": 5, "evaluate_every_steps": 2, "seeds": [3]}
    content["arms"]["pods"] = {"learning_rate": 1e-2}
    # Lengths differ within a group, so what is learned depends on every draw.
    (tmp_path / "own.py").write_text(
        "def length(completions, **_):\n    return [len(str(each)) / 10 for each in completions]\n"
    )
    content["recipe"] |= {"save_model": True, "beta": 0.1, "reward_funcs": ["own.py:length"]}
    folders = []
    for name, arms in (("one", []), ("other", ["--arms", "pods"])):
        content["output_dir"] = str(tmp_path / name)
        comparison.write_text(yaml.safe_dump(content))
        assert main([str(comparison), *arms]) == 0
        folders.append(tmp_path / name / "pods" / "seed-3")
    grpo = tmp_path / "one" / "grpo" / "seed-3"
    for folder in (grpo, *folders):
        rows = rows_of(folder, CURVE)
        assert [row["step"] for row in rows] == [0, 2, 4, 5]
        assert all(set(row) == KEYS and row["mark_seconds"] is None for row in rows)
        assert 0 < rows[1]["training_seconds"] < rows[-1]["training_seconds"]
        assert json.loads((folder / "result.json").read_text())["steps"] == 5
    one, other = (
        [{key: row[key] for key in KEYS if "seconds" not in key} for row in rows_of(f, CURVE)]
        for f in folders
    )
    assert one == other and learned(folders[0]) == learned(folders[1])
    assert same_model(folders[0] / "model", folders[1] / "model")
    assert not same_model(folders[0] / "model", grpo / "model")


def test_dry_run_of_steps(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(comparison.read_text())
    for name in ("training_seconds", "evaluate_every_seconds"):
        del content[name]
    comparison.write_text(yaml.safe_dump(content | {"budget": "steps", "max_steps": 300}))
    assert main([str(comparison), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "300 optimizer steps per run" in text
    assert "2 of 2 runs to do: 600 optimizer steps, evaluating" in text


def test_dry_run_lists_the_runs_and_writes_nothing(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(comparison), "--dry_run", "--arms", "pods"]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path / 'out' / 'pods' / 'seed-0'}  to do" in text
    assert "1 of 1 runs to do" in text and "grpo (baseline)" in text
    assert not (tmp_path / "out").exists()


def test_an_arm_may_name_its_preset(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(comparison.read_text())
    content["arms"]["grpo-2"] = {"preset": "grpo", "num_generations": 2}
    comparison.write_text(yaml.safe_dump(content))
    assert main([str(comparison), "--dry_run"]) == 0
    assert "grpo-2" in capsys.readouterr().out
    content["arms"]["grpo-2"]["pre_set"] = "grpo"
    comparison.write_text(yaml.safe_dump(content))
    assert main([str(comparison), "--dry_run"]) == 2
    assert "pre_set" in capsys.readouterr().err


def test_bad_input_is_one_line(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(comparison), "--arms", "ppo"]) == 2
    assert "podsrl compare: --arms is ppo" in capsys.readouterr().err
    assert main(["none.yaml"]) == 2
    assert "comparison none.yaml does not exist" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "training_seconds: 120" in text and "--retry_failed" in text


@pytest.mark.packaged
def test_the_example_is_a_comparison() -> None:
    comparison = load_comparison(ROOT / "recipes" / "compare-arithmetic.yaml")
    assert {"grpo", "grpo-ga", "pods"} <= set(comparison.arms)
