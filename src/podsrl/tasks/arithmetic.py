"""Sums and differences of two numbers of one or two digits: learnable in minutes."""

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.splits import disjoint_splits

PROMPT = "State the final answer to the following arithmetic problem: {expression} ="


def arithmetic(
    *,
    data: str | None = None,
    seed: int = 0,
    num_train: int = 10_000,
    num_test: int = 256,
    num_terms: int = 2,
    max_digits: int = 2,
) -> Task:
    """Return the task of reasoning-gym's `chain_sum`, for example 15 - 43.

    The last number of the completion counts; the reward is 1 or 0. Half of the questions have
    one-digit terms. `num_test` distinct questions, the same for every seed, form the test split;
    the `num_train` train questions follow `seed`, may repeat, and are never test questions.

    Raises: ValueError when `data` is given, and when the question space is too small.
    """
    if data is not None:
        raise ValueError(f"data is {data}, but arithmetic makes its own questions: leave data out")
    digits = {"min_digits": 1, "max_digits": max_digits}
    terms = {"min_terms": num_terms, "max_terms": num_terms}
    load_split = disjoint_splits(
        "chain_sum", {**digits, **terms}, seed=seed, num_train=num_train, num_test=num_test
    )

    def rows(split: str) -> list[Row]:
        return [
            make_row(
                PROMPT.format(expression=entry["metadata"]["expression"]),
                entry["answer"],
                tags=False,
            )
            for _, entry in load_split(split)
        ]

    return make_task("arithmetic", rows, answer_format="number", max_new_tokens=24)
