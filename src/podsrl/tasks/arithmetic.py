"""Sums and differences of two numbers of one or two digits: learnable in minutes."""

import random
from collections.abc import Callable

from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.splits import Entry, disjoint_splits

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
    """Return a task of sums, for example 15 - 43: reasoning-gym's `chain_sum`, made here.

    The last number of the completion counts; the reward is 1 or 0. Half of the questions have
    one-digit terms. `num_test` distinct questions, the same for every seed, form the test split;
    the `num_train` train questions follow `seed`, may repeat, and are never test questions.

    Raises: ValueError when `data` is given, for no terms or digits, and when the question space is
    too small.
    """
    if data is not None:
        raise ValueError(f"data is {data}, but arithmetic makes its own questions: leave data out")
    for what, number in (("num_terms", num_terms), ("max_digits", max_digits)):
        if number < 1:
            raise ValueError(f"{what} is {number}: it must be at least 1")
    load_split = disjoint_splits(
        "arithmetic",
        {"num_terms": num_terms, "max_digits": max_digits},
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        generator=lambda seed: lambda index: chain_sum(seed + index, num_terms, max_digits),
    )

    def rows(split: str) -> list[Row]:
        return [
            make_row(entry["question"], entry["answer"], tags=False)
            for _, entry in load_split(split)
        ]

    return make_task("arithmetic", rows, answer_format="number", max_new_tokens=24)


OPERATORS: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__}


def chain_sum(seed: int, num_terms: int, max_digits: int) -> Entry:
    """Return question and answer of a sum of `num_terms` terms, all of as many digits.

    The number of digits, the terms and the signs are drawn in this order, as reasoning-gym's
    `chain_sum` draws them (its arithmetic/chain_sum.py): the questions are its, to the letter.

    Example: `chain_sum(1_000_000_007, 2, 2)["answer"]` is 65, of 15 + 50.
    """
    draw = random.Random(seed)
    draw.randint(num_terms, num_terms)  # its number of terms, which is drawn too
    num_digits = draw.randint(1, max_digits)
    low = 0 if num_digits == 1 else 10 ** (num_digits - 1)
    terms = [draw.randint(low, 10**num_digits - 1) for _ in range(num_terms)]
    signs = [draw.choice(list(OPERATORS)) for _ in terms[1:]]
    words, total = [str(terms[0])], terms[0]
    for sign, term in zip(signs, terms[1:], strict=True):
        words += [sign, str(term)]
        total = OPERATORS[sign](total, term)
    return {"question": PROMPT.format(expression=" ".join(words)), "answer": str(total)}
