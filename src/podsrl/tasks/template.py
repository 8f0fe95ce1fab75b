"""How a question is put: a template over the columns of its record, and a system message."""

import functools
import string
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from podsrl.tasks.base import Row, Task


def template_columns(template: str) -> list[str]:
    """Return the columns that a template names, each once, in the order in which they stand.

    A column stands in braces, {{ and }} are braces themselves.

    Raises: ValueError for braces without a partner or without a name, for a conversion or a
    format, and for a template that names no column, which would ask the same of every record.

    Example: `template_columns("{question} Think about {topic}.") == ["question", "topic"]`.
    """
    what = f"prompt_template is {template!r}"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{what} ({error}): write {{{{ and }}}} for braces") from error
    names = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (not name or form or conversion):
            raise ValueError(
                f"{what}: write the name of a column in braces and nothing else, as in {{question}}"
            )
    if not names:
        raise ValueError(f"{what}: name a column in braces, as in {{question}}")
    return list(dict.fromkeys(names))


def fill_template(template: str, columns: Mapping[str, Any], place: str) -> str:
    """Return the template with the record's values in the place of their columns' names.

    columns: values by name; text, numbers, true and false are filled in as Python writes them.
    place: where the record stands, for errors.

    Raises: ValueError as `template_columns` does, for a column that the record lacks, naming those
    that it has, and for a list or a mapping.

    Example: `fill_template("{a} + {b}?", {"a": 1, "b": "2"}, "line 1") == "1 + 2?"`.
    """
    names = template_columns(template)
    for name in names:
        value = columns.get(name)
        if value is None:
            there = ", ".join(sorted(key for key in columns if columns[key] is not None)[:20])
            raise ValueError(
                f"{place}: prompt_template names {{{name}}}, and the record has {there}: name one "
                "of these, or add the column"
            )
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"{place}: prompt_template names {{{name}}}, which is a {type(value).__name__} "
                "there: write it as text into a column of its own"
            )
    parts = string.Formatter().parse(template)
    return "".join(
        literal + ("" if name is None else str(columns[name])) for literal, name, _, _ in parts
    )


def warn_of_answer(template: str | None, answer_column: str) -> None:
    """Warn of a template that puts the gold answer before the model."""
    if template is not None and answer_column in template_columns(template):
        warnings.warn(
            f"prompt_template names {{{answer_column}}}, the answer itself: the model need only "
            "copy it",
            stacklevel=2,
        )


def with_prompts(
    task: Task, *, system_prompt: str | None = None, prompt_template: str | None = None
) -> Task:
    """Return the task with its questions put otherwise; the same task where both are None.

    system_prompt: the system message of every prompt, in the place of the one that a prompt has,
        which with tags says how to answer; an empty text leaves it out.
    prompt_template: text of the user's message; {question} is the task's own, the others are
        columns of its rows.

    Raises: ValueError for a template that cannot be filled, when the rows are asked for if it is
    their columns' fault.

    Example: system_prompt "Be brief." makes the prompts of arithmetic begin with it.
    """
    if system_prompt is None and prompt_template is None:
        return task
    if prompt_template is not None:
        warn_of_answer(prompt_template, "answer")

    @functools.cache
    def load_split(split: str) -> Sequence[Row]:
        return [
            {**row, "prompt": _put(row, f"{task.name}, {split} row {number}")}
            for number, row in enumerate(task.load_split(split), 1)
        ]

    def _put(row: Row, place: str) -> list[dict[str, Any]]:
        messages = list(row["prompt"])
        if prompt_template is not None:
            columns = {**row, "question": messages[-1]["content"]}
            del columns["prompt"]
            text = fill_template(prompt_template, columns, place)
            messages[-1] = {**messages[-1], "content": text}
        return with_system_prompt(messages, system_prompt)

    return replace(task, load_split=load_split)


def with_system_prompt(
    messages: Sequence[dict[str, Any]], system_prompt: str | None
) -> list[dict[str, Any]]:
    """Return the messages after this system message; as they are for None, without one for "".

    Example: a prompt of a system and a user message keeps the latter alone for "".
    """
    if system_prompt is None:
        return list(messages)
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    return [*([{"role": "system", "content": system_prompt}] if system_prompt else []), *rest]
