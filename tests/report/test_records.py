"""A comparison kept in runs.jsonl is, to the report, the folders it was collected from."""

import json
from pathlib import Path

import pytest

from helpers.arms import PHASES, ROWS, write_comparison, write_run
from podsrl.cli import main as podsrl
from podsrl.report.read import read_comparisons
from podsrl.report.records import collect, mean_metrics
from podsrl.report.summary import summarise

ROOT = Path(__file__).resolve().parents[2]


def summary_of(folder: Path) -> str:
    """What summary.json would hold, as text: equal to the last digit or not at all."""
    (comparison,) = read_comparisons([folder])
    return json.dumps(summarise(comparison))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_summary_is_the_same_to_the_last_digit(tmp_path):
    rows = {
        "grpo": {s: [0.2, 0.1 + 0.2, 1 / 3, 0.7 - s / 7] for s in range(3)},
        "pods": ROWS["pods"],
    }
    folder = write_comparison(tmp_path / "mine", rows)
    # Without metrics the phases come from the result: 7 s in 90 steps.
    (folder / "pods" / "seed-1" / "metrics.jsonl").unlink()
    result = {"steps": 90, "seconds": {"sampling": 7.0, "update": 0.1, "training": 7.1}}
    (folder / "pods" / "seed-1" / "result.json").write_text(json.dumps(result))
    path = collect(folder, tmp_path / "kept" / "elsewhere")
    assert {found.name for found in path.parent.iterdir()} == {"comparison.json", "runs.jsonl"}
    assert summary_of(path.parent) == summary_of(folder)
    first, *others = lines_of(path)
    assert (first["arm"], first["seed"], first["finished"]) == ("grpo", 0, True)
    assert first["phases"] == pytest.approx(PHASES)
    assert first["curve"]["accuracy"] == [0.2, 0.1 + 0.2, 1 / 3, 0.7]
    assert first["curve"]["mark_seconds"] == [0, 60, 120, 180]
    assert len(others) == 5
    assert others[3]["phases"] == {"sampling": 7.0 / 90, "update": 0.1 / 90}


def test_failed_missing_and_unfinished_runs_are_told_alike(tmp_path):
    folder = write_comparison(
        tmp_path / "mine", {"grpo": ROWS["grpo"], "pods": {0: ROWS["pods"][0]}}
    )
    write_run(folder / "pods" / "seed-1", [0.2, 0.5], finished=False)
    (folder / "grpo" / "seed-2" / "failed.json").write_text(
        json.dumps({"exit_status": 1, "last_lines": ["Traceback", "MemoryError: too big"]})
    )
    path = collect(folder, tmp_path / "kept")
    assert summary_of(path.parent) == summary_of(folder)
    lines = {(line.pop("arm"), line.pop("seed")): line for line in lines_of(path)}
    assert lines["grpo", 2] == {"failed": "exit status 1: MemoryError: too big"}
    assert lines["pods", 1]["finished"] is False
    assert ("pods", 2) not in lines


def test_a_measure_that_no_row_has_is_no_column(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    for path in folder.glob("*/*/curve.jsonl"):
        rows = [{**row, "format_rate": None, "both_rate": None} for row in lines_of(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = collect(folder, tmp_path / "kept")
    assert all(not {"format_rate", "both_rate"} & set(line["curve"]) for line in lines_of(path))
    assert summary_of(path.parent) == summary_of(folder)


def test_a_run_folder_counts_before_its_line(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    comparison_json = (folder / "comparison.json").read_text()
    collect(folder, folder)  # beside the runs, which then go on
    assert (folder / "comparison.json").read_text() == comparison_json
    curve = folder / "pods" / "seed-0" / "curve.jsonl"
    rows = lines_of(curve)
    rows[-1]["accuracy"] = 0.1
    curve.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (comparison,) = read_comparisons([folder])
    assert comparison.arms["pods"].runs[0].points[-1]["accuracy"] == 0.1


def test_own_code_is_kept_without_the_folders_of_the_machine(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    content = json.loads((folder / "comparison.json").read_text())
    content["arms"]["pods"]["plugins"] = [str(tmp_path / "own.py")]
    (folder / "comparison.json").write_text(json.dumps(content))
    kept = (collect(folder, tmp_path / "kept").parent / "comparison.json").read_text()
    assert json.loads(kept)["arms"]["pods"]["plugins"] == ["own.py"]
    assert str(tmp_path) not in kept


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"arm": "grpo", "see', "is not JSON"), ('{"arm": "grpo"}', "does not name arm and seed")],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    path = collect(write_comparison(tmp_path / "mine"), tmp_path / "kept")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=rf"runs\.jsonl, line 7 {message}"):
        read_comparisons([path.parent])


def test_metrics_are_means_over_the_steps_since_the_evaluation_before():
    rows = [{"step": 1, "a": 1.0, "b": 5.0}, {"step": 2, "a": 2.0, "b": None}, {"step": 3, "a": 6}]
    found = mean_metrics(rows, [0, 2, 2, 4], ["a", "b", "c"])
    # Steps 1 and 2 have 1 and 2; nothing is between 2 and 2; of steps 3 and 4 one was logged.
    assert found == {"a": [None, 1.5, None, 6.0], "b": [None, 5.0, None, None]}


def test_metrics_are_kept_by_name_and_change_no_report(tmp_path, capsys):
    folder = write_comparison(tmp_path / "mine")
    for path in folder.glob("pods/*/metrics.jsonl"):
        rows = [{**row, "mine": float(row["step"])} for row in lines_of(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = collect(folder, tmp_path / "kept", ["mine"])
    assert summary_of(path.parent) == summary_of(folder)
    lines = lines_of(path)
    assert all(line["metrics"] == {} for line in lines if line["arm"] == "grpo")
    pods = next(line for line in lines if line["arm"] == "pods")
    assert pods["metrics"]["mine"][0] is None and pods["metrics"]["mine"][-1] is not None
    assert len(pods["metrics"]["mine"]) == len(pods["curve"]["step"])
    with pytest.raises(ValueError, match=r"no run of .* logged yours: choose from .*mine"):
        collect(folder, tmp_path / "other", ["yours"])
    assert podsrl(["report", str(folder), "--metrics", "mine"]) == 2
    assert "--metrics says what --collect is to keep" in capsys.readouterr().err


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("podsrl.report.write.draw_figures", lambda *_: [])
    folder = write_comparison(tmp_path / "mine")
    assert podsrl(["report", str(folder), "--collect", str(tmp_path / "kept")]) == 0
    assert f"collected in {tmp_path / 'kept' / 'runs.jsonl'}" in capsys.readouterr().out
    assert podsrl(["report", str(tmp_path / "kept")]) == 0
    numbers = [
        (path / "report" / "summary.json").read_text() for path in (folder, tmp_path / "kept")
    ]
    assert numbers[0] == numbers[1]


def test_what_cannot_be_collected(tmp_path, capsys):
    folder = write_comparison(tmp_path / "mine")
    target = ["--collect", str(tmp_path / "kept")]
    assert podsrl(["report", str(folder), str(folder), *target]) == 2
    assert podsrl(["report", str(folder / "pods" / "seed-0"), *target]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "takes one comparison folder, not 2 paths" in errors[0]
    assert "holds no comparison.json" in errors[1]
    assert len(errors) == 2
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("name", "num_runs"), [("arms", 48), ("objectives", 50)])
def test_the_committed_comparisons_are_whole(name, num_runs):
    (comparison,) = read_comparisons([ROOT / "benchmarks" / name])
    assert sum(len(arm.used) for arm in comparison.arms.values()) == num_runs
    assert comparison.notes == []
