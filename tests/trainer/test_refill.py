"""Refilling constant groups, with stand-ins for sampling: what is replaced, by what, how often."""

from typing import Any

import pytest
import torch

from podsrl.trl import refill as module
from podsrl.trl.refill import Rollouts, other_rows, refill

N = 2


def rollouts(names: str, easy: str = "") -> Rollouts:
    """One group of 2 rollouts per letter; the rewards of letters in `easy` are equal."""
    inputs = [{"prompt": name, "answer": name.upper()} for name in names for _ in range(N)]
    texts = [f"{name}{i}" for name in names for i in range(N)]
    rewards = [[1.0 if name in easy else float(i)] for name in names for i in range(N)]
    generated = (list(texts), [text + "!" for text in texts], None, list(texts), None, {}, None, [])
    prompts = [row["prompt"] for row in inputs]
    logs = {"note": list(texts)}
    return Rollouts(inputs, generated, logs, torch.tensor(rewards), prompts=prompts)


def run(start: str, pool: str, easy: str, num_rounds: int, **options: Any):
    sampled: list[str] = []

    def sample(rows: list[dict]) -> Rollouts:
        names = "".join(row["prompt"] for row in rows[::N])
        sampled.append(names)
        return rollouts(names, easy)

    result = refill(
        rollouts(start, easy),
        num_rollouts=N,
        num_rounds=num_rounds,
        fresh_rows=iter([{"prompt": name, "answer": name.upper()} for name in pool]),
        sample=sample,
        combined=lambda rewards_PNF: rewards_PNF.sum(-1),
        **options,
    )
    return result, sampled


def test_constant_groups_give_way_in_order_until_none_is_left():
    # Round 1: a and c are constant, d and e are drawn, d is constant too: e takes a's place.
    # Round 2: c is left, f is drawn and takes it.
    result, sampled = run("abc", "defg", easy="acd", num_rounds=5)
    assert sampled == ["de", "f"]
    assert (result.num_rounds, result.num_groups) == (2, 2)
    got = result.rollouts
    assert [row["prompt"] for row in got.inputs] == list("eebbff")
    assert [row["answer"] for row in got.inputs] == list("EEBBFF")
    texts = ["e0", "e1", "b0", "b1", "f0", "f1"]
    assert got.generated[0] == texts and got.generated[3] == texts
    assert got.generated[1] == [text + "!" for text in texts]
    assert got.generated[2] is None and got.generated[4] is None
    assert got.extra_logs == {"note": texts}
    assert got.rewards_per_func.flatten().tolist() == [0, 1] * 3


def test_rounds_are_bounded_and_what_is_left_stays():
    result, sampled = run("ab", "cdef", easy="abcde", num_rounds=2)
    assert sampled == ["cd", "ef"]
    assert (result.num_rounds, result.num_groups) == (2, 1)
    assert [row["prompt"] for row in result.rollouts.inputs] == list("ffbb")


def test_nothing_is_sampled_without_constant_groups_or_without_prompts():
    result, sampled = run("ab", "cd", easy="", num_rounds=3)
    assert (sampled, result.num_rounds, result.num_groups) == ([], 0, 0)
    result, sampled = run("ab", "", easy="ab", num_rounds=3)
    assert (sampled, result.num_rounds) == ([], 0)


def test_groups_without_any_reward_are_refilled():
    start = rollouts("ab")
    start.rewards_per_func[:2] = torch.nan
    result = refill(
        start,
        num_rollouts=N,
        num_rounds=1,
        fresh_rows=iter([{"prompt": "c", "answer": "C"}]),
        sample=lambda rows: rollouts("c"),
        combined=lambda rewards_PNF: rewards_PNF.sum(-1),
    )
    assert [row["prompt"] for row in result.rollouts.inputs] == list("ccbb")


def test_a_column_that_one_side_did_not_log_is_none():
    fresh = rollouts("c")
    fresh.extra_logs.clear()
    fresh.extra_logs["other"] = ["x", "y"]
    result = refill(
        rollouts("ab", easy="a"),
        num_rollouts=N,
        num_rounds=1,
        fresh_rows=iter([{"prompt": "c", "answer": "C"}]),
        sample=lambda rows: fresh,
        combined=lambda rewards_PNF: rewards_PNF.sum(-1),
    )
    assert result.rollouts.extra_logs == {
        "note": [None, None, "b0", "b1"],
        "other": ["x", "y", None, None],
    }


def test_processes_sample_equal_shares_and_merge_to_what_one_process_has(monkeypatch):
    """Three processes with 2 rows each; 2 rollouts a prompt and 3 processes draw 3 prompts."""
    whole = rollouts("abc", easy="b")
    fresh_whole = rollouts("def", easy="d")

    def part(of: Rollouts, process: int) -> Rollouts:
        rows = slice(process * 2, process * 2 + 2)
        cut = [
            value[rows] if isinstance(value, list) and value else value for value in of.generated
        ]
        logs = {name: values[rows] for name, values in of.extra_logs.items()}
        rewards, prompts = of.rewards_per_func, of.prompts[rows]
        return Rollouts(of.inputs[rows], tuple(cut), logs, rewards, prompts=prompts)

    results = []
    for process in range(3):
        # gather_object is called for inputs, the lists of `generated`, prompts and one column.
        gathered = [
            fresh_whole.inputs,
            *[value for value in fresh_whole.generated if isinstance(value, list) and value],
            fresh_whole.prompts,
            fresh_whole.extra_logs["note"],
        ]
        monkeypatch.setattr(module, "gather_object", lambda _, calls=gathered: calls.pop(0))
        seen: list[list[str]] = []

        def sample(rows: list[dict], process: int = process, seen: list = seen) -> Rollouts:
            seen.append([row["prompt"] for row in rows])
            return part(fresh_whole, process)

        result = refill(
            part(whole, process),
            num_rollouts=N,
            num_rounds=1,
            fresh_rows=iter([{"prompt": name, "answer": name.upper()} for name in "defg"]),
            sample=sample,
            combined=lambda rewards_PNF: rewards_PNF.sum(-1),
            process=process,
            num_processes=3,
        )
        results.append(result.rollouts)
        assert seen == [[list("ddeeff")[process * 2], list("ddeeff")[process * 2 + 1]]]
        assert gathered == []
    assert [row["prompt"] for got in results for row in got.inputs] == list("aaeecc")
    assert [text for got in results for text in got.generated[3]] == [
        "a0", "a1", "e0", "e1", "c0", "c1"
    ]  # fmt: skip


def test_other_rows_are_new_each_once_and_follow_the_seed():
    dataset, known = [{"prompt": name} for name in "abcabd"], [{"prompt": "a"}]
    orders = {
        tuple(row["prompt"] for row in other_rows(dataset, known, seed=seed)) for seed in range(40)
    }
    assert {frozenset(order) for order in orders} == {frozenset("bcd")}
    assert all(len(order) == 3 for order in orders)
    assert len(orders) == 6  # every order of b, c, d
    again = [row["prompt"] for row in other_rows(dataset, known, seed=3)]
    assert again == [row["prompt"] for row in other_rows(dataset, known, seed=3)]


@pytest.mark.parametrize(
    ("num_places", "num_processes", "expected"), [(1, 1, 1), (1, 4, 2), (3, 4, 4), (1, 3, 3)]
)
def test_drawn_prompts_can_be_shared_by_the_processes(num_places, num_processes, expected):
    """With 2 rollouts a prompt, 4 processes share 2 prompts or 4; 3 processes share 3."""
    rows = module._draw(iter([{}] * 9), num_places, N, num_processes)
    assert len(rows) == expected
    assert module._draw(iter([{}] * 1), 3, N, 4) == []  # one prompt is no share of four processes
