"""Graders: what decides whether an answer is right, ours and a user's own.

A grader takes, by keyword, `gold` (the right answer) and `answer` (the final answer in the text),
and what it has parameters for of `completion` (the whole text) and the columns of the question. It
gives a score from 0 to 1; 1 is right. It runs in worker processes with limits of time and memory.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podsrl.plugins import OWN, load_function, told_with_line
from podsrl.rewards.functions import Row, Score, score_by_answer
from podsrl.rewards.grader import Grader, shared_grader
from podsrl.rewards.worker import grade_math, taken_by

Grade = Callable[..., float]

GRADERS: dict[str, Grade] = {"math": grade_math}


def find_grader(name: str) -> Grade:
    """Return the grader of this name in `GRADERS`, or the function that FILE.py:FUNCTION names.

    Raises: ValueError naming those there are.

    Example: `find_grader("math")` compares as mathematics does.
    """
    if name in GRADERS:
        return GRADERS[name]
    if ":" in name:
        return load_function(name, setting="grader")
    raise ValueError(
        f"grader is {name!r}: choose from {', '.join(GRADERS)}, add it with plugins, or write "
        "FILE.py:FUNCTION"
    )


def score_by_grader(
    name: str, extract: Callable[[str], str | None], *, processes: Grader | None = None
) -> Score:
    """Return the scorer that hands a text's final answer and its row to the grader of this name.

    extract: a text -> its final answer; a text without one is wrong, and no grader sees it.
    processes: those that grade; those of this process that all share by default.

    The scorer gives None where the grader fails, or takes longer than its limit.

    Raises: ValueError as `find_grader` does, and for a grader that no other process could load. The
    scorer: ValueError for a score outside 0 to 1.

    Example: `score_by_grader("math", last_number)(["it is 1/2"], [{"answer": "0.5"}])`.
    """
    if name == "math":
        return score_by_answer(extract)
    job: dict[str, Any] = {"grader": "own", "name": name.rpartition(":")[2], "place": _place(name)}
    job["from_table"] = ":" not in name
    job["paths"] = os.pathsep.join(sys.path)

    def score(texts: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        answers = [extract(text) for text in texts]
        asked = [i for i, answer in enumerate(answers) if answer is not None]
        jobs = [
            {**job, "arguments": as_json(_arguments(rows[i], answers[i], texts[i]))} for i in asked
        ]
        scores: list[float | None] = [0.0] * len(texts)
        graded = (processes or shared_grader()).grade(jobs)
        for i, value in zip(asked, graded, strict=True):
            scores[i] = None if value is None else _checked(name, value)
        return scores

    return score


def try_grader(name: str, row: Row) -> None:
    """Raise `ValueError` unless the grader scores two made-up answers to this question.

    It must give a number from 0 to 1 for the right answer and for one that it cannot read.
    """
    grade = find_grader(name)
    code = getattr(inspect.unwrap(grade), "__code__", None)
    for answer in (str(row["answer"]), "no such answer"):
        arguments = json.loads(as_json(_arguments(row, answer, answer)))
        try:
            value = grade(**taken_by(grade, arguments))
        except (Exception, SystemExit) as error:  # the user's code: anything may come out of it
            where = code.co_filename if code else None
            raise ValueError(
                f"grader {name} fails on the answer {answer[:40]!r}: give 0 for what it cannot "
                f"read: {told_with_line(error, where)}"
            ) from error
        _checked(name, value)


def _arguments(row: Row, answer: str | None, completion: str) -> dict[str, Any]:
    columns = {key: row[key] for key in row if key not in ("prompt", "answer")}
    return {**columns, "gold": row["answer"], "answer": answer, "completion": completion}


def as_json(arguments: Mapping[str, Any]) -> str:
    """Return what a job carries; values that JSON lacks, such as dates, as text."""
    return json.dumps(arguments, sort_keys=True, default=str)


def _checked(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(
            f"grader {name} gives {value!r}: give a number from 0 to 1, which is right"
        )
    return float(value)


def _place(name: str) -> str:
    """The file, or the module, by which another process finds the grader."""
    function = inspect.unwrap(find_grader(name))
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        raise ValueError(
            f"grader {name} is {function!r}, which no other process can load: write it as a "
            "function in a file of its own"
        )
    return str(module.__file__) if module.__name__.startswith(OWN) else module.__name__
