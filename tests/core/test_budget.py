"""Pooled budgets: values, counts and masks against brute force over subsets and allocations."""

import itertools

import pytest
import torch

from podsrl import select
from podsrl.core.budget import group_values, pooled, select_counts

NAN = float("nan")


def sum_squares(values: list[float]) -> float:
    mean = sum(values) / max(1, len(values))
    return sum((value - mean) ** 2 for value in values)


def best_by_subsets(rewards_N: list[float], num_kept: int) -> float:
    """The largest sum of squared deviations of any `num_kept` scored rollouts."""
    scored = [reward for reward in rewards_N if reward == reward]
    subsets = itertools.combinations(scored, min(num_kept, len(scored)))
    return max(sum_squares(list(subset)) for subset in subsets)


def allocations(num_groups: int, total: int, allowed: list[int]):
    for counts in itertools.product(allowed, repeat=num_groups):
        if sum(counts) == total:
            yield counts


def random_rewards(seed: int, num_groups: int, num_rollouts: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_groups, num_rollouts)
    if kind == "binary":
        share_P1 = torch.rand(num_groups, 1, generator=generator)
        return (torch.rand(shape, generator=generator) < share_P1).float()
    if kind == "graded":
        return torch.randint(0, 4, shape, generator=generator) / 4.0
    rewards_PN = torch.randn(shape, generator=generator)
    if kind == "missing":
        rewards_PN[torch.rand(shape, generator=generator) < 0.4] = NAN
    return rewards_PN


def test_values_of_one_group_by_hand():
    # 0 0 1 1: k = 2: {0,1} 1/2. k = 3: mean 1/3, 2/9 + 4/9 = 2/3. k = 4: 4 x 1/4 = 1.
    # 0 0 0 1 (one NaN): 1/2, then {0,0,1} 2/3, then nothing more is scored.
    rewards = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, NAN], [5, 5, 5, 5]])
    expected = [[0, 0, 1 / 2, 2 / 3, 1], [0, 0, 1 / 2, 2 / 3, 2 / 3], [0] * 5]
    assert group_values(rewards, 4).tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("kind", ["binary", "graded", "normal", "missing"])
def test_values_are_the_best_of_all_subsets(kind):
    for seed in range(4):
        rewards = random_rewards(seed, 3, 7, kind)
        expected = [[best_by_subsets(row, k) for k in range(7)] for row in rewards.tolist()]
        torch.testing.assert_close(
            group_values(rewards, 6), torch.tensor(expected, dtype=torch.float64)
        )


def test_values_are_what_max_variance_keeps_at_every_count():
    rewards = random_rewards(5, 4, 40, "normal").double() + 1e6
    values = group_values(rewards, 40)
    for count in range(1, 41):
        kept = rewards.gather(1, select(rewards, count))
        squares = count * kept.var(dim=1, correction=0)
        torch.testing.assert_close(values[:, count], squares, rtol=1e-9, atol=1e-9)


def test_increments_may_rise():
    # 0 0 1 1: 1/2, then 1/6, then 1/3: taking one rollout at a time is not exact.
    increments = group_values(torch.tensor([[0.0, 0, 1, 1]]), 4)[0].diff().tolist()
    assert increments == pytest.approx([0, 1 / 2, 1 / 6, 1 / 3])


def test_the_worked_example_of_the_docs():
    rewards = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1.0]])
    # v = 0; (1/2, 2/3, 1, 6/5, 3/2) at k = 2..6; (1/2, 2/3, 3/4, 4/5, 5/6).
    # Total 9, 3 each: 0 + 2/3 + 2/3 = 4/3. Best: 6 + 3: 3/2 + 2/3 = 13/6.
    assert pooled(rewards, 9).tolist() == [0, 6, 3]
    assert pooled(rewards, 9, cap=5).tolist() == [0, 5, 4]  # 6/5 + 3/4 = 1.95, over 4 + 5: 1.8
    assert pooled(rewards, 9, floor=2).tolist() == [2, 5, 2]  # 6/5 + 1/2 over 1 + 2/3 at 4 + 3


@pytest.mark.parametrize("kind", ["binary", "graded", "normal", "missing"])
@pytest.mark.parametrize("floor", [0, 2])
@pytest.mark.parametrize("cap", [3, 5])
def test_counts_are_the_best_of_all_allocations(kind, floor, cap):
    allowed = [k for k in range(floor, cap + 1) if k != 1]
    for seed in range(6):
        rewards = random_rewards(seed, 4, 5, kind)
        num_scored = (~rewards.isnan()).sum(1).tolist()
        values = [[best_by_subsets(row, k) for k in range(cap + 1)] for row in rewards.tolist()]
        for total in (8, 9, 12):

            def worth(counts, values=values, num_scored=num_scored):
                missing = sum(max(0, k - c) for k, c in zip(counts, num_scored, strict=True))
                return -missing, sum(v[k] for v, k in zip(values, counts, strict=True))

            best = max(worth(counts) for counts in allocations(4, total, allowed))
            counts = pooled(rewards, total, floor=floor, cap=cap, seed=seed).tolist()
            assert sum(counts) == total and set(counts) <= set(allowed)
            assert worth(counts) == (best[0], pytest.approx(best[1], rel=1e-5, abs=1e-9))


def test_plenty_of_both_classes_gives_every_prompt_its_m():
    """Every even count is worth 1/4 a rollout, so evenness decides: 4 each, not 8 and 0."""
    rewards = torch.tensor([[0.0, 1] * 8] * 5)
    for seed in range(5):
        assert pooled(rewards, 20, seed=seed).tolist() == [4] * 5


def test_equal_counts_keep_what_select_keeps():
    rewards = random_rewards(3, 6, 9, "graded")
    kept_PM = select(rewards, 4, seed=11)
    mask_PN = select_counts(rewards, torch.full((6,), 4), seed=11)
    assert mask_PN.nonzero()[:, 1].view(6, 4).tolist() == kept_PM.tolist()


@pytest.mark.parametrize("rule", ["max_variance", "max_reward", "random", "percentile"])
def test_each_group_keeps_its_number_by_the_rule(rule):
    rewards = random_rewards(4, 4, 9, "graded")
    counts = torch.tensor([0, 2, 9, 5])
    mask_PN = select_counts(rewards, counts, rule=rule, seed=2)
    assert mask_PN.sum(1).tolist() == counts.tolist()
    for group in (1, 2, 3):
        whole = select(rewards, int(counts[group]), rule=rule, seed=2)
        assert mask_PN[group].nonzero()[:, 0].tolist() == whole[group].tolist()


def test_constant_groups_get_what_nothing_else_can_use():
    # Group 1 has 3 useful rollouts and group 3 has 2: of 8 places 3 are left to a constant one.
    rewards = torch.tensor([[1.0, 1, 1], [0, 1, 2], [2, 2, 2], [3, 4, NAN]])
    counts = pooled(rewards, 8).tolist()
    assert (counts[1], counts[3]) == (3, 2)
    assert sorted((counts[0], counts[2])) == [0, 3]
    assert pooled(rewards, 9).tolist() == [2, 3, 2, 2]
    assert pooled(rewards, 5).tolist() == [0, 3, 0, 2]


def test_a_rollout_that_adds_nothing_is_preferred_to_a_constant_group():
    """The third reward of 0, 0.5, 1 is the mean: worth nothing, but its group is not constant."""
    rewards = torch.tensor([[0, 0.5, 1, 0.5, 0.5], [7, 7, 7, 7, 7]])
    assert pooled(rewards, 5).tolist() == [5, 0]


def test_all_groups_constant_is_even():
    assert pooled(torch.zeros(4, 6), 12).tolist() == [3] * 4


def test_missing_rewards_are_kept_only_when_no_scored_pair_is_left():
    rewards = torch.tensor([[NAN, NAN, NAN, 1], [0.0, NAN, 9, NAN], [4, 4, 4, NAN]])
    assert pooled(rewards, 5).tolist() == [0, 2, 3]
    counts = pooled(rewards, 6)  # one NaN is needed: in any of the three groups
    assert counts.tolist() in ([0, 2, 4], [0, 3, 3])
    counts = pooled(rewards, 7)
    assert (rewards.isnan() & select_counts(rewards, counts)).sum() == 1
    assert counts.tolist() == [2, 2, 3]  # the first group's scored rollout is used with one NaN


def test_equal_groups_are_favoured_equally_often_over_seeds():
    """6 rollouts for three equal groups with one success each: 3, 3, 0 against 2, 2, 2 and 4, 2.

    v(2) = 1/2, v(3) = 2/3, v(4) = 3/4: 2 + 2 + 2 is 3/2, 3 + 3 is 4/3; with 7, someone gets 3.
    """
    rewards = torch.tensor([[0.0, 0, 0, 1]] * 3)
    assert pooled(rewards, 6).tolist() == [2, 2, 2]
    wins = torch.zeros(3)
    for seed in range(120):
        counts = pooled(rewards, 7, seed=seed)
        assert sorted(counts.tolist()) == [2, 2, 3]
        wins[counts.argmax()] += 1
    assert wins.min() > 20  # 40 expected, standard deviation 5


def test_counts_follow_the_seed_and_nothing_else():
    rewards = random_rewards(1, 8, 12, "binary")
    first = pooled(rewards, 32, seed=5)
    assert torch.equal(first, pooled(rewards.clone(), 32, seed=5))
    assert torch.equal(first, pooled(rewards.half(), 32, seed=5))
    assert torch.equal(first, pooled(rewards * 4 - 3, 32, seed=5))


def test_a_permutation_of_the_rollouts_changes_nothing():
    rewards = random_rewards(2, 5, 8, "normal")
    assert torch.equal(pooled(rewards, 20), pooled(rewards.flip(1), 20))


def test_integer_rewards():
    assert pooled(torch.tensor([[0, 0, 0], [0, 3, 0]]), 3).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("total", "options", "words"),
    [
        (13, {}, "num_kept_total is 13, .* add up to 2 to 12"),
        (1, {}, "num_kept_total is 1"),
        (5, {"floor": 2}, "add up to 6 to 12"),
        (5, {"cap": 2}, "2 to 6, even"),
        (6, {"floor": 1}, "floor is 1; choose 0 or 2"),
        (6, {"cap": 5}, "cap is 5, but must lie between 2 and the 4"),
    ],
)
def test_impossible_budgets_are_refused(total, options, words):
    with pytest.raises(ValueError, match=words):
        pooled(torch.zeros(3, 4), total, **options)


def test_bad_rewards_and_counts_are_refused():
    with pytest.raises(ValueError, match="infinite"):
        pooled(torch.tensor([[0.0, float("inf")]]), 2)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        pooled(torch.zeros(3), 2)
    with pytest.raises(ValueError, match="keep 3 of its 2"):
        select_counts(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(ValueError, match="'best' is unknown"):
        select_counts(torch.zeros(1, 2), torch.tensor([2]), rule="best")
