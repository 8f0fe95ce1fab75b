"""Equal rewards are broken at random by seed and position: fair, independent, reproducible."""

import subprocess
import sys

import pytest
import torch

from helpers.choosing import ask, choose
from podsrl.core.rules import RULES
from podsrl.core.select import select

NUM_GROUPS = 4000


def kept_counts(rewards, keep, rule, seeds):
    """How often each rollout of one group is kept: over seeds, and over positions of the group."""
    over_seeds = torch.stack([choose(rewards, keep, rule, seed=seed) for seed in seeds])
    over_groups = choose(rewards.expand(len(seeds), -1), keep, rule, seed=7)
    return [
        torch.bincount(kept.flatten(), minlength=len(rewards)) for kept in (over_seeds, over_groups)
    ]


def assert_equally_often(counts, num_draws):
    """Chi-square bound: with k members kept with share f each count has variance D f (1 - f)."""
    share = counts.sum() / (num_draws * len(counts))
    if share in (0, 1):
        return
    statistic = (counts - num_draws * share).square().sum() / (num_draws * share * (1 - share))
    # Mean k - 1 (the counts have a fixed sum) times k / (k - 1), variance about 2 k: six sigma.
    num_members = len(counts)
    assert statistic < num_members + 6 * (2 * num_members) ** 0.5, counts
    assert statistic > num_members / 100, "more even than chance"


# Values 0, 1 and 2 with 7, 8 and 9 members, in shuffled order.
TIED = torch.tensor([0.0] * 7 + [1.0] * 8 + [2.0] * 9)[
    torch.randperm(24, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("keep", [5, 14])  # two selections and one sort
@pytest.mark.parametrize("rule", RULES)
def test_members_of_a_tied_class_are_kept_equally_often(rule, keep):
    for counts in kept_counts(TIED, keep, rule, range(600)):
        for value in (0.0, 1.0, 2.0):
            assert_equally_often(counts[value == TIED].double(), 600)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bfloat16])
def test_ties_are_fair_for_other_dtypes(rule, dtype):
    counts = kept_counts(TIED.to(dtype), 5, rule, range(300))[1]
    for value in (0.0, 1.0, 2.0):
        assert_equally_often(counts[value == TIED].double(), 300)


@pytest.mark.parametrize("rule", RULES)
def test_failed_rollouts_that_must_be_kept_are_kept_equally_often(rule):
    rewards = torch.full((12,), torch.nan)
    rewards[4] = 1.0
    for counts in kept_counts(rewards, 5, rule, range(600)):
        assert counts[4] == 600
        others = torch.cat([counts[:4], counts[5:]]).double()
        assert_equally_often(others, 600)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_of_a_constant_group_are_kept_together_equally_often(rule):
    kept = choose(torch.zeros(NUM_GROUPS, 8), 3, rule, seed=11)
    indicator = torch.zeros(NUM_GROUPS, 8).scatter_(1, kept, 1.0)
    pairs = (indicator.T @ indicator)[tuple(torch.triu_indices(8, 8, 1))].double()
    # Each pair: 3 2 / (8 7) of the draws.
    expected = NUM_GROUPS * 6 / 56
    assert ((pairs - expected).abs() < 5 * (expected * (1 - 6 / 56)) ** 0.5).all(), pairs


def test_neighbouring_groups_and_seeds_choose_independently():
    keep, num_rollouts = 4, 16
    rewards = torch.zeros(NUM_GROUPS, num_rollouts)
    first = select(rewards, keep, seed=0)
    indicator = torch.zeros(NUM_GROUPS, num_rollouts).scatter_(1, first, 1.0)
    others = [indicator.roll(shift, 0) for shift in (1, 2, 64, 1024)]
    for seed in (1, 2, 256, 2**32, -1):
        other = select(rewards, keep, seed=seed)
        others.append(torch.zeros_like(indicator).scatter_(1, other, 1.0))
    for other in others:
        # Overlap of two independent subsets: hypergeometric, mean 1, variance 4/16 12/16 12/15 4.
        overlaps = (indicator * other).sum(1)
        assert abs(overlaps.mean() - 1) < 5 * (0.6 / NUM_GROUPS) ** 0.5
        assert abs(overlaps.var() - 0.6) < 0.1


@pytest.mark.parametrize("rule", RULES)
def test_choice_depends_on_position_and_seed_alone(rule):
    rewards = torch.tensor([0.0, 1.0] * 16).repeat(5, 1)
    kept = choose(rewards, 6, rule, seed=9)
    assert torch.equal(kept[:2], choose(rewards[:2], 6, rule, seed=9))
    assert torch.equal(kept, choose(rewards * 3 + 1, 6, rule, seed=9))
    assert len({tuple(row) for row in kept.tolist()}) == 5
    assert not torch.equal(kept, choose(rewards, 6, rule, seed=10))


# Fixed numbers: another machine, version or process must make these choices too.
PINNED = {
    "max_variance": [[5, 8, 12, 15], [8, 9, 11, 14]],
    "max_reward": [[5, 9, 13, 15], [1, 7, 9, 11]],
    "random": [[7, 8, 11, 12], [5, 8, 13, 14]],
    "percentile": [[0, 1, 5, 6], [0, 3, 4, 9]],
    "max_abs_advantage": [[0, 2, 5, 15], [4, 6, 9, 11]],
    "shortest": [[0, 2, 5, 15], [4, 6, 9, 11]],
    "reward_per_token": [[5, 9, 13, 15], [1, 7, 9, 11]],
}


@pytest.mark.parametrize("rule", RULES)
def test_choice_is_the_same_on_every_machine(rule):
    kept = choose(torch.tensor([0.0, 1.0] * 8).repeat(2, 1), 4, rule, seed=2**40 + 3)
    assert kept.tolist() == PINNED[rule]


def test_choice_is_the_same_in_another_process():
    code = (
        "import torch, podsrl; torch.set_num_threads(1);"
        "print(podsrl.select(torch.zeros(3, 50), 5, seed=4).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(select(torch.zeros(3, 50), 5, seed=4).tolist())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_cuda_keeps_what_the_cpu_keeps_without_synchronising(rule, dtype):
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randint(0, 4, (300, 64), generator=generator).to(dtype)
    for keep in (4, 16, 50):
        expected = choose(rewards, keep, rule, seed=3)
        on_device = rewards.cuda()
        torch.cuda.set_sync_debug_mode("error")
        kept = ask(rule, on_device, keep, seed=3)
        torch.cuda.set_sync_debug_mode("default")
        assert kept.device == on_device.device
        assert torch.equal(kept.cpu(), expected)
