"""Templates over the columns of a record, and system messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from podsrl.tasks import load_task
from podsrl.tasks.base import TAGS_PROMPT
from podsrl.tasks.questions import QuestionArguments, named_task
from podsrl.tasks.template import fill_template, template_columns, with_system_prompt

# Of "0?" to "99?" those whose SHA-256, as JSON text, is in the lowest tenth.
NOT_LEARNED = ["24", "28", "30", "33", "34", "63", "99"]


def messages(*contents: str) -> list[dict[str, str]]:
    """A user's message, after a system message where there are two."""
    roles = ("system", "user")[-len(contents) :]
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_template_is_filled_with_text_and_numbers() -> None:
    columns = {"a": "1", "b c": 2.5, "yes": True, "x.y": "z"}
    template = "{a} + {b c} is {{{yes}}}, {x.y}, {a}"
    assert fill_template(template, columns, "line 1") == "1 + 2.5 is {True}, z, 1"
    assert template_columns(template) == ["a", "b c", "yes", "x.y"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{question", "write {{ and }} for braces"),
        ("a } b {question}", "write {{ and }} for braces"),
        ("{}", "write the name of a column in braces"),
        ("{question!r}", "write the name of a column in braces"),
        ("{question:>3}", "write the name of a column in braces"),
        ("What?", "name a column in braces, as in {question}"),
        ("{level}", "line 1: prompt_template names {level}, and the record has question, topics: "),
        ("{none}", "line 1: prompt_template names {none}, and the record has question, topics: "),
        ("{topics}", "line 1: prompt_template names {topics}, which is a list there"),
    ],
)
def test_what_cannot_be_filled_is_one_line_naming_what_there_is(template: str, said: str) -> None:
    columns = {"question": "1?", "topics": ["sums"], "none": None}
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        fill_template(template, columns, "line 1")
    assert said in str(raised.value)


@pytest.mark.parametrize("has_system", [True, False])
def test_the_system_message_is_replaced_put_before_or_left_out(has_system: bool) -> None:
    given = messages("old", "1?") if has_system else messages("1?")
    assert with_system_prompt(given, None) == given
    assert with_system_prompt(given, "new") == messages("new", "1?")
    assert with_system_prompt(given, "") == messages("1?")


def test_a_task_of_ones_own_is_put_as_the_settings_say(tmp_path: Path) -> None:
    """Columns that the template names, one of them with the answer, and all for the rewards."""
    record = {"instruction": "Add.", "input": "1 and 1", "solution": 2, "answer": "no", "level": 5}
    path = write(tmp_path / "test.jsonl", record)
    arguments = QuestionArguments(
        task=f"jsonl:{path}",
        prompt_template="{instruction} {input}",
        system_prompt="Be brief.",
        answer_column="solution",
        answer_format="number",
    )
    (row,) = named_task(arguments, seed=0).rows("test")
    assert row["prompt"] == messages("Be brief.", "Add. 1 and 1")
    assert row["answer"] == "2"
    rest = {name: row[name] for name in row if name not in ("prompt", "answer")}
    assert rest == {"instruction": "Add.", "input": "1 and 1", "solution": 2, "level": 5}


def test_with_tags_the_task_says_how_to_answer_unless_the_user_does(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", {"question": "1?", "answer": 1, "level": 5})
    load = f"jsonl:{path}"
    (row,) = load_task(load, prompt_template="{question} ({level})").rows("test")
    assert row["prompt"] == messages(TAGS_PROMPT, "1? (5)")
    (row,) = load_task(load, system_prompt="").rows("test")
    assert row["prompt"] == messages("1?")


def test_other_tasks_know_their_question_and_their_columns() -> None:
    plain = load_task("arithmetic").rows("test", 2)
    task = load_task("arithmetic", system_prompt="Add.", prompt_template="{question} Be brief.")
    for before, row in zip(plain, task.rows("test", 2), strict=True):
        question = before["prompt"][-1]["content"]
        assert row == {**before, "prompt": messages("Add.", f"{question} Be brief.")}
    with pytest.raises(ValueError, match=r"arithmetic, test row 1: .* the record has answer, ques"):
        load_task("arithmetic", prompt_template="{level}").rows("test")


def test_a_template_that_tells_the_answer_is_warned_of(tmp_path: Path) -> None:
    path = write(tmp_path / "test.jsonl", {"question": "1?", "solution": 1})
    options = {"prompt_template": "{question} {solution}", "answer_column": "solution"}
    with pytest.warns(UserWarning, match="names {solution}, the answer itself"):
        load_task(f"jsonl:{path}", **options)
    with pytest.warns(UserWarning, match="names {answer}, the answer itself"):
        load_task("arithmetic", prompt_template="{answer}")


def held_out(path: Path, **options: Any) -> list[str]:
    return [row["answer"] for row in load_task(f"jsonl:{path}", **options).rows("test")]


def test_records_are_divided_by_the_columns_that_a_template_names(tmp_path: Path) -> None:
    """Of 400 records about a tenth, whatever words the template has; the order is no word, too."""
    path = write(tmp_path / "all.jsonl", *({"a": i, "b": "x", "answer": i} for i in range(400)))
    task = load_task(f"jsonl:{path}", prompt_template="{a} {b}?")
    train, test = task.rows("train"), task.rows("test")
    assert len(train) + len(test) == 400 and len(test) == 47  # SHA-256 of [0, "x"], ...
    others = [held_out(path, prompt_template=words) for words in ("Is {b} {a}?", "{b}{a}")]
    assert others == [[row["answer"] for row in test]] * 2
    assert others[0] != held_out(path, prompt_template="{a}")


def test_a_template_over_the_question_alone_holds_out_what_no_template_does(tmp_path: Path) -> None:
    """The numbers are those of versions before templates had a say."""
    records = ({"question": f"{i}?", "answer": i} for i in range(100))
    path = write(tmp_path / "asked.jsonl", *records)
    for options in ({}, {"prompt_template": "{question}"}, {"prompt_template": "{question} Add."}):
        assert held_out(path, **options) == NOT_LEARNED


def test_a_question_that_the_template_does_not_ask_divides_nothing(tmp_path: Path) -> None:
    """All records have one question: by it none would be held out, or all."""
    records = [{"question": "Translate.", "text": f"{i}?", "answer": i} for i in range(100)]
    path = write(tmp_path / "same.jsonl", *records)
    assert held_out(path, prompt_template="{text}") == NOT_LEARNED


def test_an_option_in_two_places_is_refused() -> None:
    arguments = QuestionArguments(
        task="gsm8k", answer_format="number", task_arguments={"answer_format": "tags"}
    )
    with pytest.raises(ValueError, match="'number', and 'tags' in task_arguments: leave one out"):
        named_task(arguments, seed=0)


def test_a_format_that_a_task_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic has no argument 'answer_format'"):
        named_task(QuestionArguments(answer_format="tags"), seed=0)
