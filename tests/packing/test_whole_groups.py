"""Micro-batches that tear no group, whatever sizes the groups have."""

import random

import pytest

from podsrl.packing.microbatch import balance, whole_groups


def test_groups_of_different_sizes_by_hand() -> None:
    # tokens 1 + 3 * 5 = 16, 1 + 5 = 6, 1 + 2 * 5 = 11: the largest alone, 6 + 11 = 17 beside it
    groups = [0, 0, 0, 1, 2, 2]
    assert whole_groups([1] * 6, [5] * 6, groups, 2) == [[0, 1, 2], [3, 4, 5]]


def test_fewer_groups_than_micro_batches_leave_some_empty() -> None:
    assert whole_groups([1] * 4, [5] * 4, [7, 7, 3, 3], 3) == [[0, 1], [2, 3], []]


def test_groups_of_one_size_are_balanced_in_rows_too() -> None:
    lengths, groups = [9, 9, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3]
    found = whole_groups([1] * 8, lengths, groups, 2)
    assert found == balance([1] * 8, lengths, groups, 2)
    assert [len(rows) for rows in found] == [4, 4]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_once_and_every_group_in_one_place(seed: int) -> None:
    rng = random.Random(seed)
    groups = [group for group in range(6) for _ in range(rng.randint(1, 5))]
    rng.shuffle(groups)
    lengths = [rng.randint(1, 30) for _ in groups]
    found = whole_groups([4] * len(groups), lengths, groups, 3)
    assert sorted(row for rows in found for row in rows) == list(range(len(groups)))
    for group in set(groups):
        holders = {i for i, rows in enumerate(found) for row in rows if groups[row] == group}
        assert len(holders) == 1
