"""Which rollouts the rules keep: brute force, invariances, theorems, edge cases, errors."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.choosing import ask, choose
from podsrl.core import order
from podsrl.core.rules import RULES, max_reward, max_variance, percentile, random
from podsrl.core.select import select


def squared_deviations(values):
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    return sum((value - mean) ** 2 for value in exact)


def best_possible(values, keep):
    return max(squared_deviations(subset) for subset in itertools.combinations(values, keep))


FAMILIES = {
    "binary": lambda rng, n: rng.integers(0, 2, n).astype(float),
    "ties": lambda rng, n: rng.integers(0, 4, n) / 3,
    "gaussian": lambda rng, n: rng.normal(size=n),
    "heavy": lambda rng, n: rng.standard_cauchy(n) ** 3,
    "offset": lambda rng, n: 1e9 + rng.normal(size=n),
    "nearly_constant": lambda rng, n: 1 + rng.integers(0, 4, n) * 2.0**-52,
    "magnitudes": lambda rng, n: 10 ** rng.uniform(-6, 6, n) * rng.choice([-1, 1], n),
    "huge": lambda rng, n: rng.uniform(-1, 1, n) * 1.7e308,
    "tiny": lambda rng, n: rng.integers(-3, 4, n) * 5e-324,
    "integers": lambda rng, n: rng.integers(-(2**53), 2**53, n),
    "nan": lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_max_variance_is_the_best_of_all_subsets(family):
    rng = np.random.default_rng(list(FAMILIES).index(family))
    for num_rollouts in range(1, 10):
        rewards = np.stack([FAMILIES[family](rng, num_rollouts) for _ in range(4)])
        for keep in range(1, num_rollouts + 1):
            kept = select(rewards, keep)
            assert kept.shape == (4, keep)
            assert (kept.diff(dim=1) > 0).all()
            for values, places in zip(rewards.tolist(), kept.tolist(), strict=True):
                scored = [value for value in values if not math.isnan(value)]
                chosen = [values[place] for place in places]
                if len(scored) < keep:
                    assert sorted(scored) == sorted(v for v in chosen if not math.isnan(v))
                    continue
                best = best_possible(scored, keep)
                assert best - squared_deviations(chosen) <= best * Fraction(1, 10**12)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.bfloat16, torch.float16),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
    ],
)
def test_max_variance_is_best_for_every_dtype(dtype):
    generator = torch.Generator().manual_seed(1)
    rewards = (torch.rand(60, 8, generator=generator) * 12 - 5).clamp(min=0).to(dtype)
    if dtype.is_floating_point or dtype.is_signed:
        rewards = torch.where(rewards == 0, -torch.arange(8).to(dtype) / 2, rewards).to(dtype)
    for keep in (2, 3, 5):
        for values, places in zip(rewards, select(rewards, keep), strict=True):
            best = best_possible(values.tolist(), keep)
            assert squared_deviations(values[places].tolist()) == best


def test_authors_multi_gpu_group_keeps_eight_right_and_eight_wrong():
    # The vectorised selection of the authors' multi-GPU code keeps 1 right and 15 wrong here.
    rewards = torch.zeros(64)
    rewards[torch.randperm(64, generator=torch.Generator().manual_seed(0))[:32]] = 1
    assert rewards[select(rewards, keep=16)].sum() == 8


@pytest.mark.parametrize("keep", [2, 4, 8, 16])
def test_binary_theorem_half_and_half_when_both_classes_suffice(keep):
    for num_right in range(65):
        kept = select([1] * num_right + [0] * (64 - num_right), keep)
        # Fewer than m/2 of a class: all of it is kept.
        expected = min(max(keep // 2, keep - (64 - num_right)), num_right)
        assert (kept < num_right).sum() == expected


def test_odd_keep_gives_the_odd_one_to_the_highest():
    assert select([0, 0, 0, 1, 1, 1], keep=3, seed=5).ge(3).sum() == 2
    assert select([3.0, 1.0, 2.0], keep=1).tolist() == [0]


def test_split_is_not_always_half_and_half():
    # {0, 0, 0, 1} has variance 3/16, {0, 0, 1} and any other 4 of these have less.
    assert select([0, 0, 0, 0, 1], keep=4, seed=3)[-1] == 4
    assert select([5.0, 9.0, 1.0, 2.0], keep=2).tolist() == [1, 2]


def test_equal_splits_are_equal_in_spite_of_rounding():
    # Mirrored rewards and odd m: k and m - k lowest are exactly as good, their sums round apart.
    half = torch.rand(500, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    rewards = torch.cat([half, -half], dim=1)
    for keep in (3, 5, 7):
        num_negative = (select(rewards, keep) >= 6).sum(dim=1)
        assert (num_negative == keep // 2).all()


dyadic = st.integers(-64, 64).map(lambda number: number / 8)
groups = st.integers(2, 40).flatmap(
    lambda n: st.tuples(st.lists(dyadic, min_size=n, max_size=n), st.integers(1, n))
)


@settings(max_examples=150, deadline=None)
@given(groups, st.integers(0, 2**64))
def test_lemma_some_lowest_and_some_highest(group, seed):
    values, keep = group
    kept = sorted(values[place] for place in select(values, keep, seed=seed))
    ordered = sorted(values)
    splits = [ordered[:k] + ordered[len(ordered) - keep + k :] for k in range(keep + 1)]
    assert kept in splits
    assert squared_deviations(kept) == max(squared_deviations(split) for split in splits)


@settings(max_examples=100, deadline=None)
@given(groups, st.sampled_from([-(2.0**40), 2.0**30, 3.0]), st.integers(-60, 60), st.randoms())
@pytest.mark.parametrize("rule", ["max_variance", "max_reward", "percentile"])
def test_kept_rewards_follow_shift_scale_and_permutation(rule, group, shift, exponent, shuffler):
    # Sums and products are exact in float64 for these values, so equality is exact too.
    values, keep = group
    kept = sorted(values[place] for place in choose(values, keep, rule))
    moved = [(value + shift) * 2.0**exponent for value in values]
    shuffler.shuffle(moved)
    kept_moved = sorted(moved[place] for place in choose(moved, keep, rule))
    assert kept_moved == [(value + shift) * 2.0**exponent for value in kept]


def test_scaling_by_anything_keeps_the_variance_share():
    rewards = torch.tensor([0.0, 0.1, 0.2, 0.7, 0.8, 1.0], dtype=torch.float64)
    for factor in (1e-300, 1e-7, 3.0, 1e300):
        assert select(rewards * factor, 4).tolist() == select(rewards, 4).tolist()


def test_max_reward_keeps_the_highest():
    rewards = torch.tensor([[0.3, -1.0, 0.9, 0.4], [4.0, 3.0, 2.0, 1.0]])
    assert select(rewards, 2, "max_reward").tolist() == [[2, 3], [0, 1]]


@pytest.mark.parametrize("num_rollouts", [1, 2, 7, 12, 13])
def test_percentile_places_are_distinct_and_as_defined(num_rollouts):
    rewards = np.random.default_rng(num_rollouts).permutation(num_rollouts)  # value = sorted place
    for keep in range(1, num_rollouts + 1):
        places = {
            math.floor((Fraction(i) + Fraction(1, 2)) / keep * num_rollouts) for i in range(keep)
        }
        assert len(places) == keep
        assert set(rewards[select(rewards, keep, "percentile").numpy()]) == places


def test_percentile_places_are_those_of_the_scored_rollouts():
    # Scored in order: 1 2 3 4; places (2 i + 1) 4 // 4 = 1 and 3, values 2 and 4.
    rewards = torch.tensor([4.0, torch.nan, 1.0, torch.nan, 3.0, 2.0])
    assert select(rewards, 2, "percentile").tolist() == [0, 5]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_rollouts", [6, 64])
def test_nan_is_kept_only_when_too_few_are_scored(rule, num_rollouts):
    generator = torch.Generator().manual_seed(2)
    rewards = torch.rand(num_rollouts + 1, num_rollouts, generator=generator)
    for num_failed in range(num_rollouts + 1):
        failed = torch.randperm(num_rollouts, generator=generator)[:num_failed]
        rewards[num_failed, failed] = -torch.nan if num_failed % 2 else torch.nan
    for keep in (1, 3, 5, num_rollouts):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            kept = rewards.to(dtype).gather(1, choose(rewards.to(dtype), keep, rule))
            num_scored = num_rollouts - torch.arange(num_rollouts + 1)
            assert (~kept.isnan()).sum(1).tolist() == num_scored.clamp(max=keep).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_keep_all_keeps_all_in_order(rule):
    rewards = torch.tensor([[2.0, 1.0, torch.nan, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert choose(rewards, 4, rule).tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("rule", RULES)
def test_shapes_types_and_inputs(rule):
    rows = [[0.1, 0.9, 0.5, 0.3, 0.2], [1.0, 0.0, 0.0, 1.0, 0.5]]
    expected = choose(torch.tensor(rows, dtype=torch.float64), 3, rule)
    assert expected.dtype == torch.int64
    assert torch.equal(choose(rows, 3, rule), expected)
    assert torch.equal(choose(np.array(rows), np.int64(3), rule), expected)
    assert torch.equal(choose(torch.tensor(rows).requires_grad_(), 3, rule), expected)
    assert torch.equal(choose(torch.tensor(rows).t().contiguous().t(), 3, rule), expected)
    assert torch.equal(choose(rows[0], 3, rule), expected[0])
    assert choose(torch.empty(0, 5), 3, rule).shape == (0, 3)


@pytest.mark.parametrize("rule", RULES)
def test_negative_zero_is_zero(rule):
    zeros = torch.tensor([0.0, -0.0] * 8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(choose(zeros.to(dtype), 5, rule), choose(zeros.abs().to(dtype), 5, rule))


@pytest.mark.parametrize("rule", RULES)
def test_parts_and_chunks_do_not_change_the_choice(rule, monkeypatch):
    rewards = torch.randn(7, 900, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    rewards[rewards > 1.5] = torch.nan
    rewards[3, 4:] = torch.nan
    rewards[4] = torch.nan
    whole = {keep: ask(rule, rewards, keep, seed=1) for keep in (1, 6, 20)}
    monkeypatch.setattr(order, "CHUNK_ROLLOUTS", 100)
    for keep, expected in whole.items():
        assert torch.equal(choose(rewards, keep, rule, seed=1), expected)
        assert torch.equal(choose(rewards.double(), keep, rule, seed=1), expected)
        last = ask(rule, rewards[5:], keep, seed=1, first_group=5)
        assert torch.equal(last, expected[5:])


def test_ends_agree_however_they_are_found():
    keys = torch.randint(-(2**62), 2**61, (9, 40), generator=torch.Generator().manual_seed(4))
    for keep in (9, 10, 40):  # 9 takes two selections, 10 and more one sort
        low, high = order.both_ends(keys, keep)
        assert torch.equal(low, order.low_end(keys, keep)[0])
        assert torch.equal(high, order.high_end(keys, keep)[0])


@pytest.mark.parametrize(
    ("rewards", "keep", "rule", "error", "message"),
    [
        ([0.0, 1.0], 0, "max_variance", ValueError, "keep is 0.*between 1 and the 2.*keep fewer"),
        ([0.0, 1.0], 3, "max_variance", ValueError, "keep is 3.*between 1 and the 2"),
        ([0.0, 1.0], 1.0, "max_variance", TypeError, "keep is 1.0.*integer"),
        ([0.0, 1.0], True, "max_variance", TypeError, "keep is True"),
        ([0.0, 1.0], 1, "min_reward", ValueError, "'min_reward'.*max_variance, max_reward"),
        ([[0.0, 1.0], [0.0, math.inf]], 1, "random", ValueError, "group 1, rollout 1 is inf"),
        ([0.0, -math.inf], 1, "max_variance", ValueError, "is -inf.*finite.*replace"),
        ([], 1, "max_variance", ValueError, "at least 1 rollout"),
        (torch.empty(3, 0), 1, "max_variance", ValueError, r"\(3, 0\).*at least 1 rollout"),
        (torch.tensor(1.0), 1, "max_variance", ValueError, r"shape \(\).*1 dimension"),
        (torch.zeros(1, 2, 3), 1, "max_variance", ValueError, r"\(1, 2, 3\).*reshape"),
        (torch.tensor([True]), 1, "max_variance", TypeError, r"torch.bool.*rewards.float\(\)"),
        (torch.tensor([1j]), 1, "max_variance", TypeError, "complex"),
        (torch.tensor([0, 2**53 + 1]), 1, "max_variance", ValueError, r"9007199254740993.*2\*\*53"),
    ],
)
def test_errors_name_value_bound_and_remedy(rewards, keep, rule, error, message):
    with pytest.raises(error, match=message):
        select(rewards, keep, rule)


def test_infinity_is_found_in_any_chunk(monkeypatch):
    monkeypatch.setattr(order, "CHUNK_ROLLOUTS", 4)
    rewards = torch.zeros(50, 4, dtype=torch.bfloat16)
    rewards[41, 2] = torch.inf
    rewards[30, 2] = torch.nan
    with pytest.raises(ValueError, match="group 41, rollout 2 is inf"):
        select(rewards, 2)


def test_docstring_examples():
    assert select([0.0, 0.1, 0.9, 0.2, 1.0], keep=3).tolist() == [0, 2, 4]
    assert max_variance(torch.tensor([[0, 0, 0, 0, 1]]), keep=4)[:, -1].tolist() == [4]
    assert max_reward(torch.tensor([[0.3, 0.1, 0.2]]), keep=2).tolist() == [[0, 2]]
    assert random(torch.tensor([[0.3, 0.1, torch.nan]]), keep=2).tolist() == [[0, 1]]
    assert percentile(torch.tensor([[5, 1, 4, 2, 3, 0]]), keep=3).tolist() == [[0, 1, 4]]


def test_core_imports_only_torch():
    code = (
        "import sys, podsrl.core.select, podsrl; podsrl.select([0, 1], 1);"
        "print([name for name in ('trl', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
