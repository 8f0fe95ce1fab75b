"""Train and test questions out of one generator of numbered questions, without overlap."""

from collections.abc import Callable, Iterator
from typing import Any

Entry = dict[str, Any]
# A seed -> the question of each index.
Generator = Callable[[int], Callable[[int], Entry]]
# A reasoning-gym item is made from seed + index, so the two splits start far apart.
TEST_SEED = 1_000_000_007
TRAIN_SEED_STEP = 10_000_019
MAX_REPEATS = 50
ENDLESS = 2**31 - 1


def disjoint_splits(
    name: str,
    arguments: dict[str, Any],
    *,
    seed: int,
    num_train: int,
    num_test: int,
    generator: Generator | None = None,
) -> Callable[[str], list[tuple[int, Entry]]]:
    """Return a function from split to its (index, entry) pairs of a data set.

    name, arguments: of the reasoning-gym data set, unless a `generator` is given.

    Test: the first `num_test` distinct questions from a fixed seed. Train: questions from `seed`,
    repeats allowed as the generator makes them, test questions left out.

    Raises: ValueError, when called, if the generator has too few distinct questions.

    Example: with `chain_sum` and num_test=256 about 105 of the 200 one-digit questions are test
    questions; training draws from the other 95 and from 16,000 two-digit ones.
    """
    for what, count in (("num_train", num_train), ("num_test", num_test), ("seed + 1", seed + 1)):
        if count < 1:
            raise ValueError(f"{what} is {count}: it must be at least 1")

    def entries(seed: int, count: int) -> Iterator[tuple[int, Entry]]:
        of_index = (generator or _of_reasoning_gym(name, arguments))(seed)
        return ((index, of_index(index)) for index in range(count))

    def test() -> list[tuple[int, Entry]]:
        distinct: dict[str, tuple[int, Entry]] = {}
        for index, entry in entries(TEST_SEED, MAX_REPEATS * num_test):
            distinct.setdefault(entry["question"], (index, entry))
            if len(distinct) == num_test:
                return list(distinct.values())
        raise ValueError(
            f"{name} made {len(distinct)} distinct questions, not num_test={num_test}: "
            f"ask for fewer, or widen {arguments}"
        )

    def train() -> list[tuple[int, Entry]]:
        held_out = {entry["question"] for _, entry in test()}
        found: list[tuple[int, Entry]] = []
        for index, entry in entries(train_seed(seed), MAX_REPEATS * num_train):
            if entry["question"] not in held_out:
                found.append((index, entry))
            if len(found) == num_train:
                return found
        raise ValueError(
            f"{name} made {len(found)} questions outside the test split, not "
            f"num_train={num_train}: lower num_test={num_test}, or widen {arguments}"
        )

    return lambda split: test() if split == "test" else train()


def train_seed(seed: int) -> int:
    """Return the generator's seed for training seed `seed`; different seeds share no item."""
    return seed * TRAIN_SEED_STEP


def _of_reasoning_gym(name: str, arguments: dict[str, Any]) -> Generator:
    def of_seed(seed: int) -> Callable[[int], Entry]:
        from reasoning_gym import create_dataset

        dataset = create_dataset(name, **arguments, seed=seed, size=ENDLESS)
        return lambda index: dataset[index]

    return of_seed
