"""One raw record of a data set and its fields, each refused by file and line if it is no text."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


class Record(dict[str, Any]):
    """The fields of a record, and where it stands, for errors to name.

    Example: `Record({"answer": "7"}, "sums.jsonl, line 3").place == "sums.jsonl, line 3"`.
    """

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        super().__init__(fields)
        self.place = place


def field_name(record: Record, *names: str) -> str:
    """Return the name of the first of these fields that the record has and that is not null.

    Raises: ValueError naming the place, the fields looked for and those there.
    """
    for name in names:
        if record.get(name) is not None:
            return name
    raise ValueError(
        f"{record.place}: the record has {sorted(record)[:20]}, but none of {', '.join(names)} "
        "with a value: add one"
    )


def field(record: Record, *names: str) -> Any:
    """Return the value of the field that `field_name` names."""
    return record[field_name(record, *names)]


def text_field(record: Record, *names: str) -> str:
    """Return the first of these fields that the record has, which must be text.

    Raises: ValueError as `field_name` does, and for another type, blank text, and half of a
    surrogate pair, which no tokenizer reads.
    """
    name = field_name(record, *names)
    return checked_text(record[name], f"{record.place}: {name}")


def answer_field(record: Record, *names: str) -> str:
    """Return a gold answer: text as it stands, a whole or finite decimal number as text.

    Raises: ValueError as `text_field` does, also for true, false, lists and mappings, whose text
    in Python no completion could equal.

    Example: the answers 7, "7" and " 7" give "7", "7" and " 7"; [7] is refused.
    """
    name = field_name(record, *names)
    value, what = record[name], f"{record.place}: {name}"
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{what} is {value}, which no text equals: correct it")
        return str(value)
    return checked_text(value, what, or_number=True)


def message_field(record: Record, name: str) -> list[dict[str, Any]]:
    """Return a prompt of chat messages: at least one, each with role and content.

    Raises: ValueError naming the place and the message, counted from 1.
    """
    messages = record[name]
    if not messages:
        raise ValueError(f"{record.place}: {name} is an empty list: add a message")
    for number, message in enumerate(messages, 1):
        what = f"{record.place}: {name}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{what} is {_shown(message)}: write role and content")
        checked_text(message["role"], f"{what}, role")
        if not isinstance(message["content"], list):  # a list of parts is the template's affair
            checked_text(message["content"], f"{what}, content")
    return list(messages)


def checked_text(value: Any, what: str, *, or_number: bool = False) -> str:
    """Return the value if it is text of some letters.

    Raises: ValueError saying what it is and what is wanted.
    """
    wanted = "text or a number" if or_number else "text"
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_shown(value)}, a {type(value).__name__}: write {wanted}")
    if not value.strip():
        raise ValueError(f"{what} is {_shown(value)}: write some {wanted}, or take the record out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("unicode_escape").decode()
        raise ValueError(f"{what} holds {half}, half of a surrogate pair: correct it") from error
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
