"""Which rows are paired: literal cases, brute force, ragged groups, invariances."""

import itertools
import math

import pytest
import torch

from podsrl.core.objectives.pairing import PAIR_MODES, Pairs, pair_rows

NAN = math.nan


def found(rewards, groups, mode="extremes"):
    pairs = pair_rows(torch.tensor(rewards), torch.tensor(groups), mode=mode)
    return listed(pairs)


def listed(pairs: Pairs) -> set[tuple[int, int]]:
    rows = zip(pairs.chosen_K.tolist(), pairs.rejected_K.tolist(), strict=True)
    return {row for row, real in zip(rows, pairs.real_K.tolist(), strict=True) if real}


def test_two_rows_give_the_better_with_the_worse():
    assert found([0.0, 1.0], [5, 5]) == {(1, 0)}
    assert found([0.0, 1.0], [5, 5], "all") == {(1, 0)}


def test_extremes_pair_highest_with_lowest():
    # ascending: row 1 (0), row 3 (1), row 0 (2), row 4 (5), row 2 (9); row 0 stands in the middle
    assert found([2.0, 0.0, 9.0, 1.0, 5.0], [0] * 5) == {(2, 1), (4, 3)}


def test_all_pairs_every_two_of_different_reward():
    expected = {(0, 1), (0, 3), (2, 1), (0, 2), (2, 3)}
    assert found([3.0, 1.0, 2.0, 1.0], [0] * 4, "all") == expected


def test_equal_rewards_make_no_pair():
    # ascending: 0, 1, 1, 1: highest with lowest is a pair, the middle two are equal
    pairs = pair_rows(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.long))
    assert listed(pairs) == {(3, 2)}
    assert pairs.real_K.sum() == 1 and pairs.num_possible == 2
    for mode in PAIR_MODES:
        assert found([1.0, 1.0], [0, 0], mode) == set()


def test_rows_without_reward_and_lone_rows_are_in_no_pair():
    for mode in PAIR_MODES:
        # Group 3 has two scored rows beside a NaN; group 8 is one row; group 1 has no reward.
        rewards, groups = [NAN, 1.0, 0.0, 5.0, NAN, NAN], [3, 3, 3, 8, 1, 1]
        assert found(rewards, groups, mode) == {(1, 2)}
        pairs = pair_rows(torch.tensor(rewards), torch.tensor(groups), mode=mode)
        assert pairs.num_possible == 1


def test_no_rows():
    for mode in PAIR_MODES:
        pairs = pair_rows(torch.zeros(0), torch.zeros(0, dtype=torch.long), mode=mode)
        assert pairs.real_K.sum() == 0 and pairs.num_possible == 0


def brute_force(rewards, groups, mode):
    expected = set()
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group and not math.isnan(rewards[i])]
        if mode == "all":
            both = itertools.permutations(rows, 2)
            expected |= {(i, j) for i, j in both if rewards[i] > rewards[j]}
        else:
            rows.sort(key=lambda i: (rewards[i], i))
            for low, high in zip(rows, reversed(rows), strict=True):
                if rewards[high] > rewards[low]:
                    expected.add((high, low))
    return expected


@pytest.mark.parametrize("mode", PAIR_MODES)
def test_random_ragged_groups_against_brute_force(mode):
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        num_rows = int(torch.randint(1, 14, (1,), generator=generator))
        groups = torch.randint(-2, 3, (num_rows,), generator=generator).tolist()
        rewards = torch.randint(0, 4, (num_rows,), generator=generator).float()
        rewards[torch.rand(num_rows, generator=generator) < 0.15] = NAN
        assert found(rewards.tolist(), groups, mode) == brute_force(rewards.tolist(), groups, mode)


@pytest.mark.parametrize("mode", PAIR_MODES)
def test_order_of_rows_does_not_matter_for_distinct_rewards(mode):
    generator = torch.Generator().manual_seed(1)
    rewards_B = torch.randperm(11, generator=generator).float()
    group_B = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0, 1, 2, 2])
    order_B = torch.randperm(11, generator=generator)
    moved = pair_rows(rewards_B[order_B], group_B[order_B], mode=mode)
    back = {(int(order_B[i]), int(order_B[j])) for i, j in listed(moved)}
    assert back == listed(pair_rows(rewards_B, group_B, mode=mode)) != set()


def test_difference_sum_and_mean_count_real_pairs_alone():
    pairs = pair_rows(torch.tensor([0.0, 2.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    values_K = pairs.difference(torch.tensor([1.0, 5.0, 7.0, NAN]))
    assert pairs.sum_by_rejected(values_K).tolist() == [4.0, 0.0, 0.0, 0.0]  # 5 - 1 at row 0
    assert pairs.mean(values_K) == 4.0


def test_wrong_arguments_say_what_to_do():
    rows = torch.zeros(2), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'best'; choose one of extremes, all"):
        pair_rows(*rows, mode="best")
    with pytest.raises(ValueError, match=r"one of each per row"):
        pair_rows(torch.zeros(2, 2), rows[1])
    with pytest.raises(ValueError, match=r"one of each per row"):
        pair_rows(torch.zeros(3), rows[1])
