"""Votes as literal numbers: majorities, ties, shares, consistency."""

import math
from collections import Counter

import pytest
import torch

from podsrl.core.votes import (
    agreement,
    consistency,
    largest_share,
    majority,
    majority_rewards,
    numbered,
)


def test_answers_are_numbered_as_they_come() -> None:
    answers = [["18", "7", None, "18"], ["7", "7", "18", None]]
    assert numbered(answers).tolist() == [[0, 1, -1, 0], [0, 0, 1, -1]]
    with pytest.raises(ValueError, match="different numbers of answers"):
        numbered([["1"], ["1", "2"]])


def test_agreement_and_share_by_hand() -> None:
    votes = torch.tensor([[0, 1, -1, 0], [-1, -1, -1, -1], [0, 0, 0, 0]])
    assert agreement(votes).tolist() == [[2, 1, 0, 2], [0, 0, 0, 0], [4, 4, 4, 4]]
    # of all four, those without an answer included; unanimous silence is no agreement
    assert largest_share(votes).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(
    ("votes", "weights", "place"),
    [
        ([0, 1, 1, 2], None, 1),
        ([0, 1, 1, 2], [3, 1, 1, 1], 0),  # 3 against 2
        ([0, 1, 1, 2], [2, 1, 1, 1], 0),  # 2 against 2: the first
        ([0, 1, 1, 0], None, 0),
        ([-1, 2, 1, 1], None, 2),
        ([-1, -1, 1, -1], None, 2),
        ([-1, -1, -1, -1], None, -1),
        ([0, 1, -1, -1], [0.1, 0.2, 9, 9], 1),  # weight without an answer elects nobody
        ([0, 1, 1, 1], [0.3, 0.1, 0.1, 0.1], 0),  # 0.1 + 0.1 + 0.1 is 0.3 but for rounding
        ([1, 0, 0, 0], [0.1 + 0.2, 0.1, 0.1, 0.1], 0),
        ([0, 1, 1, 1], [0.0, 0.0, 0.0, 0.0], 0),
    ],
)
def test_majority_by_hand(votes: list[int], weights: list[float] | None, place: int) -> None:
    weights_PN = None if weights is None else torch.tensor([weights], dtype=torch.float64)
    assert majority(torch.tensor([votes]), weights_PN).tolist() == [place]


def test_majority_is_what_counting_says() -> None:
    rng = torch.Generator().manual_seed(0)
    votes = torch.randint(-1, 4, (300, 7), generator=rng)
    for row, place in zip(votes.tolist(), majority(votes).tolist(), strict=True):
        cast = [vote for vote in row if vote >= 0]
        expected = row.index(Counter(cast).most_common(1)[0][0]) if cast else -1
        assert place == expected


def test_the_order_of_rollouts_changes_no_count() -> None:
    rng = torch.Generator().manual_seed(1)
    votes = torch.randint(-1, 4, (100, 8), generator=rng)
    order = torch.randperm(8, generator=rng)
    for of in (largest_share, consistency):
        torch.testing.assert_close(of(votes[:, order]), of(votes))
    assert agreement(votes[:, order]).equal(agreement(votes)[:, order])


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3\) and weights \(1, 2\)"):
        majority(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 2))


def test_consistency_by_hand() -> None:
    votes = torch.tensor(
        [
            [0, 0, 0, 0],  # unanimous: 1
            [0, 1, 2, 3],  # all different: 1/4
            [0, 0, 1, 1],  # H = log D, as common as each other: 1/4
            [0, 0, 0, 1],
            [0, 0, 1, 2],
            [0, -1, -1, -1],  # no answer agrees with no answer: all different
            [-1, -1, -1, -1],
        ]
    )
    # (3/4, 1/4): 0.8113 bits of 1, 1/4 + 3/4 x 0.18872; (1/2, 1/4, 1/4): 1.5 bits of log2 3
    three = 0.25 + 0.75 * (1 - 1.5 / math.log2(3))
    expected = [1.0, 0.25, 0.25, 0.391541, three, 0.25, 0.25]
    assert consistency(votes).tolist() == pytest.approx(expected, abs=1e-6)
    assert consistency(torch.tensor([[3]])).tolist() == [1.0]  # one rollout agrees with itself


NONE = None  # of every rollout of the prompt


@pytest.mark.parametrize(
    ("votes", "gate", "rewards"),
    [
        ([0, 0, 1, -1], 0.5, [1, 1, 0, 0]),  # 2 of 4: those without an answer count
        ([0, 0, 1, -1], 0.75, NONE),
        ([0, 0, 0, 1], 0.75, [1, 1, 1, 0]),  # at the gate is enough
        ([0, 0, 1, 1], 0.5, [1, 1, 1, 1]),  # a tie rewards both
        ([0, 0, 1, 1], 0.0, [1, 1, 1, 1]),
        ([0, 1, 1, 2], 0.0, [0, 1, 1, 0]),
        ([0, 1, 2, -1], 0.0, [1, 1, 1, 0]),  # all different: as common as each other
        ([0, 0, 0, 0], 1.0, [1, 1, 1, 1]),
        ([0, 0, 0, -1], 1.0, NONE),
        ([0, 0, 0, 0], 1.5, NONE),  # above 1 nobody ever has a reward
        ([-1, -1, -1, -1], 0.0, NONE),
        ([-1, -1, -1, 0], 0.0, [0, 0, 0, 1]),
    ],
)
def test_majority_rewards_by_hand(
    votes: list[int], gate: float, rewards: list[float] | None
) -> None:
    found = majority_rewards(torch.tensor([votes, [0, 0, 0, 0]]), gate=gate)
    assert found.dtype == torch.float64
    if rewards is NONE:
        assert found[0].isnan().all()
    else:
        assert found[0].tolist() == rewards
    assert bool(found[1].isnan().all()) == (gate > 1)  # each prompt by itself


def test_a_gate_is_reached_at_every_share_it_names() -> None:
    for num in (3, 7, 10, 30, 64):
        for agreeing in range(1, num + 1):
            votes = torch.tensor([[0] * agreeing + list(range(1, num - agreeing + 1))])
            assert not majority_rewards(votes, gate=agreeing / num).isnan().any()
            assert majority_rewards(votes, gate=agreeing / num + 1e-6).isnan().all()


def test_the_order_of_rollouts_moves_the_rewards_along() -> None:
    rng = torch.Generator().manual_seed(2)
    votes = torch.randint(-1, 3, (200, 6), generator=rng)
    order = torch.randperm(6, generator=rng)
    for gate in (0.0, 0.5):
        one, other = (majority_rewards(each, gate=gate) for each in (votes[:, order], votes))
        torch.testing.assert_close(one, other[:, order], rtol=0, atol=0, equal_nan=True)
