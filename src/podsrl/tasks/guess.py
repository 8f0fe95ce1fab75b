"""Find a number in five guesses: a dialogue that a small model can play."""

import functools
import random
from typing import Any

from podsrl.tasks.base import Row, Task, make_row
from podsrl.tasks.splits import Entry, disjoint_splits
from podsrl.tasks.turns import make_turns_task

QUESTION = "Find the number from {low} to {high}."
TOKENS_PER_TURN = 40  # a call in JSON between tags, and the answer in a message of its own


class NumberToGuess:
    """Says of each guess whether the number is higher or lower, until it is found.

    The row's `answer` is the number. What is said follows from it and the guesses alone.
    """

    def __init__(self, max_guesses: int = 5) -> None:
        self.max_guesses = max_guesses
        self.number = self.num_guesses = 0
        self.is_found = False

    def reset(self, answer: str, **_: Any) -> None:
        """Begin with the row's number and no guess."""
        self.number, self.num_guesses, self.is_found = int(answer), 0, False

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: The guess.
        """
        if self.is_found or self.num_guesses >= self.max_guesses:
            return "over"
        self.num_guesses += 1
        try:
            difference = self.number - int(number)
        except (TypeError, ValueError):  # what a model may write in the place of a number
            return "no number"
        self.is_found = difference == 0
        if self.is_found:
            return "right"
        if self.num_guesses == self.max_guesses:
            return "over"
        return "higher" if difference > 0 else "lower"

    @property
    def score(self) -> float:
        """1 where the number was found, else 0."""
        return float(self.is_found)


def guess(
    *,
    data: str | None = None,
    seed: int = 0,
    num_train: int = 10_000,
    num_test: int = 256,
    max_guesses: int = 5,
    highest: int = 99,
) -> Task:
    """Return the task of finding a number from a range in at most `max_guesses` guesses.

    A range has 3/4 of 2^max_guesses to 2^max_guesses - 1 numbers, 24 to 31 with five guesses: who
    always asks for the middle finds every one, and none fewer guesses would do. `num_test`
    distinct ranges between 1 and `highest`, a number drawn from each, form the test split, the
    same for every seed; the `num_train` games of training follow `seed` and have other ranges.

    Raises: ValueError when `data` is given, for fewer than 2 guesses, for a `highest` below the
    longest range, and when there are too few ranges.
    """
    if data is not None:
        raise ValueError(f"data is {data}, but guess makes its own questions: leave data out")
    if max_guesses < 2:
        raise ValueError(f"max_guesses is {max_guesses}: it must be at least 2")
    if highest < 2**max_guesses - 1:
        raise ValueError(
            f"highest is {highest}: {max_guesses} guesses need ranges of up to "
            f"{2**max_guesses - 1} numbers, so give that or more, or lower max_guesses"
        )
    load_split = disjoint_splits(
        "guess",
        {"max_guesses": max_guesses, "highest": highest},
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        generator=lambda seed: lambda index: game(seed + index, max_guesses, highest),
    )

    @functools.cache
    def rows(split: str) -> list[Row]:
        return [make_row(tags=False, **entry) for _, entry in load_split(split)]

    return make_turns_task(
        "guess",
        rows,
        environment=functools.partial(NumberToGuess, max_guesses),
        max_calls=max_guesses,
        max_new_tokens=TOKENS_PER_TURN * (max_guesses + 1),
    )


def game(seed: int, max_guesses: int, highest: int) -> Entry:
    """Return question, answer and the ends of the range of one game, drawn by `seed`.

    Example: every game of five guesses has a range of 24 to 31 numbers and an answer within.
    """
    draw = random.Random(seed)
    num_numbers = draw.randint(3 * 2**max_guesses // 4, 2**max_guesses - 1)
    low = draw.randint(1, highest - num_numbers + 1)
    high = low + num_numbers - 1
    question = QUESTION.format(low=low, high=high)
    return {
        "question": question,
        "answer": str(draw.randint(low, high)),
        "low": low,
        "high": high,
    }
