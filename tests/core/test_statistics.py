"""Statistics of kept rollouts, as positions and as masks with different numbers per group."""

import pytest
import torch

from podsrl import select
from podsrl.core.select import as_mask
from podsrl.core.statistics import reward_metrics, selection_statistics, sum_squares

NAN = float("nan")
REWARDS = torch.tensor([[0.0, 0, 1, 1, 1], [2, 2, 2, 2, 2], [0, 1, 2, NAN, 7]])


def test_ragged_kept_rollouts_by_hand():
    # Group 0 keeps 0, 1, 1: mean 2/3, squares 4/9 + 1/9 + 1/9 = 2/3; best of 3 is the same.
    # Group 1 keeps nothing. Group 2 keeps 0, 2, 1, NaN: squares 1 + 1 + 0 = 2 around 1; of its
    # best four (the scored 0, 1, 2, 7: mean 5/2) the squares are 25/4 + 9/4 + 1/4 + 81/4 = 29.
    kept = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
    got = {name: float(value) for name, value in selection_statistics(REWARDS, kept).items()}
    assert got == {
        "kept_reward_mean": pytest.approx(5 / 6),  # 0 + 1 + 1 + 0 + 1 + 2 over six scored
        "kept_reward_variance": pytest.approx((2 / 9 + 2 / 3) / 2),
        "kept_sum_squares": pytest.approx(2 / 3 + 2),
        "frac_best_variance": pytest.approx((1 + (2 / 3) / (29 / 4)) / 2),
        "frac_kept_zero_variance": 0.0,
        "frac_kept_zero_advantage": pytest.approx(2 / 7),  # the 1 at the mean, and the NaN
        "frac_no_reward": pytest.approx(1 / 15),
        "min_kept_per_prompt": 0.0,
        "max_kept_per_prompt": 4.0,
    }


def test_a_constant_group_counts_only_where_it_keeps_something():
    kept = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    got = selection_statistics(REWARDS, kept)
    assert got["frac_kept_zero_variance"] == 1 / 2
    assert got["frac_kept_zero_advantage"] == 2 / 4


def test_a_mean_that_is_rounded_is_still_the_mean():
    # 0.1 three times: their mean in float64 is not 0.1, but no row has an advantage.
    rewards = torch.tensor([[0.1, 0.1, 0.1, 0.7]], dtype=torch.float64)
    got = selection_statistics(rewards, torch.tensor([[0, 1, 2]]))
    assert got["frac_kept_zero_advantage"] == 1.0


def test_positions_and_mask_say_the_same():
    rewards = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    kept_PM = select(rewards, 4)
    by_position, by_mask = (
        selection_statistics(rewards, kept) for kept in (kept_PM, as_mask(kept_PM, 9))
    )
    assert by_position == by_mask
    squares = 4 * rewards.double().gather(1, kept_PM).var(dim=1, correction=0)
    assert float(by_mask["kept_sum_squares"]) == pytest.approx(float(squares.sum()))
    assert float(by_mask["frac_best_variance"]) == pytest.approx(1.0)


def test_sum_squares_of_nothing_is_zero():
    assert sum_squares(torch.tensor([[NAN, NAN], [3, NAN], [1, 3]])).tolist() == [0, 0, 2]


def test_masks_are_checked():
    with pytest.raises(ValueError, match="3 wide, but groups have 4"):
        as_mask(torch.ones(2, 3, dtype=torch.bool), 4)
    with pytest.raises(ValueError, match=r"dtype torch\.float32"):
        as_mask(torch.ones(2, 3), 3)


def test_reward_metrics_are_over_all_sampled_rollouts():
    rewards = torch.tensor([[0.0, 1, 0, 1], [5, 5, 5, 5], [0, 0, 0, 1]])
    metrics = reward_metrics(2 * rewards, rewards.unsqueeze(2), ["right"])
    assert metrics["reward"] == 2 * 23 / 12  # 2 + 20 + 1 over twelve, weight 2
    assert metrics["rewards/right/mean"] == 23 / 12
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
