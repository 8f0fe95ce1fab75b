"""Any data set of reasoning-gym, scored by its own verifier."""

import json
from collections.abc import Sequence
from typing import Any

from podsrl.extras import need
from podsrl.rewards.answers import last_number, tagged_answer
from podsrl.rewards.functions import Row as RowView
from podsrl.rewards.grader import shared_grader
from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.splits import ENDLESS, TEST_SEED, disjoint_splits, train_seed


def reasoning_gym(
    name: str,
    *,
    data: str | None = None,
    seed: int = 0,
    num_train: int = 10_000,
    num_test: int = 256,
    answer_format: str = "tags",
    max_new_tokens: int = 512,
    **arguments: Any,
) -> Task:
    """Return the task `reasoning_gym:<name>`; `arguments` go to the data set, as in its docs.

    The data set's `score_answer` grades, in a worker process with a time limit; scores between 0
    and 1 are rewards as they are, and only 1 counts as right. Splits: `splits.disjoint_splits`.

    Raises: ValueError for an unknown name, unknown arguments, or when `data` is given.

    Example: `load_task("reasoning_gym:leg_counting", max_animals=3)`.
    """
    if data is not None:
        raise ValueError(f"data is {data}, but reasoning_gym:{name} makes its own: leave data out")
    _check(name, arguments)
    load_split = disjoint_splits(name, arguments, seed=seed, num_train=num_train, num_test=num_test)
    extract = tagged_answer if answer_format == "tags" else last_number
    seed_of = {"test": TEST_SEED, "train": train_seed(seed)}

    def rows(split: str) -> list[Row]:
        return [
            make_row(
                entry["question"],
                str(entry["answer"]),
                tags=answer_format == "tags",
                source_seed=seed_of[split],
                source_index=index,
            )
            for index, entry in load_split(split)
        ]

    def score(texts: Sequence[str], rows: Sequence[RowView]) -> list[float | None]:
        answers = map(extract, texts)
        jobs = [_job(name, arguments, *each) for each in zip(answers, rows, strict=True)]
        return shared_grader().grade(jobs)

    return make_task(
        f"reasoning_gym:{name}",
        rows,
        answer_format=answer_format,
        max_new_tokens=max_new_tokens,
        score=score,
    )


def _job(name: str, arguments: dict[str, Any], answer: str | None, row: RowView) -> dict[str, Any]:
    """What a grading process must know to make the question anew and score the answer."""
    made_from = {**arguments, "seed": row["source_seed"], "size": ENDLESS}
    return {
        "grader": "reasoning_gym",
        "name": name,
        "arguments": json.dumps(made_from, sort_keys=True),
        "index": row["source_index"],
        "answer": answer,
    }


def _check(name: str, arguments: dict[str, Any]) -> None:
    need("reasoning_gym", f"task reasoning_gym:{name}")
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        near = sorted(known for known in DATASETS if name[:4] in known) or sorted(DATASETS)
        raise ValueError(
            f"reasoning-gym has no data set {name!r}: for example {', '.join(near[:8])}"
        )
    try:
        create_dataset(name, **arguments, seed=0, size=1)
    except (TypeError, AssertionError) as error:  # how reasoning-gym refuses arguments
        raise ValueError(f"reasoning_gym:{name} refuses {arguments}: {error}") from error
