"""A user's own graders: found by name or file, run in processes with limits, used everywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.tiny_runs import flags, rows_of, write_questions
from podsrl.cli import main
from podsrl.plugins import load_plugins
from podsrl.rewards import GRADERS, Grader, last_number
from podsrl.rewards.graders import score_by_grader, try_grader
from podsrl.tasks import load_task
from podsrl.tasks.base import make_row, make_task
from podsrl.tasks.rewarded import with_grader

FILE = '''
import math
import time

from limit_of_mine import LIMIT
from podsrl.rewards import GRADERS


def near(gold, answer):
    """1 within the limit, a half within twice as much."""
    try:
        distance = abs(float(gold) - float(answer))
    except ValueError:
        return 0
    return 1.0 if distance <= LIMIT else 0.5 if distance <= 2 * LIMIT else 0.0


def told(gold, answer, completion, level, **columns):
    return float("sure" in completion and level == 5 and "when" in columns)


def moody(gold, answer):
    if answer == "1":
        raise KeyError("no verdict")
    while answer == "2":
        math.sqrt(2)
    if answer == "3":
        return 3
    return 1


GRADERS["near"] = near
GRADERS["always"] = lambda gold, answer: 1
'''


@pytest.fixture()
def own(tmp_path: Path) -> Iterator[Path]:
    before = dict(GRADERS)
    (tmp_path / "limit_of_mine.py").write_text("LIMIT = 2\n")
    path = tmp_path / "my_grader.py"
    path.write_text(FILE)
    yield path
    GRADERS.clear()
    GRADERS.update(before)


@pytest.fixture(scope="module")
def processes() -> Iterator[Grader]:
    grader = Grader(num_workers=1, timeout_seconds=1.0)
    yield grader
    grader.close()


def test_by_name_and_by_file(own: Path, processes: Grader) -> None:
    """Gold 10: 12 is near, 14 half, 15 is far; what has no number is wrong and never asked."""
    load_plugins([str(own)])
    texts, rows = ["it is 12", "14", "15", "none"], [{"answer": "10"}] * 4
    for name in ("near", f"{own}:near"):
        score = score_by_grader(name, last_number, processes=processes)
        assert score(texts, rows) == [1.0, 0.5, 0.0, 0.0]
    score = score_by_grader("always", last_number, processes=processes)
    assert score(texts, rows) == [1.0, 1.0, 1.0, 0.0]


def test_a_name_of_the_table_is_not_that_of_another_file(own: Path, processes: Grader) -> None:
    """Both are called near, and the table's, of the first file, was asked first."""
    load_plugins([str(own)])
    other = own.with_name("other.py")
    other.write_text("def near(gold, answer):\n    return 0.25\n")
    for name, given in (("near", 1.0), (f"{other}:near", 0.25), (f"{own}:near", 1.0)):
        score = score_by_grader(name, last_number, processes=processes)
        assert score(["it is 12"], [{"answer": "10"}]) == [given]


def test_it_gets_the_text_and_the_columns(own: Path, processes: Grader) -> None:
    """Also a column that JSON lacks, as text."""
    rows = [{"answer": "1", "level": level, "when": own, "prompt": "left out"} for level in (5, 4)]
    score = score_by_grader(f"{own}:told", last_number, processes=processes)
    assert score(["surely 1", "surely 1"], rows) == [1.0, 0.0]


def test_what_fails_or_hangs_has_no_score_and_one_out_of_bounds_ends_it(
    own: Path, processes: Grader
) -> None:
    score = score_by_grader(f"{own}:moody", last_number, processes=processes)
    before = processes.num_failures
    assert score(["1", "2", "4"], [{"answer": "4"}] * 3) == [None, None, 1.0]
    assert processes.num_failures - before == 2
    with pytest.raises(ValueError, match=r"moody gives 3.0: give a number from 0 to 1"):
        score(["3"], [{"answer": "4"}])


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        ("def f(gold, answer):\n    return float(answer)\n", "f", "line 2: ValueError: could not"),
        ("def f(gold, answer):\n    return 'yes'\n", "f", "gives 'yes': give a number from 0 to 1"),
        ("def f(gold, answer):\n    return 2\n", "f", "gives 2: give a number from 0 to 1"),
        ("def f(gold):\n    return 1\n", "g", "has no function g; it has f"),
    ],
)
def test_it_is_tried_before_anything_is_loaded(
    code: str, name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        try_grader(f"{tmp_path / 'bad.py'}:{name}", {"answer": "1"})
    assert said in str(raised.value) and "bad.py" in str(raised.value)


def test_names_that_are_not_there_and_functions_of_no_file() -> None:
    with pytest.raises(ValueError, match="grader is 'nearly': choose from math, add it with plug"):
        score_by_grader("nearly", last_number)
    GRADERS["here"] = eval("lambda gold, answer: 1", {})
    with pytest.raises(ValueError, match="no other process can load"):
        score_by_grader("here", last_number)
    del GRADERS["here"]


def test_the_format_has_no_reward_where_the_grader_failed(own: Path) -> None:
    rows = [make_row("1?", "4", tags=True)]
    task = make_task("mine", lambda split: rows, answer_format="tags", max_new_tokens=4)
    graded = with_grader(task, f"{own}:moody", rows[0])
    text = "<think>so</think><answer>{}</answer>"
    asked = {"completions": [text.format(1), text.format(4)], "answer": ["4", "4"]}
    values = {name: function(**asked) for name, function in graded.reward_funcs.items()}
    assert values == {name: [None, 1.0] for name in ("correctness", "format", "tag_count")}
    assert with_grader(task, None, rows[0]) is task


def test_math_is_the_grader_of_answers_that_are_compared() -> None:
    task = load_task("arithmetic")
    (row,) = task.rows("test", 1)
    graded = with_grader(task, "math", row)
    assert graded.is_correct(f"{row['answer']}.0", row) and not graded.is_correct("none", row)


def test_training_and_evaluation_grade_alike(
    own: Path, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digits are within 2 of the last digit far more often than equal to it."""
    questions = write_questions(tmp_path / "questions.jsonl")
    more = {"grader": "near", "max_steps": 1, "save_strategy": "no", "evaluate_limit": 4}
    words = flags(tiny_folder, questions, tmp_path / "run", **more)
    assert main(["train", *words]) == 2
    assert "grader is 'near': choose from math" in capsys.readouterr().err
    assert main(["train", *words, "--plugins", str(own)]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["grader"] == "near"
    (row,) = rows_of(tmp_path / "run")
    assert row["reward"] == row["rewards/correctness/mean"] > 0

    out = ["--limit", "4", "--max-new-tokens", "6", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "--model", str(tmp_path / "run" / "model"), *out]) == 0
    problems = rows_of(tmp_path / "out", "answers.jsonl")
    for problem in problems:
        answer = problem["greedy"]["answer"]
        near = answer is not None and abs(float(problem["answer"]) - float(answer)) <= 2
        assert problem["greedy"]["correct"] is near
