"""A user's own questions and answers in a JSON-lines or parquet file."""

from pathlib import Path

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.record import Record, answer_field, message_field, text_field
from podsrl.tasks.sources import local_path, table_rows


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
    one file is divided). `prompt` may be a list of chat messages, which is then used as it is.

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
        return table_rows(split, data=path, hub=_no_hub, to_row=to_row)

    return make_task(
        f"jsonl:{Path(path).name}",
        rows,
        answer_format=answer_format,
        max_new_tokens=max_new_tokens,
    )


def _row(record: Record, *, tags: bool) -> Row:
    answer = answer_field(record, "answer")
    if isinstance(record.get("prompt"), list):
        return {"prompt": message_field(record, "prompt"), "answer": answer}
    return make_row(text_field(record, "prompt", "question"), answer, tags=tags)


def _no_hub(split: str) -> list[Record]:
    raise AssertionError("a jsonl task always has a path")
