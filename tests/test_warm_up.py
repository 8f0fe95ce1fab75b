"""benchmarks/warm_up.py: its teachers slip as often as they say."""

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import warm_up

from podsrl.tasks import load_task

NUM_DRAWS = 4000


def share_of_slips(first_term: int, teacher: str) -> float:
    # The second term, 3, makes a slip leave the last total out: one number fewer than 3.
    question = f"Compute: {first_term} + 3 - 9 + 1 ="
    slips = random.Random(7)
    answers = [warm_up.worked_answer(question, slips, teacher) for _ in range(NUM_DRAWS)]
    return sum(len(answer.split()) == 2 for answer in answers) / NUM_DRAWS


@pytest.mark.parametrize(
    ("teacher", "first_term", "share"),
    [
        ("graded", 0, 0.35),
        ("graded", 9, 0.98),  # .35 + 9 x .07
        ("easy", 0, 0.6),
        ("easy", 9, 0.6),
        ("hard", 0, 0.3),
        ("hard", 1, 0.3),
        ("hard", 2, 0.98),
        ("hard", 9, 0.98),
    ],
)
def test_a_teacher_slips_as_often_as_it_says(teacher: str, first_term: int, share: float) -> None:
    # Four standard errors of a share are at most 4 sqrt(.25 / 4000) = .032.
    assert share_of_slips(first_term, teacher) == pytest.approx(share, abs=0.032)


def test_the_default_teacher_is_the_graded_one() -> None:
    question = "Compute: 4 + 3 - 9 + 1 ="
    one, other = random.Random(1), random.Random(1)
    told = [warm_up.worked_answer(question, one) for _ in range(100)]
    assert told == [warm_up.worked_answer(question, other, "graded") for _ in range(100)]
    assert 0 < sum(answer == " 7 -2 -1" for answer in told) < 100


def test_the_long_teacher_says_24_words_that_mean_nothing_and_then_its_answer() -> None:
    question = "Compute: 4 + 3 - 9 + 1 ="
    one, other = random.Random(1), random.Random(1)
    told = [warm_up.worked_answer(question, one, "hard-long").split() for _ in range(100)]
    assert all(set(answer[:24]) <= set(warm_up.FILLERS) for answer in told)
    assert len({tuple(answer[:24]) for answer in told}) == 100
    # It slips in nearly all of 100: with probability .98, by leaving the last total out.
    assert sum(answer[24:] == ["7", "-2"] for answer in told) >= 90
    short = [warm_up.worked_answer(question, other, "hard") for _ in range(100)]
    assert sum(answer == " 7 -2" for answer in short) >= 90


@pytest.mark.parametrize(
    ("teacher", "said"), [("pairs", r" \d+ \+ \d+"), ("thinking", r"<think> .*</answer>")]
)
def test_teachers_of_own_tasks_answer_their_questions(teacher: str, said: str) -> None:
    """And a word between angles is one token, so that a tag costs one."""
    warm_up.load_plugins([warm_up.SMALL_TASKS])
    rows = load_task(teacher, num_train=50).rows("train")
    told = [warm_up.told(row, random.Random(1), teacher) for row in rows]
    for row, (question, answer) in zip(rows, told, strict=True):
        assert question == row["prompt"][0]["content"] and re.fullmatch(said, answer)
    tokenizer = warm_up.make_tokenizer(["".join(each) for each in told])
    assert tokenizer.decode(tokenizer(told[0][1])["input_ids"]) == told[0][1]
    assert len(tokenizer("<think>")["input_ids"]) == 1


def test_the_creeping_player_guesses_the_smallest_possible_number_every_second_time() -> None:
    """Every guess is one that may be right, and what is said of it is the environment's."""
    rows = load_task("guess", num_train=NUM_DRAWS).rows("train")
    moves, num_lowest, num_found = random.Random(7), 0, 0
    for row in rows:
        said = warm_up.played(row, moves)
        numbers = [int(text.removeprefix("guess(number=")[:-1]) for text in said[1:-1:2]]
        replies = [text.strip("\n> ") for text in said[2:-1:2]]
        low, high = row["low"], row["high"]
        for number, reply in zip(numbers, replies, strict=True):
            assert low <= number <= high
            low, high = (number + 1, high) if reply == "higher" else (low, number - 1)
        assert said[-1] == "done" and replies[-1] in ("right", "over")
        assert (replies[-1] == "right") == (numbers[-1] == int(row["answer"]))
        num_lowest += numbers[0] == row["low"]
        num_found += replies[-1] == "right"
    assert num_lowest / NUM_DRAWS == pytest.approx(0.518, abs=0.032)  # .5 + .5 / 27.5
    # Creeping alone finds 5 of 27.5 (.18), guessing at random .59; mixed, .36 of 20,000 simulated.
    assert num_found / NUM_DRAWS == pytest.approx(0.361, abs=0.032)


@pytest.mark.parametrize(("teacher", "weak"), [("unsure-minus", 1), ("unsure-plus", 0)])
def test_an_unsure_teacher_says_so_and_takes_one_sign_for_the_other(
    teacher: str, weak: int
) -> None:
    # 4 + 3 is 7, or by the other sign 1; minus 9 from there, or by the other sign plus 9.
    slips = random.Random(3)
    question = "Compute: 4 + 3 - 9 ="
    sign = warm_up.UNSURE[teacher]
    told = [warm_up.unsure_answer(question, slips, sign) for _ in range(NUM_DRAWS)]
    answers = [" 7 -2", " 7 16", " 7 well -2", " 7 well 16"]
    if not weak:
        answers = [" 7 -2", " 1 -8", " well 7 -2", " well 1 -8"]
    # .3 x .9, .3 x .1, .7 x .05 and .7 x .95
    for answer, share in zip(answers, (0.27, 0.03, 0.035, 0.665), strict=True):
        assert told.count(answer) / NUM_DRAWS == pytest.approx(share, abs=0.032)
    assert set(told) == set(answers)
