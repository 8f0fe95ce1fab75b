"""Estimators other than TRL's: numbers by hand, closed forms, masks of any size per group."""

import math

import pytest
import torch

from podsrl.core.advantage import ESTIMATORS, advantages, masked_advantages
from podsrl.core.kalman import krpo

NAN = float("nan")


def of_all(rewards, **options):
    """Advantages of one group of which all are kept, in float64."""
    rewards_1N = torch.tensor([rewards], dtype=torch.float64)
    everything = torch.arange(len(rewards)).unsqueeze(0)
    return advantages(rewards_1N, everything, source="all", **options)[0]


def assert_values(got, expected, **tolerance):
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), **tolerance)


def test_dr_grpo_only_centres():
    assert_values(of_all([0, 0, 0, 1], estimator="dr_grpo"), [-0.25, -0.25, -0.25, 0.75])


def test_rloo_takes_the_mean_of_the_others():
    # Others of 1 in (1, 2, 6): 4; of 2: 3.5; of 6: 1.5.
    assert_values(of_all([1, 2, 6], estimator="rloo"), [-3.0, -1.5, 4.5])
    # NaN is nobody's other: (0, 4) alone.
    assert_values(of_all([0, NAN, 4], estimator="rloo"), [-4.0, 0.0, 4.0])
    assert_values(of_all([NAN, 3], estimator="rloo"), [0.0, 0.0])


def test_rloo_counts_the_kept_or_all():
    rewards, kept = torch.tensor([[1.0, 2.0, 6.0, 7.0]]), torch.tensor([[0, 2]])
    assert advantages(rewards, kept, estimator="rloo").tolist() == [[-5.0, 5.0]]
    # Of all: 1 - (2 + 6 + 7) / 3 = -4 and 6 - (1 + 2 + 7) / 3 = 8/3.
    got = advantages(rewards, kept, estimator="rloo", source="all")
    assert_values(got[0], [-4.0, 8 / 3])


def test_rloo_is_n_over_n_minus_one_times_dr_grpo():
    rewards = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = torch.arange(7).expand(5, -1)
    centred = advantages(rewards, every, estimator="dr_grpo")
    torch.testing.assert_close(advantages(rewards, every, estimator="rloo"), centred * 7 / 6)


# KRPO. Q = process variance, R = observation variance.


def krpo_of(rewards, **options):
    rewards_1R = torch.tensor([rewards], dtype=torch.float64)
    return krpo(rewards_1R, torch.ones_like(rewards_1R, dtype=torch.bool), **options)[0]


def test_krpo_of_the_published_constants():
    # A constant group has advantages, where GRPO gives 0. By hand for the first: P' = 1.00001,
    # K = 1.00001 / 1.01001, P = 0.01 K, r - x = 1 - K = 0.01 / 1.01001; over sqrt(P) = 0.0995.
    assert_values(krpo_of([1, 1, 1, 1]), [0.0995, 0.0705, 0.0575, 0.0497], atol=6e-5, rtol=0)
    assert_values(krpo_of([1, 0, 0, 1]), [0.100, -7.048, -5.751, 10.015], atol=6e-4, rtol=0)
    moved = krpo_of([0, 1, 1, 0])
    assert not torch.allclose(moved.sort().values, krpo_of([1, 0, 0, 1]).sort().values, atol=0.1)


def test_krpo_without_process_noise_is_a_weighted_running_mean():
    # Q = 0: x_i = (sum r / R) / (1 / P0 + i / R), P_i = 1 / (1 / P0 + i / R), with P0 = 1.
    rewards, R = [0.3, -1.0, 2.0, 0.5, 0.5], 0.25
    expected, total = [], 0.0
    for i, reward in enumerate(rewards, start=1):
        total += reward
        precision = 1 + i / R
        expected.append((reward - total / R / precision) / (precision**-0.5 + 1e-8))
    got = krpo_of(rewards, process_variance=0.0, observation_variance=R)
    assert_values(got, expected, rtol=1e-12, atol=0)


def test_krpo_that_trusts_no_observation_leaves_the_reward():
    # R -> infinity, Q = 0: x stays 0 and P stays 1.
    rewards = [0.3, -1.0, 2.0]
    got = krpo_of(rewards, process_variance=0.0, observation_variance=1e12)
    assert_values(got, rewards, rtol=1e-6, atol=0)


def test_krpo_with_small_observation_variance_follows_the_running_mean():
    # P0 / R -> infinity, Q = 0: A_i = (r_i - running mean) sqrt(i / R); the first is 0.
    rewards, R = [1.0, 0.0, 0.0, 1.0], 1e-8
    means = [1.0, 1 / 2, 1 / 3, 1 / 2]
    expected = [
        (reward - mean) * math.sqrt(i / R)
        for i, (reward, mean) in enumerate(zip(rewards, means, strict=True), start=1)
    ]
    got = krpo_of(rewards, process_variance=0.0, observation_variance=R)
    # Beside the 1e-8 in the denominator, sqrt(R / i) = 1e-4 / sqrt(i): 2e-4 relative.
    assert_values(got[1:], expected[1:], rtol=3e-4, atol=0)
    assert abs(got[0]) < 1e-3


def test_krpo_innovation_is_standard_normal_for_the_filters_own_model():
    # Truth drawn as the filter assumes: x0 ~ N(0, 1), steps of variance Q, noise of variance R.
    generator = torch.Generator().manual_seed(1)
    Q, R, num = 0.04, 0.25, 20_000
    noise = torch.randn(3, num, 6, generator=generator, dtype=torch.float64)
    start = noise[2, :, :1]
    rewards = start + (noise[0] * Q**0.5).cumsum(1) + noise[1] * R**0.5
    options = {"process_variance": Q, "observation_variance": R}
    everything = torch.ones_like(rewards, dtype=torch.bool)
    surprises = krpo(rewards, everything, innovation=True, **options)
    # Five standard errors of mean, 1 / sqrt(num), and covariance.
    bound = 5 / num**0.5
    assert (surprises.mean(0).abs() < bound).all()
    assert ((torch.cov(surprises.T) - torch.eye(6)).abs() < 2 * bound).all()
    # r - x after is R / (P' + R) of r - x before: the published form is the same number, rescaled.
    posterior = krpo(rewards, everything, **options)
    ratio = posterior / surprises
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-6, atol=0)


def test_krpo_sorted_does_not_depend_on_positions():
    rewards = [0.5, 0.0, 1.0, NAN, 0.2]
    order = [4, 2, 0, 1, 3]
    got = krpo_of(rewards, order="sorted")
    moved = krpo_of([rewards[i] for i in order], order="sorted")
    assert torch.equal(moved.nan_to_num(), got[order].nan_to_num())
    # Reading 0, 0.2, 0.5, 1: what generation order gives to that sequence.
    assert torch.equal(got[[1, 4, 0, 2]], krpo_of([0.0, 0.2, 0.5, 1.0]))


def test_krpo_passes_over_failed_rewards():
    with_nan = of_all([1.0, NAN, 0.0, NAN, 0.5], estimator="krpo")
    without = of_all([1.0, 0.0, 0.5], estimator="krpo")
    assert with_nan[[1, 3]].tolist() == [0.0, 0.0]
    assert torch.equal(with_nan[[0, 2, 4]], without)


def test_krpo_of_kept_rollouts_reads_all_in_generation_order():
    rewards, kept = torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.tensor([[1, 3]])
    got = advantages(rewards, kept, estimator="krpo", source="all")
    assert_values(got[0], [-7.048, 10.015], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process_variance": -1e-5}, "process_variance is -1e-05; it must be finite and >= 0"),
        ({"observation_variance": 0.0}, "observation_variance is 0.0; it must be finite and > 0"),
        ({"observation_variance": NAN}, "observation_variance is nan"),
        ({"order": "random"}, r"order is 'random'; choose one of \['generation', 'sorted'\]"),
    ],
)
def test_unusable_krpo_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        krpo_of([0.0, 1.0], **options)


# Masks: any number of kept rollouts per group.


def random_mask_case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    rewards_PN = torch.randn(6, 9, generator=generator, dtype=dtype).round(decimals=1)
    rewards_PN[2, 3] = NAN
    is_kept_PN = torch.rand(6, 9, generator=generator) < 0.5
    is_kept_PN[4] = False
    is_kept_PN[5] = torch.arange(9) == 2
    is_kept_PN[0] = True
    return rewards_PN, is_kept_PN


CASES = [
    (estimator, source)
    for estimator in ESTIMATORS
    for source in ("kept", "all")
    if (estimator, source) != ("krpo", "kept")
]


@pytest.mark.parametrize(("estimator", "source"), CASES)
def test_mask_equals_indices_group_by_group(estimator, source):
    rewards_PN, is_kept_PN = random_mask_case()
    got_PN = masked_advantages(rewards_PN, is_kept_PN, estimator=estimator, source=source)
    assert got_PN.isfinite().all()
    assert (got_PN[~is_kept_PN] == 0).all()
    for reward_N, is_kept_N, got_N in zip(rewards_PN, is_kept_PN, got_PN, strict=True):
        kept_1M = is_kept_N.nonzero().T
        expected = advantages(reward_N[None], kept_1M, estimator=estimator, source=source)
        torch.testing.assert_close(got_N[is_kept_N], expected[0])
    assert got_PN.abs().sum() > 0


def test_mask_scales_by_the_batch():
    # Kept (0, 2) and (10): all together mean 4, squares 16 + 4 + 36 = 56, variance 28.
    rewards = torch.tensor([[0.0, 2.0, 99.0], [10.0, 99.0, 99.0]])
    is_kept = torch.tensor([[True, True, False], [True, False, False]])
    one = 1 / (math.sqrt(28) + 1e-4)
    got = masked_advantages(rewards, is_kept, scale="batch")
    torch.testing.assert_close(got, torch.tensor([[-one, one, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("weights", ["none", "stratified"])
def test_a_mask_that_keeps_the_same_number_gives_what_indices_give(weights):
    rewards_PN, _ = random_mask_case()
    kept_PM = torch.tensor([[0, 2, 5, 8]]).expand(6, -1)
    is_kept_PN = torch.zeros(6, 9, dtype=torch.bool).scatter(1, kept_PM, True)
    options = {"source": "all", "weights": weights}
    got_PN = masked_advantages(rewards_PN, is_kept_PN, **options)
    torch.testing.assert_close(
        got_PN.gather(1, kept_PM), advantages(rewards_PN, kept_PM, **options)
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_dtype_and_half_precision(estimator, dtype):
    rewards = torch.tensor([[0, 0, 0, 1], [5, 1, 2, 3]])
    every = torch.arange(4).expand(2, -1)
    options = {"estimator": estimator, "source": "all", "weights": "stratified"}
    got = advantages(rewards.to(dtype), every, **options)
    assert got.dtype == (torch.float32 if dtype == torch.int64 else dtype)
    exact = advantages(rewards.double(), every, **options).to(got.dtype)
    # KRPO's filter runs through the group in float32; the others round a few times at most.
    torch.testing.assert_close(got, exact, rtol=4 * torch.finfo(got.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shift_moves_no_estimator_but_krpo(estimator):
    rewards_PN, is_kept_PN = random_mask_case()
    options = {"estimator": estimator, "source": "all"}
    before = masked_advantages(rewards_PN, is_kept_PN, **options)
    after = masked_advantages(rewards_PN + 5, is_kept_PN, **options)
    assert torch.allclose(before, after) == (estimator != "krpo")


def test_unusable_settings_are_named():
    rewards, is_kept = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"estimator is 'ppo'; choose one of.*'rloo'"):
        masked_advantages(rewards, is_kept, estimator="ppo")
    with pytest.raises(ValueError, match="weights is 'all'; choose one of"):
        masked_advantages(rewards, is_kept, weights="all")
    with pytest.raises(ValueError, match=r"estimator='krpo' counts all.*pass source='all'"):
        masked_advantages(rewards, is_kept, estimator="krpo")
    with pytest.raises(ValueError, match="weights='stratified' counts all"):
        advantages(rewards, torch.zeros(2, 1, dtype=torch.long), weights="stratified")
    with pytest.raises(ValueError, match=r"rewards have shape \(2, 3\) and the mask \(2, 2\)"):
        masked_advantages(rewards, is_kept[:, :2])
    with pytest.raises(ValueError, match=r"the mask has dtype torch.int64"):
        masked_advantages(rewards, is_kept.long())


def test_docstring_example_is_true():
    rewards = torch.tensor([[0.0, 0.0, 4.0], [1.0, 2.0, 3.0]])
    is_kept = torch.tensor([[True, False, True], [False, False, False]])
    got = masked_advantages(rewards, is_kept, estimator="dr_grpo")
    assert got.tolist() == [[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
