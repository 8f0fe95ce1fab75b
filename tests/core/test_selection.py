"""Rows, groups and positions of kept rollouts, also where groups keep different numbers."""

import pytest
import torch

from podsrl import select
from podsrl.core.selection import Selection, choose

REWARDS = torch.tensor([[0.0, 1, 0, 1], [5, 5, 5, 5], [0, 0, 0, 1]])


def selection(kept_PN: torch.Tensor) -> Selection:
    return Selection(REWARDS.unsqueeze(2), REWARDS, kept_PN)


def test_rows_and_groups_go_prompt_by_prompt():
    ragged = selection(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]).bool())
    assert ragged.kept_rows().tolist() == [0, 1, 3, 10, 11]
    assert ragged.group_B().tolist() == [0, 0, 0, 2, 2]
    with pytest.raises(ValueError, match=r"keep \[3, 0, 2\] rollouts"):
        _ = ragged.kept_PM


def test_equal_numbers_have_positions():
    kept_PM = select(REWARDS, 2, seed=4)
    chosen = selection(choose(REWARDS, 2, rule="max_variance", seed=4))
    assert torch.equal(chosen.kept_PM, kept_PM)


def test_pooled_takes_from_the_constant_group():
    # v = 1/2, 2/3, 1 at 2, 3, 4 of the first group; 1/2, 2/3, 3/4 of the last. Total 6: 4 + 2.
    kept_PN = choose(REWARDS, 2, rule="max_variance", budget="pooled")
    assert kept_PN.sum(1).tolist() == [4, 0, 2]
    assert kept_PN[2, 3]
    assert choose(REWARDS, 2, rule="random", budget="pooled").sum(1).tolist() == [4, 0, 2]
    assert choose(REWARDS, 2, rule="random", budget="pooled", cap=3).sum() == 6


def test_reward_metrics_are_of_the_prompts_drawn_first():
    first = torch.zeros(3, 4, 1)
    refilled = Selection(REWARDS.unsqueeze(2), REWARDS, REWARDS > 0, first)
    metrics = refilled.reward_metrics(torch.ones(1), ["right"])
    assert (metrics["reward"], metrics["rewards/right/mean"]) == (0.0, 0.0)
    assert refilled.kept_metrics()["pods/kept_reward_mean"] == 23 / 7  # 1 + 1 + 4 x 5 + 1
