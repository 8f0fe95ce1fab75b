"""podsrl init: what it sees in a file, what it writes, that this passes all checks and runs."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.commands import run_python
from podsrl.cli import main
from podsrl.tasks.look import kind_of_answers, look_at

NUM = 60
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"
CAPITALS = ("Paris", "Rome", "Bern")


def sums() -> list[dict[str, Any]]:
    return [{"question": f"what is {i} + 7?", "answer": i + 7, "level": i % 3} for i in range(NUM)]


def chats(answer: str, system: str) -> list[dict[str, Any]]:
    first = {"role": "system", "content": system}
    return [
        {"prompt": [first, {"role": "user", "content": f"question {i}"}], "answer": answer}
        for i in range(NUM)
    ]


def named(answers: Any) -> list[dict[str, Any]]:
    return [{"question": f"item {i}?", "answer": answers[i % len(answers)]} for i in range(NUM)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# File, records, what marks an answer, rewards, length limit, what is said.
# 128 = 64 x 2: numbers of 1 or 2 characters are 2/3 of a token, 1.5 x 2/3 + 100 = 101.
# 256: Paris is 5/3 of a token, 1.5 x 5/3 + 200 = 202.5; 64: 71 characters are 23.7, 35.5 tokens.
CASES: dict[str, tuple[str, list[dict[str, Any]], str, list[str], int, str]] = {
    "numbers": ("sums.jsonl", sums(), "number", ["correctness", "reward.py:closeness"], 128,
                "get the answer and level"),
    "csv": ("capitals.csv", named(CAPITALS), "tags", ["correctness", "reward.py:likeness"], 256,
            "<answer> tags is compared"),
    "texts": ("long.jsonl", named([LONG]), "text", ["reward.py:overlap"], 64,
              "accuracy says little of whole texts"),
    "chat": ("chat.jsonl", chats("Paris", "Be brief."), "text", ["reward.py:overlap"], 256,
             "your messages ask for no <answer> tags"),
    "other names": ("names.jsonl", [{"ID": i, "Problem": f"{i}?", "level": 1, "Solution": i}
                                    for i in range(NUM)],
                    "number", ["correctness", "reward.py:closeness"], 128, "Solution: all numbers"),
    "chat with tags": ("tags.jsonl", chats("Paris", "Write <answer>it</answer>."), "tags",
                       ["correctness", "reward.py:likeness"], 256, "chat messages, used as they"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_runs_and_passes_all_checks(
    case: str, tmp_path: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, rows, marked_by, rewards, length, said = CASES[case]
    data = write(tmp_path / name, rows)
    assert main(["init", name, "--model", tiny_folder]) == 0
    text = capsys.readouterr().out
    folder = tmp_path / data.stem
    assert said in text and f"podsrl train {data.stem}/recipe.yaml --dry_run" in text
    assert look_at(name).marked_by == marked_by

    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["task"] == f"jsonl:{data}" and recipe["reward_funcs"] == rewards
    assert recipe["max_completion_length"] == length
    assert recipe["num_rollouts"] == 2 * recipe["num_generations"]
    right, wrong = run_python("reward.py", cwd=folder).splitlines()
    assert right.startswith("1.000 ") and not wrong.startswith("1.000")

    before = sorted(tmp_path.rglob("*"))
    assert main(["train", f"{data.stem}/recipe.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    learned = NUM - recipe["evaluate_limit"]
    assert f"{learned} questions to learn from, rewards {rewards[0].split(':')[-1]}" in text
    assert main(["compare", f"{data.stem}/compare.yaml", "--dry_run"]) == 0
    assert "6 of 6 runs to do: 30.0 minutes" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before  # checks write nothing


def test_every_line_says_what_it_is_for(tmp_path: Path) -> None:
    write(tmp_path / "a name of some length, with spaces.jsonl", sums())
    assert main(["init", "a name of some length, with spaces.jsonl", "--output", "x"]) == 0
    for file in ("recipe.yaml", "compare.yaml"):
        lines = (tmp_path / "x" / file).read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            told = "  # " in line or above.startswith("# ") or line.startswith("#")
            assert told or line in ("", "arms:"), line
            assert len(line) <= 100 or line.startswith("task:"), line


def test_a_reward_that_is_there_takes_the_place_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums())
    (tmp_path / "mine.py").write_text("def even(completions, **_):\n    return [1.0, 0.0]\n")
    words = ["init", "sums.jsonl", "--reward-funcs", "correctness", "mine.py:even"]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "sums").iterdir()} == {"recipe.yaml", "compare.yaml"}
    recipe = yaml.safe_load((tmp_path / "sums" / "recipe.yaml").read_text())
    assert recipe["reward_funcs"] == ["correctness", f"{tmp_path}/mine.py:even"]
    assert recipe["reward_weights"] == [1.0, 1.0]


def test_train_and_test_files_are_taken_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    rows = sums()
    write(folder / "train.jsonl", rows[:50])
    write(folder / "test.csv", rows[50:])
    for given in ("both", "both/train.jsonl"):
        assert look_at(given).source == folder
    assert main(["init", "both/train.jsonl", "--output", "x"]) == 0
    assert "10 questions for evaluation, 50 to learn from" in capsys.readouterr().out
    recipe = yaml.safe_load((tmp_path / "x" / "recipe.yaml").read_text())
    assert recipe["task"] == f"jsonl:{folder}" and recipe["evaluate_limit"] == 10
    assert recipe["max_steps"] == 20  # 50 questions, 4 a step, are 13


def test_columns_by_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": f"No. {i}", "terms": f"{i}, 1", "answer": "x", "sum": i} for i in range(40)
    ]
    write(tmp_path / "sums.jsonl", rows)
    assert main(["init", "sums.jsonl", "--question", "terms", "--answer", "sum"]) == 0
    recipe = yaml.safe_load((tmp_path / "sums" / "recipe.yaml").read_text())
    assert recipe["prompt_template"] == "{terms}" and recipe["answer_column"] == "sum"
    assert recipe["answer_format"] == "number"
    assert main(["init", "sums.jsonl", "--question", "term"]) == 2
    assert "--question is term, but" in capsys.readouterr().err


def test_what_is_seen_beside_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"instruction": f"a {i}", "input": "b", "output": f"1 + {i} #### {i}"} for i in range(40)
    ]
    write(tmp_path / "x.jsonl", rows)
    assert main(["init", "x.jsonl"]) == 0
    text = capsys.readouterr().out
    assert "input is not asked" in text and "task: gsm8k with data" in text


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "sums.jsonl", sums())
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / "reward.py").write_text("mine")
    assert main(["init", "sums.jsonl"]) == 2
    assert "sums/reward.py is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "sums").iterdir()] == ["reward.py"]
    assert (tmp_path / "sums" / "reward.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"task": "1+1", "answer": 2}\n', "columns task, answer: say with --question COLUMN"),
        ('{"question": "1+1", "sum": 2}\n', "columns question, sum: say with --answer COLUMN"),
        ('{"question": "1+1", "answer": 2}\n{"question": "1+1"', "line 2: not JSON"),
        ('{"question": "1+1", "answer": 2}\n{"question": "", "answer": 2}\n', "line 2: question"),
        ("", "no records"),
        (None, "data.jsonl does not exist"),
    ],
)
def test_data_that_cannot_be_learned_from_is_one_line(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    assert main(["init", "data.jsonl"]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_model_or_reward_that_is_not_there_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "sums.jsonl", sums())
    assert main(["init", "sums.jsonl", "--model", "./none"]) == 2
    assert "./none does not exist" in capsys.readouterr().err
    assert main(["init", "sums.jsonl", "--reward-funcs", "none.py:f"]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "sums").exists()


def test_kinds_of_answers() -> None:
    assert kind_of_answers(["7", "1,200", "-0.5"]) == "number"
    assert kind_of_answers(["7", "1/2"]) == "short"
    assert kind_of_answers(["a\nb"]) == "long"
    # 95 of 100 answers decide: 5 long ones of 100 do not, 6 do.
    assert kind_of_answers(["Paris"] * 95 + [LONG] * 5) == "short"
    assert kind_of_answers(["Paris"] * 94 + [LONG] * 6) == "long"


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", sums())
    script = """
import sys, podsrl.cli
assert podsrl.cli.main(["init", "sums.jsonl"]) == 0
heavy = [name for name in ("torch", "transformers", "datasets", "trl") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
