"""Micro-batches: balance, togetherness, and a loss that does not change."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from podsrl.packing.microbatch import balance, balance_processes, regroup, slowest


def tokens(batch: list[int], prompts: list[int], lengths: list[int], groups: list[int]) -> int:
    """Tokens of a packed micro-batch: each prompt once."""
    owners = {groups[row]: prompts[row] for row in batch}
    return sum(owners.values()) + sum(lengths[row] for row in batch)


def test_pairs_a_long_group_with_a_short_one() -> None:
    groups, lengths = [0, 0, 1, 1, 2, 2, 3, 3], [9, 9, 9, 9, 1, 1, 1, 1]
    batches = balance([5] * 8, lengths, groups, 2)
    # Groups weigh 23, 23, 7, 7; largest first: group 0 | group 1, then 2 and 3 to the lighter.
    assert batches == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [tokens(batch, [5] * 8, lengths, groups) for batch in batches] == [30, 30]


def test_cuts_a_group_larger_than_a_micro_batch() -> None:
    # One group of 4 in micro-batches of 2: 10 with 1, 8 with 3 by dealing back and forth.
    assert balance([7] * 4, [10, 8, 3, 1], [0] * 4, 2) == [[0, 3], [1, 2]]


def test_sizes_that_do_not_divide_tear_at_most_two_groups() -> None:
    groups = [row // 3 for row in range(12)]
    assert balance([1] * 12, [1] * 12, groups, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_groups_of_different_sizes_tear_at_most_two_per_micro_batch() -> None:
    """As a pooled budget keeps: 6 and 2 rows fill one micro-batch of 8, 4 and 4 the other."""
    groups = [0] * 6 + [1] * 2 + [2] * 4 + [3] * 4
    batches = balance([9] * 16, [1] * 16, groups, 2)
    assert batches == [list(range(8)), list(range(8, 16))]


@settings(max_examples=60, deadline=None)
@given(
    kept=st.sampled_from([1, 2, 3, 4, 8]),
    num_prompts=st.integers(1, 8),
    divisor=st.integers(1, 8),
    seed=st.integers(0, 999),
)
def test_rows_are_all_there_and_counts_are_equal(
    kept: int, num_prompts: int, divisor: int, seed: int
) -> None:
    num_rows = kept * num_prompts
    num_batches = max(d for d in range(1, divisor + 1) if num_rows % d == 0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_rows, generator=generator)
    groups = (order // kept).tolist()
    lengths = torch.randint(0, 50, (num_rows,), generator=generator).tolist()
    batches = balance([10] * num_rows, lengths, groups, num_batches)
    assert sorted(row for batch in batches for row in batch) == list(range(num_rows))
    assert {len(batch) for batch in batches} == {num_rows // num_batches}
    assert batches == balance([10] * num_rows, lengths, groups, num_batches)
    if (num_rows // num_batches) % kept == 0:
        assert all(set(Counter(groups[r] for r in b).values()) == {kept} for b in batches)
        # Handing out the largest first to the lightest leaves no gap wider than one group.
        loads = [tokens(batch, [10] * num_rows, lengths, groups) for batch in batches]
        heaviest = 10 + 49 * kept
        assert max(loads) - min(loads) <= heaviest * max(1, num_rows // num_batches // kept)


def test_balancing_beats_cutting_in_order() -> None:
    groups = [row // 4 for row in range(64)]
    per_group = [254, 720, 0, 453, 0, 2, 4, 25, 252, 29, 42, 64, 139, 94, 117, 122]
    lengths = [length for length in per_group for _ in range(4)]
    batches = balance([20] * 64, lengths, groups, 4)
    loads = [tokens(batch, [20] * 64, lengths, groups) for batch in batches]
    in_order = [
        tokens(list(range(i, i + 16)), [20] * 64, lengths, groups) for i in range(0, 64, 16)
    ]
    # The longest group with the three shortest, the best there is: four prompts of 20 tokens.
    assert max(loads) == 4 * 20 + 4 * (720 + 0 + 0 + 2) == 2968
    assert max(in_order) == 4 * 20 + 4 * (254 + 720 + 0 + 453)


def test_regroup_deals_rows_and_hands_on_the_rest() -> None:
    batches = [
        {
            "ids": torch.tensor([[1], [2]]),
            "text": ["a", "b"],
            "total": torch.tensor(9),
            "ref": None,
        },
        {
            "ids": torch.tensor([[3], [4]]),
            "text": ["c", "d"],
            "total": torch.tensor(9),
            "ref": None,
        },
    ]
    first, second = regroup(batches, [[0, 2], [1, 3]])
    assert first["ids"].tolist() == [[1], [3]] and second["text"] == ["b", "d"]
    assert first["total"] == second["total"] == 9 and first["ref"] is None


def test_means_per_micro_batch_add_up_as_before() -> None:
    losses, groups = torch.rand(24), [row // 4 for row in range(24)]
    batches = balance([3] * 24, list(range(24)), groups, 3)
    total = sum(losses[torch.tensor(batch)].mean() for batch in batches) / 3
    torch.testing.assert_close(total, losses.mean(), atol=1e-6, rtol=0)


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="6 rows cannot be divided into 4 micro-batches"):
        balance([1] * 6, [1] * 6, [0] * 6, 4)
    with pytest.raises(ValueError, match="2 completion lengths and 3 groups"):
        balance([1] * 3, [1] * 2, [0] * 3, 1)
    with pytest.raises(ValueError, match="exactly once"):
        regroup([{"ids": torch.zeros(2)}], [[0], [0]])


def test_a_group_is_halved_where_its_process_would_be_waited_for() -> None:
    """Two processes, one live group of two with 9 tokens each and a prompt of 5 or of 30.

    Whole 5 + 18 = 23, halved 5 + 9 = 14; with a prompt of 30 whole 48, halved 39; with rows of one
    token and a prompt of 30 whole 32, halved 31. Where both groups live, 23 each, none is torn.
    """
    dead = dict(groups=[0, 0, 1, 1], num_processes=2, num_batches=1)
    assert balance_processes([5, 5, 0, 0], [9, 9, 0, 0], **dead) == [[[0, 2]], [[1, 3]]]
    assert balance_processes([30, 30, 0, 0], [1, 1, 0, 0], **dead) == [[[0, 2]], [[1, 3]]]
    assert balance_processes([5] * 4, [9] * 4, **dead) == [[[0, 1]], [[2, 3]]]


def test_processes_wait_for_the_heaviest_of_the_micro_batches_that_run_at_one_time() -> None:
    """Rows of 1, 2, 3, 4 tokens, all of one prompt of 10: max(11, 13) + max(12, 14) = 27."""
    rows = [10] * 4, [1, 2, 3, 4], [0] * 4
    assert slowest(*rows, [[[0], [1]], [[2], [3]]]) == 13 + 14
    assert slowest(*rows, [[[0, 1], []], [[2, 3], []]]) == 17
    assert slowest([10, 20], [1, 1], [0, 1], [[[0, 1]]]) == 32


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rows_of_all_processes_are_all_there_and_as_many_in_each(data: st.DataObject) -> None:
    """Groups of one size, some of them dead; never worse than whole groups handed out."""
    num_processes, num_batches = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    size = data.draw(st.sampled_from([1, 2, 3, 4, 6]))
    num_groups = num_processes * num_batches * data.draw(st.integers(1, 3))
    lives = data.draw(st.lists(st.booleans(), min_size=num_groups, max_size=num_groups))
    lengths = st.lists(st.integers(1, 50), min_size=size, max_size=size)
    groups = [group for group in range(num_groups) for _ in range(size)]
    prompts = [7 * lives[group] for group in groups]
    completions = [n * lives[g] for g in range(num_groups) for n in data.draw(lengths)]
    plan = balance_processes(
        prompts, completions, groups, num_processes=num_processes, num_batches=num_batches
    )
    assert [len(process) for process in plan] == [num_batches] * num_processes
    parts = [part for process in plan for part in process]
    assert {len(part) for part in parts} == {len(groups) // len(parts)}
    assert sorted(row for part in parts for row in part) == list(range(len(groups)))
    whole = balance(prompts, completions, groups, len(parts))
    handed_out = [whole[process::num_processes] for process in range(num_processes)]
    assert slowest(prompts, completions, groups, plan) <= slowest(
        prompts, completions, groups, handed_out
    )
