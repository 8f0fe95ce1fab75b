"""Find the number: what its environment says, its questions, and tasks with turns in general."""

import math
import random
from typing import Any

import pytest

from podsrl.tasks import load_task
from podsrl.tasks.guess import NumberToGuess
from podsrl.tasks.rewarded import with_grader, with_rewards
from podsrl.tasks.turns import (
    AnswersDiffer,
    call_again,
    make_turns_task,
    replayed,
    tools_of,
)


def called(*numbers: Any) -> list[dict[str, Any]]:
    """Messages of a rollout that guesses these numbers."""
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "guess", "arguments": {"number": each}}}
            ],
        }
        for each in numbers
    ]


def test_the_environment_says_higher_lower_and_right() -> None:
    game = NumberToGuess()
    game.reset(answer="37", low=17, high=42)
    assert [game.guess(each) for each in (30, 40, "36")] == ["higher", "lower", "higher"]
    assert game.score == 0.0
    assert (game.guess(37), game.score) == ("right", 1.0)
    assert (game.guess(37), game.guess(1), game.score) == ("over", "over", 1.0)  # it stays found
    game.reset(answer="2")
    assert (game.score, game.num_guesses) == (0.0, 0)


def test_five_guesses_are_all_and_nonsense_is_one_of_them() -> None:
    game = NumberToGuess()
    game.reset(answer="9")
    said = [game.guess(each) for each in (1, "many", None, 8, 10)]  # type: ignore[arg-type]
    assert said == ["higher", "no number", "no number", "higher", "over"]
    assert (game.guess(9), game.score) == ("over", 0.0)


def test_who_asks_for_the_middle_finds_every_number() -> None:
    """31 numbers in five questions; 24 are too many for four, which find 15."""
    for row in load_task("guess", num_train=300).rows("train"):
        low, high = row["low"], row["high"]
        assert 24 <= high - low + 1 <= 31 and low <= int(row["answer"]) <= high <= 99
        game = NumberToGuess()
        game.reset(**row)
        while (said := game.guess(middle := (low + high) // 2)) not in ("right", "over"):
            low, high = (middle + 1, high) if said == "higher" else (low, middle - 1)
        assert game.score == 1.0 and game.num_guesses <= 5


def test_train_and_test_ranges_never_meet_and_test_is_the_same_for_every_seed() -> None:
    one, other = (load_task("guess", seed=seed, num_train=2000) for seed in (0, 5))
    assert one.rows("test") == other.rows("test") and one.rows("train") != other.rows("train")
    ranges = {
        split: {(r["low"], r["high"]) for r in one.rows(split)} for split in ("train", "test")
    }
    assert len(ranges["test"]) == 256 and not ranges["train"] & ranges["test"]


def test_fewer_guesses_make_shorter_ranges() -> None:
    task = load_task("guess", max_guesses=3, num_train=50, num_test=20)
    assert {row["high"] - row["low"] + 1 for row in task.rows("train")} == {6, 7}  # 3/4 x 8, 8 - 1
    assert task.max_calls == 3 and task.environment is not None
    assert task.environment().max_guesses == 3


def test_calls_made_again_lead_to_the_same_place() -> None:
    """At every turn of games drawn at random, calls that cannot be made among them."""
    task = load_task("guess", num_train=40)
    assert task.environment is not None
    draw = random.Random(0)
    odd = [{"name": "guess", "arguments": {"word": 3}}, {"name": "look", "arguments": {}}]
    wrong = ["{'error': \"NumberToGuess.guess() got an unexpected keyword argument 'word'\"}"]
    wrong += ["{'error': 'Tool look not found.'}"]
    for row in task.rows("train"):
        game = task.environment()
        game.reset(**row)
        messages: list[dict[str, Any]] = []
        states = [dict(vars(game))]
        for turn, message in enumerate(
            called(*(draw.choice([draw.randint(1, 99), "x"]) for _ in range(6)))
        ):
            number = message["tool_calls"][0]["function"]["arguments"]["number"]
            said = [game.guess(number)] if turn < 5 else []  # the sixth is not made
            if turn == 1:
                message["tool_calls"] += [{"type": "function", "function": each} for each in odd]
                said += wrong
            messages += [message, *({"role": "tool", "content": each} for each in said)]
            states += [dict(vars(game))] * (1 + len(said))
        for place in range(len(messages) + 1):
            assert vars(replayed(task, row, messages[:place])) == states[place]
    assert tools_of(NumberToGuess())[0].__name__ == "guess" and len(tools_of(NumberToGuess())) == 1


def test_an_answer_that_is_another_is_an_error() -> None:
    """3 is lower than 5: the answer that stands there, the last of two of one turn, says not."""
    task = load_task("guess", num_train=40)
    row = {**task.rows("train")[0], "answer": "5"}
    (message,) = called(7)
    message["tool_calls"] += called(3)[0]["tool_calls"]
    said = [{"role": "tool", "content": each} for each in ("lower", "lower")]
    assert replayed(task, row, [message, *said[:1]]).num_guesses == 2
    with pytest.raises(AnswersDiffer, match=r"it answers \['lower', 'higher'\], and not \['lower'"):
        replayed(task, row, [message, *said])


def test_tools_that_answer_last_are_called_last() -> None:
    """As TRL does with asynchronous ones; what is no function is answered with an error."""
    order = []
    tools = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    call = {"type": "function", "function": {"name": "a", "arguments": {}}}
    other = {"type": "function", "function": {"name": "b", "arguments": {}}}
    message = {"role": "assistant", "tool_calls": [call, other, {"type": "code", "name": "b"}]}
    error = "{'error': 'Unsupported tool call type: code'}"
    said = [{"role": "tool", "content": each} for each in ("None", error, "None")]
    call_again(tools, [message, *said], max_calls=1, last=["a"])
    assert order == ["b", "a"]


class WithoutScore:
    def reset(self, **_: Any) -> None: ...

    def look(self) -> str:
        return ""


class Silent:
    score = 0.0

    def reset(self, **_: Any) -> None: ...


class Slow(Silent):
    async def look(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (WithoutScore, "lacks score: add it"),
        (Silent, "lacks a method that the model may call"),
        (Slow, "look of the environment of mine is async"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused(environment: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_turns_task(
            "mine", lambda _: [], environment=environment, max_calls=1, max_new_tokens=9
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "x"}, "leave data out"),
        ({"max_guesses": 1}, "at least 2"),
        ({"highest": 30}, "ranges of up to 31 numbers"),
        ({"answer_format": "number"}, "no argument 'answer_format'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task("guess", **options)


def test_what_reads_a_final_answer_is_refused() -> None:
    task = load_task("guess", num_train=40)
    row = task.rows("train")[0]
    with pytest.raises(ValueError, match="grader math reads a final answer, but guess has several"):
        with_grader(task, "math", row)
    with pytest.raises(ValueError, match="the environment scores a rollout"):
        task.is_correct("37", row)
    assert task.extract_answer("37") is None


def test_rewards_of_ones_own_get_the_environments(tmp_path: Any) -> None:
    """Three guesses cost three tenths; at the beginning of a game nothing is guessed."""
    path = tmp_path / "quick.py"
    path.write_text(
        "def quick(environments, **_):\n    return [-e.num_guesses / 10 for e in environments]\n"
    )
    rows = (task := load_task("guess", num_train=40)).rows("train")
    rewarded = with_rewards(task, ["correctness", f"{path}:quick"], rows)
    assert rewarded.measured == ("quick",)
    game = replayed(rewarded, {**rows[0], "answer": "5"}, called(1, 2, 3))
    reward = rewarded.reward_funcs["quick"]
    assert math.isclose(reward(completions=[[]], environments=[game])[0], -0.3)
