"""A mixture of a user's files through podsrl train: columns for rewards, resumed to the bit."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from helpers.tiny_runs import flags, learned, rows_of, same_model
from podsrl.cli import main

REWARD = """
def levelled(completions, level, **columns):
    assert {int(each) for each in level} <= {1, 2} and set(columns["answer"]) <= set("0123456789")
    return [int(each) * len(text[-1]["content"]) for each, text in zip(level, completions)]
"""


def words(model: str, place: Path, name: str, **more: Any) -> list[str]:
    """A run on two parts of a mixture, as flags; its own task and task arguments are left out."""
    given = flags(model, place, place / name, reward_funcs=f"{place / 'mine.py'}:levelled", **more)
    pairs = list(zip(given[::2], given[1::2], strict=True))
    kept = [pair for pair in pairs if pair[0] not in ("--task", "--task_arguments")]
    mixture = [{"path": str(place / name), "fraction": 0.5} for name in ("a.jsonl", "b.parquet")]
    return [
        *(word for pair in kept for word in pair),
        *("--answer_format", "number", "--prompt_template", "last digit of {number}?"),
        *("--datasets", *map(json.dumps, mixture)),
        *("--test_datasets", str(place / "held.csv")),
    ]


@pytest.fixture()
def place(tmp_path: Path) -> Path:
    rows = [{"number": i, "answer": str(i % 10), "level": 1 + i // 20} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    parquet.write_table(pyarrow.Table.from_pylist(rows[20:]), tmp_path / "b.parquet")
    (tmp_path / "held.csv").write_text("number,answer,level\n71,1,1\n72,2,2\n")
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def test_a_mixture_trains_and_is_resumed_to_the_bit(tiny_folder: str, place: Path) -> None:
    assert main(["train", *words(tiny_folder, place, "whole")]) == 0
    assert main(["train", *words(tiny_folder, place, "cut", max_steps=2)]) == 0
    assert main(["train", *words(tiny_folder, place, "cut"), "--resume"]) == 0
    assert learned(place / "cut") == learned(place / "whole")
    assert same_model(place / "cut" / "model", place / "whole" / "model")
    config = json.loads((place / "whole" / "config.json").read_text())
    assert config["task"] == "dataset" and config["datasets"][1]["fraction"] == 0.5
    asked = [
        row["prompt"][-1]["content"] for row in rows_of(place / "whole/before", "answers.jsonl")
    ]
    assert asked == ["last digit of 71?", "last digit of 72?"]

    other = place / "other.csv"  # evaluated on alone, in the run's words and with its reward
    other.write_text("number,answer,level\n81,1,2\n")
    model, out = str(place / "whole" / "model"), str(place / "out")
    more = ["--test-datasets", str(other), "--max-new-tokens", "4", "--output", out]
    assert main(["evaluate", "--model", model, *more]) == 0
    (row,) = rows_of(place / "out", "answers.jsonl")
    assert row["prompt"][-1]["content"] == "last digit of 81?"
    figures = json.loads((place / "out" / "evaluation.json").read_text())
    assert figures["reward_levelled"]["value"] == 2 * len(row["greedy"]["text"])


def test_a_column_that_held_out_questions_lack_is_told_before_the_model_loads(
    tiny_folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "held.csv").write_text("number,answer\n71,1\n")
    assert main(["train", *words(tiny_folder, place, "run")]) == 2
    error = capsys.readouterr().err
    assert "on held-out questions: levelled fails" in error and "'level'" in error
    assert not (place / "run").exists()


def test_data_that_changed_is_told_on_resume(
    tiny_folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words(tiny_folder, place, "run", max_steps=2, evaluate_limit=0)]) == 0
    path = place / "a.jsonl"
    path.write_text(path.read_text().replace('"answer": "7"', '"answer": "8"'))
    again = words(tiny_folder, place, "run", evaluate_limit=0)
    assert main(["train", *again, "--resume"]) == 2
    assert "questions (SHA-256)" in capsys.readouterr().err
