"""The benchmark of faults itself: that it sees what it is to count, and a small version of it."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import faults

from fault_rows import answers, damage, data, kills, misuse, moments, outcome, recipes, rewards
from fault_rows.case import spread
from fault_rows.server import Ended
from helpers.arms import ROWS, write_comparison
from podsrl.cli import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "reliability.md"
PLANNED = {
    ("kill", "kill_checkpoint", "kill_model", "kill_evaluation"): 300, ("damage",): 50,
    ("recipes",): 100, ("data",): 60, ("misuse",): 60, ("rewards",): 40, ("answers",): 40,
    ("races",): 20, ("disk",): 10, ("signals",): 40, ("ranks",): 10, ("memory",): 1,
}  # fmt: skip


def test_as_many_attempts_are_planned_as_promised() -> None:
    for names, least in PLANNED.items():
        assert sum(faults.ROWS[name].full for name in names) >= least
    assert {name for names in PLANNED for name in names} == set(faults.ROWS)
    assert all(row.quick <= row.full for row in faults.ROWS.values())


@pytest.mark.parametrize("room", [damage, recipes, data, misuse, rewards])
def test_every_case_is_tried_once(room: Any) -> None:
    names = [spread(room.CASES, number)[0] for number in range(len(room.CASES))]
    assert sorted(names) == sorted(room.CASES)
    assert len({spread(answers.ANSWERS, n)[0] for n in range(len(answers.ANSWERS))}) >= 40


def test_every_signal_meets_every_moment() -> None:
    pairs = {(n % len(kills.MOMENTS), n % len(kills.SIGNALS)) for n in range(40)}
    assert len(pairs) == 8 * 5 == math.prod((len(kills.MOMENTS), len(kills.SIGNALS)))


def write_run(folder: Path, *, steps: int = 2, weights: bytes = b"w") -> Path:
    """What a finished run leaves, as far as it is compared."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_bytes(weights)
    rows = [{"step": i + 1, "loss": 0.5, "time/update_seconds": id(folder)} for i in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rollouts.jsonl.gz").write_bytes(gzip.compress(b'{"format": 1}\n{"step": 1}\n'))
    evaluation = {"accuracy_greedy": 0.5, "seconds": id(folder)}
    result = {"steps": steps, "before": evaluation, "after": evaluation}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_other_bits_are_named_and_seconds_are_not_compared(tmp_path: Path) -> None:
    expected = outcome.left_by(write_run(tmp_path / "a"))
    assert outcome.differences(write_run(tmp_path / "b"), expected) is None
    assert outcome.differences(write_run(tmp_path / "c", weights=b"v"), expected) == "other weights"
    found = outcome.differences(write_run(tmp_path / "d", steps=3), expected)
    assert found == "other metrics, steps"
    (tmp_path / "b/result.json").unlink()
    assert "not finished: FileNotFoundError" in str(outcome.differences(tmp_path / "b", expected))


@pytest.mark.parametrize(
    ("status", "text", "wrong"),
    [
        (2, "podsrl train: task is 'chess': choose from arithmetic\n", None),
        (0, "everything is in runs/run\n", "not refused: status 0"),
        (1, "Traceback (most recent call last)\nKeyError: 1\n", "traceback: KeyError: 1"),
        (2, "usage: ...\n", "no message: usage: ..."),
    ],
)
def test_a_refusal_is_status_2_and_a_line(status: int, text: str, wrong: str | None) -> None:
    assert outcome.refused_in_one_line(Ended(status, text, 1.0)) == wrong


def test_moments_are_told_apart() -> None:
    kinds = {
        "os.mkdir run/checkpoint-2": "checkpoint",
        "before run/checkpoint-2/model.safetensors": "checkpoint",
        "open run/model/config.json": "model",
        "evaluation begins": "evaluation",
        "open run/after/answers.jsonl": "evaluation",
        "open run/metrics.jsonl": "other",
    }
    assert {name: moments.kind_of(name) for name in kinds} == kinds
    third = moments.nth("metrics", 3)
    assert [third(0, "open run/metrics.jsonl") for _ in range(4)] == [False, False, True, False]


def test_the_log_is_read_up_to_a_torn_line_and_for_one_code(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = {"row": "kill", "number": 0, "code": "a", "failure": None, "outcome": "resumed"}
    lines = [line, {**line, "number": 1, "failure": "hung"}, {**line, "code": "b", "number": 2}]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in lines) + '{"row": "ki')
    assert faults.read_log(tmp_path / "none.jsonl", "a") == []
    read = faults.read_log(log, "a")
    assert [entry["number"] for entry in read] == [0, 1]
    row = faults.summarise(read, "a")["rows"]["kill"]
    assert (row["attempts"], row["failures"], row["outcomes"]) == (2, 1, {"resumed": 2})
    assert row["first_failures"] == ["1: resumed: hung"]
    assert faults.summarise(read, "a")["rows"]["races"]["attempts"] == 0


def test_rows_of_other_code_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code b has 1 of row kill and 2 of races, code a 2 of kill: the JSON takes 2 and 2."""
    tried = {"failure": None, "outcome": "x"}
    log = tmp_path / "log.jsonl"
    found = [("a", "kill", 0), ("a", "kill", 1), ("b", "kill", 0), ("b", "races", 0)]
    found += [("b", "races", 1), ("c", "kill", 0)]
    lines = [{"code": code, "row": row, "number": i, **tried} for code, row, i in found]
    lines[-1]["failure"] = "hung"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(faults, "code_under_test", lambda: "b")
    monkeypatch.setattr(faults, "make_attempts", lambda *_: None)
    words = ["--log", str(log), "--output", str(tmp_path / "j"), "--also", "a", "--before", "c"]
    assert faults.main(words) == 0
    content = json.loads((tmp_path / "j").read_text())
    kill, races = content["rows"]["kill"], content["rows"]["races"]
    assert (kill["code"], kill["attempts"]) == ("a", 2)
    assert (races["code"], races["attempts"]) == ("b", 2)
    assert content["before"]["rows"]["kill"] == {"attempts": 1, "failures": 1}


def test_help_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        faults.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in faults.ROWS) and "Ctrl-C keeps them" in text


def test_a_report_bears_dollars_in_names_and_a_torn_line(tmp_path: Path) -> None:
    """A $ is no mathematics; the last line of a comparison under way may be half written."""
    arms = {name: ROWS["grpo"] for name in ("grpo", "$$", "$\\frac{$")}
    folder = write_comparison(tmp_path / "arms", arms)
    with (folder / "grpo/seed-0/curve.jsonl").open("a") as file:
        file.write('{"mark_seconds": 12, "acc')
    assert main(["report", str(folder)]) == 0
    assert "$\\frac{$" in (folder / "report/report.html").read_text("utf-8")


def test_every_failure_has_tests_that_are_there() -> None:
    """The table of docs/reliability.md: 1 to 17, each with tests by file and name."""
    lines = re.findall(r"^\| (\d+) \|.*\| (`tests/.*) \|$", DOCS.read_text("utf-8"), re.M)
    assert [int(number) for number, _ in lines] == list(range(1, 18))
    for _, tests in lines:
        file = ""
        for path, name in re.findall(r"`([\w/.]*)::(\w+)`", tests):
            file = path or file
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{file}::{name}"


@pytest.mark.slow
def test_the_small_version_holds(tmp_path: Path) -> None:
    """`--quick`, all rows in one test, in a process that has no threads when it forks."""
    command = [sys.executable, str(Path(faults.__file__)), "--quick"]
    command += ["--output", str(tmp_path / "faults.json"), "--log", str(tmp_path / "log.jsonl")]
    command += ["--scratch", str(tmp_path / "scratch")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-3000:]
    assert not any((tmp_path / "scratch").iterdir())
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert not {name: row["first_failures"] for name, row in rows.items() if row["failures"]}
    for name, row in faults.ROWS.items():
        assert rows[name]["attempts"] == (0 if row.needs_root and os.geteuid() else row.quick)
