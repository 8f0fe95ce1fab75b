"""A user's own questions and answers in a JSON-lines, CSV or parquet file."""

from pathlib import Path

from podsrl.tasks.base import Row, Task, make_task
from podsrl.tasks.columns import asked, record_row, with_columns
from podsrl.tasks.record import Record
from podsrl.tasks.sources import local_path, table_rows
from podsrl.tasks.template import warn_of_answer


def jsonl(
    path: str,
    *,
    data: str | None = None,
    seed: int = 0,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
    prompt_template: str | None = None,
    answer_column: str = "answer",
    needs_answers: bool = True,
) -> Task:
    """Return the task `jsonl:<path>`: records with `prompt` or `question`, and `answer`.

    What is asked is `prompt_template` filled with a record's columns where one is given, and the
    answer stands in `answer_column`. With `needs_answers=False` records may lack it, as rewards
    without labels need none; evaluating them is then refused.

    `path` is a file, or a folder with train and test files (see `sources.local_records` for how
    one file is divided). `prompt` may be a list of chat messages, which is then used as it is. All
    other columns reach the reward functions (`columns.with_columns`).

    Raises: ValueError when the path is missing or `data` is given besides.
    """
    del seed  # the division into splits must not follow it
    if data is not None:
        raise ValueError(f"data is {data}, but jsonl:{path} names its file: leave data out")
    if not path or not local_path(path).exists():
        raise ValueError(f"jsonl:{path} names no file or folder: write jsonl:PATH")
    warn_of_answer(prompt_template, answer_column)

    def to_row(record: Record) -> Row:
        return record_row(
            record,
            tags=answer_format == "tags",
            prompt_template=prompt_template,
            answer_column=answer_column,
            needs_answer=needs_answers,
        )

    def rows(split: str) -> list[Row]:
        return with_columns(
            table_rows(
                split,
                data=path,
                hub=_no_hub,
                to_row=to_row,
                asked=lambda record: asked(record, prompt_template),
            )
        )

    return make_task(
        f"jsonl:{Path(path).name}",
        rows,
        answer_format=answer_format,
        max_new_tokens=max_new_tokens,
    )


def _no_hub(split: str) -> list[Record]:
    raise AssertionError("a jsonl task always has a path")
