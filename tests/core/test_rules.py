"""The rules that rank by distance from the mean, by length, and by reward per token."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from podsrl.core.rules import max_abs_advantage, reward_per_token, shortest
from podsrl.core.select import select

NAN = float("nan")


def distances(values):
    """Exact distances from the mean of those that are not NaN."""
    scored = [Fraction(value) for value in values if not math.isnan(value)]
    return [abs(value - sum(scored) / len(scored)) for value in scored]


def test_the_far_side_of_the_mean_is_kept():
    # Mean 1/4: distances 1/4, 1/4, 1/4, 3/4. max_variance would keep one of each.
    assert select([0, 0, 0, 1], 1, "max_abs_advantage").tolist() == [3]
    # Two right of six: both are farther (2/3) than the wrong ones (1/3).
    assert select([0, 1, 0, 0, 1, 0], 2, "max_abs_advantage").tolist() == [1, 4]
    # Mean of (0, 1, 5) is 2: distances 2, 1, 3.
    assert select([NAN, 0, 1, 5], 2, "max_abs_advantage").tolist() == [1, 3]


dyadic = st.integers(-64, 64).map(lambda number: number / 8)
groups = st.integers(2, 30).flatmap(
    lambda n: st.tuples(st.lists(dyadic, min_size=n, max_size=n), st.integers(1, n))
)


@settings(max_examples=100, deadline=None)
@given(groups, st.sampled_from([0.0, 2.0**30, -3.0]), st.integers(-60, 60), st.randoms())
def test_max_abs_advantage_keeps_the_largest_distances(group, shift, exponent, shuffler):
    # Exact in float64 for these values, so any shift, scale and order keeps the same distances.
    values, keep = group
    moved = [(value + shift) * 2.0**exponent for value in values]
    shuffler.shuffle(moved)
    kept = select(moved, keep, "max_abs_advantage").tolist()
    all_distances = distances(moved)
    assert sorted(all_distances[place] for place in kept) == sorted(all_distances)[-keep:]


@pytest.mark.parametrize("scale", [1.0, 1e9, 1e300, 1.7e308, 1e-300])
def test_max_abs_advantage_at_any_magnitude(scale):
    rewards = torch.tensor([[-1.0, 0.2, 0.3, 0.9, NAN]], dtype=torch.float64) * scale
    # Mean 0.1: distances 1.1, 0.1, 0.2, 0.8.
    assert max_abs_advantage(rewards, 2).tolist() == [[0, 3]]
    assert max_abs_advantage(rewards, 3).tolist() == [[0, 2, 3]]
    constant = torch.tensor([[scale, NAN, scale, scale]], dtype=torch.float64)
    assert all(1 not in max_abs_advantage(constant, 2, seed=seed)[0] for seed in range(20))


def test_distances_that_differ_by_rounding_are_equal():
    # 0.3 and 3 x 0.3 are equally far from their mean with 0.6, but not in float64.
    kept = [
        select([0.3, 0.6, 3 * 0.3], 1, "max_abs_advantage", seed=seed).item() for seed in range(200)
    ]
    assert 60 < kept.count(0) < 140
    assert kept.count(1) == 0


def test_shortest_keeps_the_shortest():
    lengths = torch.tensor([[30, 10, 20, 40], [7, 7, 9, 8]])
    kept = select(torch.zeros(2, 4), 2, "shortest", lengths=lengths)
    assert kept.tolist() == [[1, 2], [0, 1]]
    # The shortest has no reward: the next ones are kept, and it comes before none.
    rewards = torch.tensor([[0.0, NAN, 1.0, 1.0], [NAN, NAN, NAN, 0.0]])
    kept = select(rewards, 2, "shortest", lengths=lengths)
    assert kept[0].tolist() == [0, 2]
    assert 3 in kept[1]


def test_reward_per_token_keeps_the_largest_share():
    # 1/30, 1/10, 2/40, 0/5.
    rewards, lengths = [1.0, 1.0, 2.0, 0.0], [30, 10, 40, 5]
    for keep, expected in ((1, [1]), (2, [1, 2]), (3, [0, 1, 2])):
        assert select(rewards, keep, "reward_per_token", lengths=lengths).tolist() == expected
    # A negative reward gains by length: -1/2 beats -1; an empty rollout counts as one token.
    assert select([-1.0, -1.0], 1, "reward_per_token", lengths=[1, 2]).tolist() == [1]
    assert select([0.4, 1.0], 1, "reward_per_token", lengths=[0, 2]).tolist() == [1]
    assert select([NAN, -1.0], 1, "reward_per_token", lengths=[1, 9]).tolist() == [1]


@pytest.mark.parametrize(
    ("rule", "score"),
    [
        (shortest, lambda reward, length: Fraction(-length)),
        (reward_per_token, lambda reward, length: Fraction(reward, length)),
    ],
)
def test_length_rules_against_sorting(rule, score):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(0, 4, (40, 11), generator=generator)
    lengths = torch.randint(1, 9, (40, 11), generator=generator)
    for keep in (1, 4, 11):
        kept_PM = rule(rewards, keep, lengths_PN=lengths, seed=keep)
        assert (kept_PM.diff(dim=1) > 0).all()
        for reward_N, length_N, kept_M in zip(rewards, lengths, kept_PM, strict=True):
            scores = [
                score(r, n) for r, n in zip(reward_N.tolist(), length_N.tolist(), strict=True)
            ]
            assert sorted(scores[place] for place in kept_M) == sorted(scores)[-keep:]
    order = torch.randperm(11, generator=generator)
    kept_moved = rule(rewards[:, order], 4, lengths_PN=lengths[:, order])
    kept = rule(rewards, 4, lengths_PN=lengths)
    for p in range(40):
        here = [score(int(rewards[p, i]), int(lengths[p, i])) for i in kept[p]]
        there = [score(int(rewards[p, i]), int(lengths[p, i])) for i in order[kept_moved[p]]]
        assert sorted(here) == sorted(there)


@pytest.mark.parametrize("rule", ["shortest", "reward_per_token"])
def test_equal_scores_are_kept_equally_often(rule):
    # Rollouts 1, 2, 4, 5 tie for two places; 0 is always in, 3 never.
    lengths = torch.tensor([2, 4, 4, 8, 4, 4]).expand(2000, -1)
    kept = select(torch.ones(2000, 6), 3, rule, lengths=lengths)
    counts = torch.bincount(kept.flatten(), minlength=6)
    assert counts[0] == 2000
    assert counts[3] == 0
    # Binomial, share 1/2: standard deviation sqrt(2000 / 4) = 22.
    assert ((counts[[1, 2, 4, 5]] - 1000).abs() < 5 * 22.4).all()


@pytest.mark.parametrize("rule", ["shortest", "reward_per_token"])
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (None, "needs the lengths of the rollouts; pass lengths="),
        ([1, 2, 3], r"lengths have shape \(1, 3\) and rewards \(1, 2\)"),
        ([1, -2], "finite and >= 0"),
        ([1.0, NAN], "finite and >= 0"),
        ([1.0, math.inf], "finite and >= 0"),
    ],
)
def test_unusable_lengths_are_named(rule, lengths, message):
    with pytest.raises(ValueError, match=message):
        select([0.0, 1.0], 1, rule, lengths=lengths)


def test_other_rules_do_not_look_at_lengths():
    assert select([0.0, 1.0], 1, "max_reward", lengths=[NAN]).tolist() == [1]


def test_docstring_examples():
    assert max_abs_advantage(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), keep=1).tolist() == [[3]]
    lengths = torch.tensor([[30, 10, 20]])
    assert shortest(torch.zeros(1, 3), keep=2, lengths_PN=lengths).tolist() == [[1, 2]]
    rewards = torch.tensor([[1.0, 1.0, 0.0]])
    assert reward_per_token(rewards, keep=1, lengths_PN=lengths).tolist() == [[1]]
