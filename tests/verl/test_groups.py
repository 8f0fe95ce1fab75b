"""podsrl.verl.groups: rows to groups and back, and the choice, without verl's machinery."""

import itertools

import pytest
import torch

from podsrl.core.rules import RULES
from podsrl.core.selection import Selector
from podsrl.verl.groups import choose, groups_of

NAN = float("nan")


def keys_of(outputs: dict[str, dict[int, int]]) -> list[str]:
    """Prompt -> session -> number of outputs, as keys of the queue."""
    return [
        f"{uid}_{session}_{index}"
        for uid, by_session in outputs.items()
        for session, number in by_session.items()
        for index in range(number)
    ]


def test_a_session_of_several_outputs_is_one_rollout_with_the_score_of_its_last() -> None:
    groups = groups_of(keys_of({"a": {0: 1, 1: 2}}), 2)
    assert groups.table([5.0, 1.0, 2.0]).tolist() == [[5.0, 2.0]]
    assert groups.table([5.0, 1.0, 2.0], whole=True).tolist() == [[5.0, 3.0]]
    assert groups.rows_of(torch.tensor([[False, True]])) == [1, 2]


def test_ten_outputs_are_in_the_order_of_their_numbers_not_of_their_digits() -> None:
    groups = groups_of(keys_of({"a": {0: 11}}), 1)
    assert groups.table([float(row) for row in range(11)]).tolist() == [[10.0]]


def test_the_order_in_which_rollouts_are_finished_does_not_matter() -> None:
    keys = keys_of({"b": {0: 1, 1: 1}, "a": {1: 2, 0: 1}})
    scores = dict(zip(keys, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True))
    for order in itertools.permutations(keys):
        groups = groups_of(order, 2)
        # Prompt a: session 0 scored 5, session 1's last output 4; prompt b: 1 and 2.
        assert groups.table([scores[key] for key in order]).tolist() == [[5.0, 4.0], [1.0, 2.0]]
        kept = groups.rows_of(torch.tensor([[False, True], [True, False]]))
        assert {order[row] for row in kept} == {"a_1_0", "a_1_1", "b_0_0"}


def test_missing_sessions_have_no_reward() -> None:
    groups = groups_of(keys_of({"a": {0: 1, 3: 1}}), 4)
    table = groups.table([1.0, 0.0])
    assert table.isnan().tolist() == [[False, True, True, False]]


def test_underscores_in_a_uid_are_its_own() -> None:
    assert groups_of(["x_y_0_0", "x_y_1_0"], 2).rows == [{0: [0], 1: [1]}]


def test_more_sessions_than_were_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a_2_0, a session outside 0\.\.1"):
        groups_of(["a_2_0"], 2)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_m_and_none_without_a_reward(rule: str) -> None:
    rewards = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rewards[0, :3] = torch.nan
    kept = choose(
        Selector(num_kept=4, rule=rule), rewards, seed=1, lengths_PN=torch.full((5, 8), 3.0)
    ).kept_PN
    assert kept.sum(1).tolist() == [4] * 5
    assert not kept[rewards.isnan()].any()


def test_missing_sessions_have_no_length_either() -> None:
    rewards = torch.tensor([[0.0, 1.0, NAN, 0.0]], dtype=torch.float64)
    lengths = torch.tensor([[9.0, 5.0, NAN, 7.0]], dtype=torch.float64)
    selector = Selector(num_kept=2, rule="shortest")
    kept = choose(selector, rewards, seed=0, lengths_PN=lengths).kept_PN
    assert kept.tolist() == [[False, True, False, True]]


def test_fewer_scored_than_m_are_all_kept_and_a_lone_one_is_not() -> None:
    rewards = torch.tensor(
        [[0.0, 1.0, 1.0, NAN, NAN, NAN], [NAN, 1.0, NAN, NAN, NAN, NAN], [NAN] * 6]
    )
    kept = choose(Selector(num_kept=4), rewards.double(), seed=0).kept_PN
    assert kept.sum(1).tolist() == [3, 0, 0]
    assert kept[0].tolist() == [True, True, True, False, False, False]


def test_a_pooled_budget_gives_a_constant_group_nothing() -> None:
    # As in podsrl.core.budget.pooled: worth 0, 1 at 4 kept, and 1/2 at 2; six rows for three.
    rewards = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1.0]], dtype=torch.float64)
    kept = choose(Selector(num_kept=2, budget="pooled"), rewards, seed=0).kept_PN
    assert kept.sum(1).tolist() == [0, 4, 2] and kept[2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_the_kept_are_those_of_the_selector_whatever_the_rewards(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(4, 16, dtype=torch.float64, generator=generator).round(decimals=1)
    selector = Selector(num_kept=4)
    expected = selector(rewards.unsqueeze(-1), seed=seed).kept_PN
    assert torch.equal(choose(selector, rewards, seed=seed).kept_PN, expected)
