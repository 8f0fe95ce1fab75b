"""Columns of a user's own beside question and answer, and CSV files."""

from pathlib import Path

import pytest

from helpers.tiny_runs import flags, rows_of
from podsrl.cli.train import main
from podsrl.runs.changes import fingerprint, fingerprints
from podsrl.tasks import load_task
from podsrl.tasks.base import Row

REWARD = """
def levelled(completions, level, **columns):
    return [float(each) for each in level]
"""


def read(path: Path, content: str) -> list[Row]:
    path.write_bytes(content.encode())
    return load_task(f"jsonl:{path}", answer_format="number").rows("test")


def test_all_columns_are_kept_and_a_record_that_lacks_one_has_none(tmp_path: Path) -> None:
    lines = """{"question": "1+1?", "answer": 2, "level": 5, "id": "a"}
    {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4", "marks": {"hard": true}}
    """
    first, second = read(tmp_path / "test.jsonl", lines)
    assert first == {
        "prompt": [{"role": "user", "content": "1+1?"}],
        "answer": "2",
        "level": 5,
        "id": "a",
        "marks": None,
    }
    assert [second[name] for name in ("answer", "level", "marks")] == ["4", None, {"hard": True}]


def test_names_that_trl_has_and_columns_of_two_types_are_left_out(tmp_path: Path) -> None:
    lines = """{"question": "1?", "answer": 1, "completions": "x", "image": "y", "odd": 1}
    {"question": "2?", "answer": 2, "odd": "one"}
    """
    with pytest.warns(UserWarning, match="column 'odd' is left out, as its values are of no one"):
        rows = read(tmp_path / "test.jsonl", lines)
    assert [set(row) for row in rows] == [{"prompt", "answer"}] * 2


def test_csv_is_read(tmp_path: Path) -> None:
    content = '\ufeffquestion,answer,level\r\n"1,000 + 1?\nsay",1001,3\r\n\r\n2?,2,\r\n'
    rows = read(tmp_path / "test.csv", content)
    assert [row["prompt"][-1]["content"] for row in rows] == ["1,000 + 1?\nsay", "2?"]
    assert [(row["answer"], row["level"]) for row in rows] == [("1001", "3"), ("2", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\n1?,1\n2?,2,3\n", "line 3: 3 values for 2 columns: put quotes"),
        ('question,answer\n"1\n?",1\n2?\n', "line 4: 1 values for 2 columns"),
        ("question,question\n1?,1\n", "line 1: two columns have one name"),
        ('question,answer\n"1?"x,1\n', "line 2: not CSV"),
        ("question,answer\n1?,\n", "line 2: the record has .* none of answer"),
        ("", "has no test records"),
    ],
)
def test_what_is_no_csv_is_refused_by_line(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "test.csv", content)


def test_checkpoints_from_when_no_columns_were_kept_know_their_questions() -> None:
    rows = [{"prompt": [{"role": "user", "content": "1?"}], "answer": "1", "level": 5}]
    before = [{name: rows[0][name] for name in ("prompt", "answer")}]
    assert fingerprints(rows) == (fingerprint(rows), fingerprint(before))
    assert fingerprint(rows) != fingerprint(before)


def test_a_reward_of_an_own_file_reads_a_column_of_a_csv(tiny_folder: str, tmp_path: Path) -> None:
    data, reward = tmp_path / "sums.csv", tmp_path / "mine.py"
    lines = [f"last digit of {i}?,{i % 10},3" for i in range(40)]
    data.write_text("question,answer,level\n" + "\n".join(lines) + "\n")
    reward.write_text(REWARD)
    more = {"reward_funcs": f"{reward}:levelled", "max_steps": 1, "save_strategy": "no"}
    assert main(flags(tiny_folder, data, tmp_path / "run", **more)) == 0
    assert [row["reward"] for row in rows_of(tmp_path / "run")] == [3.0]  # every rollout has 3
