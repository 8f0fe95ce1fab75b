"""The reward `majority`: who is rewarded, what is logged of it, and what stands beside it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from podsrl.rewards.answers import last_number
from podsrl.rewards.functions import correctness_reward, score_by_answer
from podsrl.runs.prepare import load_questions
from podsrl.runs.settings import RunArguments
from podsrl.tasks.base import make_row, make_task
from podsrl.tasks.majority import majority_reward
from podsrl.tasks.questions import QuestionArguments, as_rewarded, named_task, with_answers
from podsrl.tasks.rewarded import with_rewards

ROWS = [make_row("1 + 1", "2", tags=False), make_row("2 + 2", "4", tags=False)]
SCORE = score_by_answer(last_number)


def call(function: Any, texts: list[str], prompts: str, **columns: Any) -> tuple[list[Any], dict]:
    """What the function gives and logs; a letter of `prompts` for each text's prompt."""
    logged: dict[str, float] = {}
    asked = [[{"role": "user", "content": letter}] for letter in prompts]
    said = [[{"role": "assistant", "content": text}] for text in texts]
    return function(prompts=asked, completions=said, log_metric=logged.__setitem__, **columns), (
        logged
    )


def test_prompts_vote_apart_and_gold_answers_are_only_logged() -> None:
    texts = ["it is 3", "3.", "so 4", "no idea", "7", "8", "7", "7", "5", "6", "1", "2"]
    gold = ["3"] * 4 + ["8"] * 4 + ["5"] * 4
    rewards, logged = call(majority_reward(last_number, SCORE), texts, "aaaabbbbcccc", answer=gold)
    # a: 2 of 4 are at the gate; b: 3 of 4; c: nobody agrees, so no reward
    assert rewards == [1, 1, 0, 0, 1, 0, 1, 1, None, None, None, None]
    assert logged == {
        "majority/mean_share": pytest.approx((2 / 4 + 3 / 4 + 1 / 4) / 3),
        "majority/frac_unanimous": 0.0,
        "majority/frac_right": pytest.approx(2 / 3),  # a; c by its first; b's 7 is wrong
        "majority/frac_misled": pytest.approx(1 / 3),  # b
    }
    other = ["9"] * 12
    again, logged = call(majority_reward(last_number, SCORE), texts, "aaaabbbbcccc", answer=other)
    assert again == rewards and logged["majority/frac_right"] == 0.0
    assert logged["majority/frac_misled"] == pytest.approx(2 / 3)  # a and b


def test_without_gold_answers_nothing_is_said_of_rightness() -> None:
    votes = majority_reward(last_number, SCORE, gate=0.0)
    for columns in ({}, {"answer": [None] * 4}):
        rewards, logged = call(votes, ["1", "1", "2", "2"], "aabb", **columns)
        assert rewards == [1, 1, 1, 1]
        assert logged == {"majority/mean_share": 1.0, "majority/frac_unanimous": 1.0}
    # Of prompts some of which have one, these alone are counted.
    _, logged = call(votes, ["1", "1", "2", "2"], "aabb", answer=[None, None, "2", "2"])
    assert logged["majority/frac_right"] == 1.0


def test_silence_elects_nobody() -> None:
    texts = ["...", "none", "?", "3"]
    for gate, expected in ((0.0, [0, 0, 0, 1]), (0.5, [None] * 4)):
        rewards, _ = call(majority_reward(last_number, SCORE, gate=gate), texts, "aaaa")
        assert rewards == expected
    rewards, logged = call(
        majority_reward(last_number, SCORE, gate=0.0), ["a", "b"], "aa", answer=["1", "1"]
    )
    assert rewards == [None, None]
    assert logged["majority/frac_unanimous"] == 0.0  # silence agrees with nobody
    assert logged["majority/frac_right"] == logged["majority/frac_misled"] == 0.0


def test_an_answer_that_cannot_be_graded_is_not_right() -> None:
    votes = majority_reward(last_number, lambda texts, rows: [None] * len(texts))
    rewards, logged = call(votes, ["3", "3"], "aa", answer=["3", "3"])
    assert rewards == [1, 1]
    assert (logged["majority/frac_right"], logged["majority/frac_misled"]) == (0.0, 1.0)


def test_it_is_correctness_where_the_majority_is_right() -> None:
    texts = ["5", "5", "6", "-", "2", "2", "2", "1"]
    gold = ["5"] * 4 + ["2"] * 4
    votes, _ = call(majority_reward(last_number, SCORE), texts, "aaaabbbb", answer=gold)
    right, _ = call(correctness_reward(SCORE), texts, "aaaabbbb", answer=gold)
    assert votes == right == [1, 1, 0, 0, 1, 1, 1, 0]


def task() -> Any:
    return make_task("sums", lambda split: ROWS, answer_format="number", max_new_tokens=4)


def test_it_is_named_like_other_rewards() -> None:
    arguments = QuestionArguments(reward_funcs=["majority", "correctness"], majority_gate=0.75)
    found = as_rewarded(task(), arguments, ROWS)
    assert found.reward_weights == {"majority": 1.0, "correctness": 1.0}
    assert found.has_bounds() and found.measured == ()  # a greedy answer has nobody to agree with
    votes, right = found.reward_funcs.values()
    assert votes.needs_whole_groups and not hasattr(right, "needs_whole_groups")
    # The second prompt stays below the gate: then no other function rewards it either.
    texts, gold = ["2", "2", "2", "1", "4", "4", "1", "1"], ["2"] * 4 + ["4"] * 4
    assert call(votes, texts, "aaaabbbb", answer=gold)[0] == [1, 1, 1, 0, *[None] * 4]
    assert call(right, texts, "aaaabbbb", answer=gold)[0] == [1, 1, 1, 0, *[None] * 4]


def test_accuracy_stays_the_graders(tmp_path: Any) -> None:
    path = tmp_path / "or_three.py"
    path.write_text("def or_three(gold, answer):\n    return float(answer in (gold, '3'))\n")
    arguments = QuestionArguments(reward_funcs=["majority"], grader=f"{path}:or_three")
    found = as_rewarded(task(), arguments, ROWS)
    assert found.is_correct("3", ROWS[0]) and not found.is_correct("4", ROWS[0])
    _, logged = call(found.reward_funcs["majority"], ["3", "3"], "aa", answer=["2", "2"])
    assert logged["majority/frac_right"] == 1.0


def test_records_need_no_answers(tmp_path: Any) -> None:
    path = tmp_path / "asked.jsonl"
    records = [{"question": f"1 + {i}?"} for i in range(60)]
    records += [{"question": f"{i}?", "answer": i} for i in range(5)]
    path.write_text("\n".join(map(json.dumps, records)))
    for data in ({"task": f"jsonl:{path}"}, {"dataset_name": str(path)}):
        arguments = QuestionArguments(reward_funcs=["majority"], **data)
        rows = named_task(arguments, seed=0).rows("train")
        assert {row["answer"] for row in rows} > {None}
        assert as_rewarded(named_task(arguments, seed=0), arguments, rows).reward_funcs
        for rewards in (None, ["majority", "correctness"]):
            strict = QuestionArguments(reward_funcs=rewards, **data)
            with pytest.raises(ValueError, match=r"line \d+: the record has .* none of answer"):
                named_task(strict, seed=0).rows("train")
        # What has no answer cannot be evaluated; a run is told before anything is loaded.
        held_out = named_task(arguments, seed=0).rows("test")
        with pytest.raises(ValueError, match=r"question \d+ of the test split has no answer"):
            with_answers(held_out, "test")
        run = RunArguments(reward_funcs=["majority"], **data)
        with pytest.raises(ValueError, match="or set evaluate_limit to 0"):
            load_questions(run, 0)
        assert load_questions(replace(run, evaluate_limit=0), 0)[1] == rows


def test_what_is_refused() -> None:
    for names, said in (
        (["correctness", "majority"], "correctness before majority: put majority first"),
        (["majorty"], "did you mean majority"),
        (["majority", "majority"], "twice"),
    ):
        with pytest.raises(ValueError, match=said):
            with_rewards(task(), names, ROWS)
    for gate in (-0.1, 1.1):
        with pytest.raises(ValueError, match="a share, choose 0 to 1"):
            QuestionArguments(reward_funcs=["majority"], majority_gate=gate)
