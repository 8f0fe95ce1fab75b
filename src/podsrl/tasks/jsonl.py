"""A user's own questions and answers in a JSON-lines, CSV or parquet file."""

import warnings
from pathlib import Path

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.record import Record, answer_field, message_field, text_field
from podsrl.tasks.sources import local_path, table_rows

# What the question and answer become, and what TRL reads or passes under these names itself.
_NAMES = """
prompt question answer prompts completion completions completion_ids image images tools
chat_template_kwargs trainer_state log_extra log_metric environments
"""
NO_COLUMNS = frozenset(_NAMES.split())


def jsonl(
    path: str,
    *,
    data: str | None = None,
    seed: int = 0,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
) -> Task:
    """Return the task `jsonl:<path>`: records with `prompt` or `question`, and `answer`.

    `path` is a file, or a folder with train and test files (see `sources.local_records` for how
    one file is divided). `prompt` may be a list of chat messages, which is then used as it is. All
    other columns reach the reward functions, None where a record lacks one, but for those in
    `NO_COLUMNS` and those of no one type, which are left out with a warning.

    Raises: ValueError when the path is missing or `data` is given besides.
    """
    del seed  # the division into splits must not follow it
    if data is not None:
        raise ValueError(f"data is {data}, but jsonl:{path} names its file: leave data out")
    if not path or not local_path(path).exists():
        raise ValueError(f"jsonl:{path} names no file or folder: write jsonl:PATH")

    def to_row(record: Record) -> Row:
        return _row(record, tags=answer_format == "tags")

    def rows(split: str) -> list[Row]:
        return _with_columns(table_rows(split, data=path, hub=_no_hub, to_row=to_row))

    return make_task(
        f"jsonl:{Path(path).name}",
        rows,
        answer_format=answer_format,
        max_new_tokens=max_new_tokens,
    )


def _row(record: Record, *, tags: bool) -> Row:
    answer = answer_field(record, "answer")
    columns = {name: value for name, value in record.items() if name not in NO_COLUMNS}
    if isinstance(record.get("prompt"), list):
        return {"prompt": message_field(record, "prompt"), "answer": answer, **columns}
    return {**columns, **make_row(text_field(record, "prompt", "question"), answer, tags=tags)}


def _with_columns(rows: list[Row]) -> list[Row]:
    """The rows with the same columns each, as the table that a trainer makes of them needs."""
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


def _no_hub(split: str) -> list[Record]:
    raise AssertionError("a jsonl task always has a path")
