"""AMC 2023: 40 problems of the American Mathematics Competitions, for testing only."""

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.record import answer_field, text_field
from podsrl.tasks.sources import hub_records, local_records

REPOSITORY = "math-ai/amc23"


def amc23(
    *,
    data: str | None = None,
    seed: int = 0,
    answer_format: str = "tags",
    max_new_tokens: int = 1024,
) -> Task:
    """Return AMC 2023, a test split without a train split, from the hub or from `data`.

    Raises: ValueError when the train split is asked for.
    """
    del seed  # one published split

    def rows(split: str) -> list[Row]:
        if split == "train":
            raise ValueError("amc23 has no train split: train on math, and evaluate on amc23")
        source = (
            hub_records(REPOSITORY, split=split) if data is None else local_records(data, split)
        )
        return [
            make_row(
                text_field(record, "question", "problem"),
                answer_field(record, "answer"),
                tags=answer_format == "tags",
            )
            for record in source
        ]

    return make_task("amc23", rows, answer_format=answer_format, max_new_tokens=max_new_tokens)
