"""recipes/small_tasks.py: what is right, how different answers are, and what its teachers say."""

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from podsrl.plugins import load_function, load_plugins
from podsrl.rewards.answers import last_number, tagged_answer
from podsrl.rewards.checks import consistency
from podsrl.tasks import load_task

FILE = str(Path(__file__).resolve().parents[1] / "recipes" / "small_tasks.py")
NUM_DRAWS = 4000


@pytest.fixture(autouse=True)
def plugin() -> None:
    load_plugins([FILE])


def own(name: str) -> Any:
    return load_function(f"{FILE}:{name}")


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (" 4 + 19", True),
        (" 23 + 0", True),
        (" 1 + 1, no, 5 + 18", True),  # the last pair counts
        (" 3 + 20", False),  # the first is below 4
        (" 4 + 18", False),
        (" 24 + -1", False),  # which is 24 and no number after it
        (" 23", False),
    ],
)
def test_a_pair_is_right_by_its_sum_and_its_first_number(text: str, is_right: bool) -> None:
    row = {"total": 23, "least": 4, "answer": "4 + 19"}
    assert load_task("pairs").is_correct(text, row) is is_right


def test_questions_say_what_is_checked_and_are_held_out() -> None:
    task = load_task("pairs", num_train=200, num_test=64)
    train, test = task.rows("train"), task.rows("test")
    assert len(train) == 200 and len(test) == 64
    asked = [{row["prompt"][0]["content"] for row in rows} for rows in (train, test)]
    assert not asked[0] & asked[1]
    for row in test:
        words = f"add up to {row['total']}, the first at least {row['least']}:"
        assert words in row["prompt"][0]["content"]
        assert task.is_correct(row["answer"], row)


def test_diversity_counts_each_right_answer_once_a_prompt() -> None:
    texts = [" 4 + 19", " 04 + 19", " 5 + 18", " 5 + 5", " 4 + 6", " 4 + 6"]
    prompts = ["a"] * 4 + ["b"] * 2
    columns = {"total": [23] * 4 + [10] * 2, "least": [4] * 6}
    logged: dict[str, float] = {}
    rewards = own("diversity")(texts, prompts, log_metric=logged.__setitem__, **columns)
    assert rewards == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    # Prompt a: 2/3 and 1/3, .6365 nats, two of three pairs; prompt b one answer, 0 nats, none.
    assert logged == {
        "diversity/num_right_answers": 1.5,
        "diversity/entropy": pytest.approx(0.6365 / 2, abs=1e-4),
        "diversity/frac_different": pytest.approx(1 / 3),
    }
    assert own("diversity")([" 4 + 19"], ["a"], total=[23], least=[4]) == [1.0]  # no pair, no log


def test_the_share_of_different_pairs_is_that_of_all_pairs() -> None:
    pool = [*"aaaaaabbbccd"]
    pairs = list(itertools.combinations(pool, 2))
    expected = sum(one != other for one, other in pairs) / len(pairs)
    assert own("frac_different")(Counter(pool)) == pytest.approx(expected)
    assert own("frac_different")(Counter(a=1, b=2)) == pytest.approx(2 / 3)  # ab, ab, bb
    assert own("frac_different")(Counter(a=8)) == 0 and own("frac_different")(Counter("ab")) == 1


def test_the_teacher_of_pairs_is_wrong_as_often_as_it_says() -> None:
    task, slips = load_task("pairs"), random.Random(1)
    shares = []
    for total in (20, 29):  # last digits 0 and 9: .5 and .9
        row = {"total": total, "least": 5, "answer": ""}
        said = [own("taught_pair")(row, slips) for _ in range(NUM_DRAWS)]
        shares.append(sum(bool(task.is_correct(text, row)) for text in said) / NUM_DRAWS)
    assert shares == pytest.approx([0.5, 0.1], abs=0.032)  # four standard errors


def test_the_teacher_of_thoughts_contradicts_itself_as_often_as_it_says() -> None:
    slips = random.Random(1)
    row = {"prompt": [{"role": "user", "content": "Compute: 3 + 9 - 5 ="}]}
    said = [own("taught_thought")(row, slips) for _ in range(NUM_DRAWS)]
    kinds = Counter(
        (tagged_answer(text) == "7", bool(consistent))
        for text, consistent in zip(said, consistency(said), strict=True)
    )
    found = [kinds[kind] / NUM_DRAWS for kind in [(True, True), (True, False), (False, False)]]
    assert found == pytest.approx([0.24, 0.15, 0.16], abs=0.03)
    assert last_number("<think> 12 7") == "7"
