"""The dynamic programme against brute force, and the greedy against the dynamic programme."""

import itertools

import pytest
import torch

from podsrl.core import allocate
from podsrl.core.budget import group_values, pooled


def worths(seed: int, num_groups: int, num_rollouts: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_groups, num_rollouts)
    if kind == "binary":
        share = torch.rand(num_groups, 1, generator=generator)
        rewards = (torch.rand(shape, generator=generator) < share).float()
    elif kind == "graded":
        rewards = torch.randint(0, 5, shape, generator=generator) / 4.0
    else:
        rewards = torch.randn(shape, generator=generator)
    values = group_values(rewards, num_rollouts)
    values[:, 1] = -torch.inf
    return values


def total_worth(worth_PK: torch.Tensor, counts_P: torch.Tensor) -> float:
    return float(worth_PK.gather(1, counts_P.unsqueeze(1)).sum())


def exact(worth_PK: torch.Tensor, total: int) -> torch.Tensor:
    return allocate.exact(worth_PK, torch.tensor([total]), total)


def test_exact_on_arbitrary_worths():
    """Worths that are neither concave nor monotone, some forbidden."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        worth = torch.randn(3, 5, generator=generator, dtype=torch.float64)
        worth[torch.rand(3, 5, generator=generator) < 0.2] = -torch.inf
        worth[:, 2] = 0.0  # 2 + 2 + 2 is always allowed
        best = max(
            sum(float(worth[p, k]) for p, k in enumerate(counts))
            for counts in itertools.product(range(5), repeat=3)
            if sum(counts) == 6
        )
        counts = exact(worth, 6)
        assert int(counts.sum()) == 6
        assert total_worth(worth, counts) == pytest.approx(best)


@pytest.mark.parametrize("total", [16, 32, 64, 100])
def test_greedy_is_exact_for_binary_rewards_and_even_totals(total):
    """The envelope has pieces of 2 with slope 1/4, then of 1: an even total leaves no rest."""
    for seed in range(10):
        worth = worths(seed, 16, 12, "binary")
        best = total_worth(worth, exact(worth, total))
        counts = allocate.greedy(worth, total)
        assert int(counts.sum()) == total
        assert total_worth(worth, counts) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("kind", ["binary", "graded", "normal"])
@pytest.mark.parametrize("total", [63, 64])
def test_greedy_falls_short_by_little(kind, total):
    for seed in range(10):
        worth = worths(seed, 32, 8, kind)
        best = total_worth(worth, exact(worth, total))
        counts = allocate.greedy(worth, total)
        assert int(counts.sum()) == total
        assert (counts != 1).all()
        reached = total_worth(worth, counts)
        assert best * (1 - 1e-3) <= reached <= best * (1 + 1e-12)


def test_greedy_without_repair_would_not_spend_the_total(monkeypatch):
    """Two groups worth 1 at 2 and 5 at 4: 6 rollouts are 4 + 2 = 6, although 3 + 3 is even."""
    worth = torch.tensor([[0, -torch.inf, 1, 1, 5], [0, -torch.inf, 1, 1, 5]], dtype=torch.float64)
    assert sorted(allocate.greedy(worth, 6).tolist()) == [2, 4]
    assert allocate.greedy(worth, 8).tolist() == [4, 4]


def test_greedy_keeps_floors():
    worth = torch.tensor([[-torch.inf, -torch.inf, 0, 1.0, 1]] * 2 + [[-torch.inf] * 2 + [0.0] * 3])
    assert allocate.greedy(worth.double(), 8).tolist() == [3, 3, 2]


def test_large_steps_go_through_the_greedy(monkeypatch):
    """With a small limit `pooled` takes the greedy path and gives as good counts."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(24, 1, generator=generator)
    rewards = (torch.rand(24, 16, generator=generator) < share).float()
    exact_counts = pooled(rewards, 96)
    monkeypatch.setattr(allocate, "EXACT_COMBINATIONS", 40_000)
    greedy_counts = pooled(rewards, 96)
    assert int(greedy_counts.sum()) == 96
    values = group_values(rewards, 16)
    best, reached = (total_worth(values, counts) for counts in (exact_counts, greedy_counts))
    assert reached == pytest.approx(best, rel=1e-5)
    assert pooled(torch.tensor([[0.0, 1] * 8] * 24), 96).tolist() == [4] * 24  # still even
