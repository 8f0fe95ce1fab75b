"""Checks of how an answer was reached, on literal texts."""

import pytest

from podsrl.rewards.checks import consistency, variety
from podsrl.tasks.base import make_row, make_task
from podsrl.tasks.rewarded import with_rewards


def text(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (text("6 * 3 = 18", "18"), 1.0),
        (text("6 * 3 = 18", "17"), 0.0),
        (text("6 * 3 = 18, so \\boxed{18}, of the 3", "18"), 1.0),  # what is boxed goes first
        (text("first 7, then 1,200 in all.", "$1200"), 1.0),
        (text("18", "18 apples"), 1.0),
        (text("I feel that it is right", "18"), None),  # nothing is reached
        ("<think>18</think>", None),
        ("<answer>18</answer>", None),
        (text("so \\boxed{x+1}", "1+x"), None),  # equal by algebra alone
        (text("19", "18") + "<think>18</think>", 1.0),  # the last reasoning
    ],
)
def test_consistency(completion: str, expected: float | None) -> None:
    assert consistency([completion]) == [expected]
    assert consistency([[{"role": "assistant", "content": completion}]]) == [expected]


def test_variety_is_the_share_of_runs_that_are_new() -> None:
    # a b c, b c a, c a b, a b c: three of four runs are new
    texts = ["a b c a b c", "so so so so so", "one two", "", "a b c d e f"]
    assert variety(texts) == [pytest.approx(3 / 4), pytest.approx(1 / 3), 1.0, 1.0, 1.0]


def test_they_weigh_nothing_and_need_what_they_compare() -> None:
    rows = [make_row("6 * 3?", "18", tags=True)]

    def task(answer_format: str) -> object:
        return make_task("sums", lambda split: rows, answer_format=answer_format, max_new_tokens=4)

    found = with_rewards(task("tags"), ["correctness", "consistency", "variety"], rows)
    assert found.reward_weights == {"correctness": 1.0, "consistency": 0.0, "variety": 0.0}
    assert found.has_bounds() and found.measured == ()
    assert found.bounds() == (0.0, 1.0)
    assert with_rewards(task("number"), ["correctness", "variety"], rows).reward_funcs
    with pytest.raises(ValueError, match="are the last number of the text: set answer_format"):
        with_rewards(task("number"), ["correctness", "consistency"], rows)
