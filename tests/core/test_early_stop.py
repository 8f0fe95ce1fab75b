"""A final choice is one that no outcome of the unfinished rollouts can better: brute force."""

import itertools

import pytest
import torch
from torch import Tensor

from podsrl import select
from podsrl.core.early_stop import choice_is_final
from podsrl.core.statistics import group_variance

NAN = torch.nan


def best_variance(rewards: list[float], num_kept: int) -> float:
    """The largest variance that `num_kept` of the rewards have; -1 where there are fewer."""
    choices = [list(kept) for kept in itertools.combinations(rewards, num_kept)]
    if not choices:
        return -1.0
    return float(torch.tensor(choices, dtype=torch.float64).var(dim=1, unbiased=False).max())


def is_final(rewards: list[float], num_kept: int, low: float = 0.0, high: float = 1.0) -> bool:
    return bool(choice_is_final(torch.tensor([rewards]), num_kept, low=low, high=high))


# Groups of 5 out of both bounds, two values between them and unfinished ones; sums of at most 5
# multiples of 1/4 and their squares are exact, so variances may be compared with ==, nearly.
GROUPS = list(itertools.combinations_with_replacement([0.0, 0.25, 0.75, 1.0, None], 5))


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4, 5])
def test_final_is_what_copies_of_both_bounds_do_not_raise(num_kept: int) -> None:
    """The definition, word by word: u copies of each bound beside the finished rewards."""
    finals = 0
    for group in GROUPS:
        finished = [reward for reward in group if reward is not None]
        num_unfinished = 5 - len(finished)
        before = best_variance(finished, num_kept)
        after = best_variance([*finished, *[0.0, 1.0] * num_unfinished], num_kept)
        expected = len(finished) >= num_kept and after <= before + 1e-12
        rewards = [NAN if reward is None else reward for reward in group]
        assert is_final(rewards, num_kept) == expected, (group, num_kept)
        finals += expected and num_unfinished > 0
    assert finals > 0 or num_kept == 5  # m = n is final only when all are there


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
def test_no_outcome_betters_a_final_choice_and_some_outcome_any_other(num_kept: int) -> None:
    outcomes = [0.0, 0.5, 1.0, None]
    for group in GROUPS:
        finished = [reward for reward in group if reward is not None]
        if len(finished) in (0, 5) or len(finished) < num_kept:
            continue
        before = best_variance(finished, num_kept)
        best = max(
            best_variance(
                [*finished, *(reward for reward in drawn if reward is not None)], num_kept
            )
            for drawn in itertools.product(outcomes, repeat=5 - len(finished))
        )
        rewards = [NAN if reward is None else reward for reward in group]
        assert is_final(rewards, num_kept) == (best <= before + 1e-12), (group, num_kept)


def test_binary_groups_are_final_as_soon_as_half_of_the_kept_are_in_of_each() -> None:
    """m = 4 of n = 16: two zeros and two ones, whatever else has come."""
    for num_zeros, num_ones in itertools.product(range(8), repeat=2):
        rewards = [0.0] * num_zeros + [1.0] * num_ones + [NAN] * (16 - num_zeros - num_ones)
        assert is_final(rewards, 4) == (num_zeros >= 2 and num_ones >= 2)
        # m = 5 needs the same and a fifth of either kind.
        enough = num_zeros >= 2 and num_ones >= 2 and num_zeros + num_ones >= 5
        assert is_final(rewards, 5) == enough


def test_bounds_may_be_any_numbers_and_are_compared_in_the_dtype_of_the_rewards() -> None:
    # 1.2 in single precision is larger than in double precision: 1.2000000477.
    weighted = [0.0, 0.0, 1.2, 1.2, NAN]
    assert is_final(weighted, 4, high=1.2)
    assert not is_final(weighted, 4, high=1.25)  # 1.25, 1.25 would have more
    assert not is_final(weighted, 4, low=-0.5, high=1.2)
    assert is_final([-3.0, 7.0, NAN, NAN], 2, low=-3.0, high=7.0)
    # A rounding error inside the bound: sampled longer than needed, never shorter.
    just_below = float(torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)))
    assert not is_final([0.0, 0.0, 1.0, just_below, NAN], 4)


def test_failed_gradings_count_for_nothing() -> None:
    """Of 0, 0, 1, failed and one to come, the one to come may be a second 1."""
    assert not is_final([0.0, 0.0, 1.0, NAN, NAN], 4)
    assert is_final([0.0, 0.0, 1.0, 1.0, NAN, NAN], 4)


def test_groups_with_nothing_to_gain_are_final_with_m_rewards() -> None:
    assert is_final([0.3, NAN, NAN], 1)
    assert not is_final([NAN, NAN, NAN], 1)
    assert is_final([2.0, 2.0, NAN], 2, low=2.0, high=2.0)
    assert not is_final([2.0, NAN, NAN], 2, low=2.0, high=2.0)
    assert is_final([0.3, 0.4, 0.5], 2)  # all are there


def test_groups_of_a_batch_do_not_touch_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_PN = torch.randint(0, 3, (200, 8), generator=generator).float() / 2
    rewards_PN[torch.rand(200, 8, generator=generator) < 0.3] = NAN
    together_P = choice_is_final(rewards_PN, 4, low=0.0, high=1.0)
    alone = [bool(choice_is_final(row[None], 4, low=0.0, high=1.0)) for row in rewards_PN]
    assert together_P.tolist() == alone
    assert 20 < sum(alone) < 180
    halves_P = choice_is_final(rewards_PN.bfloat16(), 4, low=0.0, high=1.0)
    assert halves_P.tolist() == alone


def recorded_groups(seed: int) -> Tensor:
    """64 groups of 16 rewards: binary with pass rates from 0 to 1, and graded ones."""
    generator = torch.Generator().manual_seed(seed)
    chance_P1 = torch.rand(64, 1, generator=generator)
    rewards_PN = (torch.rand(64, 16, generator=generator) < chance_P1).float()
    graded_PN = torch.randint(0, 5, (64, 16), generator=generator) / 4
    rewards_PN[32:] = graded_PN[32:]
    rewards_PN[torch.rand(64, 16, generator=generator) < 0.02] = NAN
    return rewards_PN


@pytest.mark.parametrize("num_kept", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("seed", range(10))
def test_kept_variance_of_recorded_groups_is_that_without_stopping(
    num_kept: int, seed: int
) -> None:
    rewards_PN = recorded_groups(seed)
    place_PN = torch.rand(rewards_PN.shape, generator=torch.Generator().manual_seed(seed)).argsort()
    seen_PN, runs_P = torch.full_like(rewards_PN, NAN), torch.ones(64, dtype=torch.bool)
    num_seen_P = torch.zeros(64, dtype=torch.long)
    for step in range(16):
        column_P1 = place_PN[:, step : step + 1]
        arrived_P1 = rewards_PN.gather(1, column_P1).where(runs_P[:, None], NAN)
        seen_PN.scatter_(1, column_P1, arrived_P1)
        num_seen_P += runs_P
        runs_P &= ~choice_is_final(seen_PN, num_kept, low=0.0, high=1.0)

    def kept_variance(rewards: Tensor) -> Tensor:
        return group_variance(rewards.gather(1, select(rewards, num_kept, seed=seed)))

    torch.testing.assert_close(
        kept_variance(seen_PN), kept_variance(rewards_PN), rtol=0, atol=1e-12, equal_nan=True
    )
    # Binary groups with a middling pass rate are final long before the sixteenth.
    assert num_seen_P[:32].float().mean() < 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards_PN": torch.zeros(3)}, "shape \\(3,\\); pass \\(P, N\\)"),
        ({"num_kept": 0}, "num_kept is 0, but must lie between 1 and the 3"),
        ({"num_kept": 4}, "num_kept is 4, but must lie between 1 and the 3"),
        ({"low": 1.0, "high": 0.0}, "bounds are 1.0 and 0.0"),
        ({"high": torch.inf}, "bounds are 0.0 and inf"),
    ],
)
def test_impossible_requests_are_refused(changes: dict, message: str) -> None:
    request = {"rewards_PN": torch.zeros(2, 3), "num_kept": 2, "low": 0.0, "high": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        choice_is_final(**request)
