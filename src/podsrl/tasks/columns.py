"""A user's own record as a row of a task, with every column for the reward functions."""

import warnings
from typing import Any

from podsrl.tasks.base import Row, make_row
from podsrl.tasks.record import Record, answer_field, field, message_field, text_field
from podsrl.tasks.sources import QUESTIONS
from podsrl.tasks.template import fill_template, template_columns

# What the question and answer become, and what TRL reads or passes under these names itself.
_NAMES = """
prompt question answer prompts completion completions completion_ids image images tools
chat_template_kwargs trainer_state log_extra log_metric environments
"""
NO_COLUMNS = frozenset(_NAMES.split())


def record_row(
    record: Record,
    *,
    tags: bool,
    prompt_template: str | None = None,
    answer_column: str = "answer",
    needs_answer: bool = True,
) -> Row:
    """Return the row of a record: `prompt`, `answer`, and all columns not in `NO_COLUMNS`.

    The prompt is the template filled with the record's columns, without one the record's `prompt`
    or `question`, after the system message of `tags`. A `prompt` of chat messages is used as it is.
    The answer may be missing, and is None then, where `needs_answer` is false.

    Raises: ValueError naming the record's place and what is wrong with it.

    Example: {"question": "1 + 1?", "answer": 2, "level": 5} gives the columns prompt, answer "2"
    and level.
    """
    is_known = needs_answer or record.get(answer_column) is not None
    answer = answer_field(record, answer_column) if is_known else None
    columns = {name: value for name, value in record.items() if name not in NO_COLUMNS}
    if prompt_template is not None:
        question = fill_template(prompt_template, record, record.place)
    elif isinstance(record.get("prompt"), list):
        return {"prompt": message_field(record, "prompt"), "answer": answer, **columns}
    else:
        question = text_field(record, "prompt", "question")
    return {**columns, **make_row(question, answer, tags=tags)}


def asked(record: Record, prompt_template: str | None = None) -> Any:
    """Return what a record asks, by which it belongs to train or to test.

    Without a template its `prompt` or `question`; with one the columns that the template names, so
    that other words around them leave the division as it is, and columns that are not asked, such
    as a `question` that all records share, have no part in it.

    Example: the template "{question} Be brief." asks what the record does without it; "{a} + {b}"
    of a = 1, b = 2 asks [1, 2].
    """
    if prompt_template is None:
        return field(record, *QUESTIONS)
    fill_template(prompt_template, record, record.place)  # for its errors
    values = [record[name] for name in sorted(template_columns(prompt_template))]
    return values[0] if len(values) == 1 else values


def with_columns(rows: list[Row]) -> list[Row]:
    """Return the rows with the same columns each, as the table that a trainer makes of them needs.

    Where a row lacks a column it is None. One whose values are of no one type is left out with a
    warning.

    Example: rows with the columns a, and a and b, all have a and b.
    """
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    for name in [name for name in names if name not in ("prompt", "answer")]:
        try:
            pyarrow.array([row.get(name) for row in rows])
        except (pyarrow.ArrowException, OverflowError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"column {name!r} is left out, as its values are of no one type ({reason})",
                stacklevel=2,
            )
            del names[name]
    return [{name: row.get(name) for name in names} for row in rows]
