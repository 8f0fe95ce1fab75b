"""Advantages against hand arithmetic, against TRL's own helpers, and under invariances."""

import math

import pytest
import torch

from podsrl.core.advantage import SCALES, SOURCES, advantages

NAN = float("nan")


def every(num_rollouts: int, num_prompts: int = 1) -> torch.Tensor:
    """Indices that keep everything."""
    return torch.arange(num_rollouts).expand(num_prompts, -1)


def random_case(seed: int, num_prompts: int = 5, num_rollouts: int = 12, num_kept: int = 4):
    generator = torch.Generator().manual_seed(seed)
    rewards_PN = torch.randn(num_prompts, num_rollouts, generator=generator)
    kept_PM = torch.rand(num_prompts, num_rollouts, generator=generator).argsort(dim=1)[
        :, :num_kept
    ]
    return rewards_PN, kept_PM.sort(dim=1).values


def trl_advantages(rewards_PM: torch.Tensor, scale: str) -> torch.Tensor:
    """TRL's steps on flat rewards, with TRL's own nanstd."""
    from trl.trainer.utils import nanstd

    group = rewards_PM.shape[1]
    flat = rewards_PM.reshape(-1)
    mean = torch.nanmean(flat.view(-1, group), dim=1).repeat_interleave(group)
    if scale == "batch":
        std = nanstd(flat).expand_as(flat)
    else:
        std = nanstd(flat.view(-1, group), dim=1).repeat_interleave(group)
    result = flat - mean
    if scale != "none":
        result = result / (std + 1e-4)
    return torch.nan_to_num(result, nan=0.0).view(-1, group)


@pytest.mark.parametrize("num_kept", [2, 4, 16])
def test_balanced_binary_group_has_equal_magnitudes(num_kept):
    # m/2 ones and m/2 zeros: |r - mean| = 1/2, unbiased variance = m (1/4) / (m - 1), so
    # |A| = sqrt((m - 1) / m) before epsilon: m = 2 0.7071, m = 4 0.8660, m = 16 0.9682.
    rewards = torch.tensor([[0.0] * (num_kept // 2) + [1.0] * (num_kept // 2)], dtype=torch.float64)
    got = advantages(rewards, every(num_kept))
    std = 0.5 * math.sqrt(num_kept / (num_kept - 1))
    expected = 0.5 / (std + 1e-4)
    assert expected == pytest.approx(math.sqrt((num_kept - 1) / num_kept), rel=3e-4)
    torch.testing.assert_close(got, (2 * rewards - 1) * expected)


def test_one_right_of_four():
    # (0, 0, 0, 1): mean 1/4, squares 3/16 + 9/16 = 3/4, variance (3/4) / 3 = 1/4, std 1/2.
    got = advantages(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), every(4))
    low, high = -0.25 / 0.5001, 0.75 / 0.5001
    torch.testing.assert_close(got, torch.tensor([[low, low, low, high]]))


def test_source_all_takes_mean_and_spread_of_dropped_rollouts_too():
    # Kept 0 and 1 of (0, 0, 0, 1): kept mean 1/2, std sqrt(1/2); all mean 1/4, std 1/2.
    rewards, kept = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.tensor([[1, 3]])
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    torch.testing.assert_close(advantages(rewards, kept), torch.tensor([[-half, half]]))
    torch.testing.assert_close(
        advantages(rewards, kept, source="all"), torch.tensor([[-0.25 / 0.5001, 0.75 / 0.5001]])
    )


def test_scale_none_only_centres():
    # Kept (1, 6): mean 3.5. All (1, 2, 6): mean 3.
    rewards, kept = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0, 2]])
    assert advantages(rewards, kept, scale="none").tolist() == [[-2.5, 2.5]]
    assert advantages(rewards, kept, scale="none", source="all").tolist() == [[-2.0, 3.0]]


def test_scale_batch_uses_one_spread_for_all_groups_but_group_means():
    # Groups (0, 2) and (10, 10): means 1 and 10; batch (0, 2, 10, 10): mean 5.5,
    # squares 30.25 + 12.25 + 20.25 + 20.25 = 83, variance 83 / 3.
    rewards = torch.tensor([[0.0, 2.0], [10.0, 10.0]])
    one = 1 / (math.sqrt(83 / 3) + 1e-4)
    got = advantages(rewards, every(2, 2), scale="batch")
    torch.testing.assert_close(got, torch.tensor([[-one, one], [0.0, 0.0]]))


def test_scale_batch_from_all_rewards_counts_dropped_ones():
    # All (0, 1, 2): variance (1 + 0 + 1) / 2 = 1; kept (0, 1), mean over all 1.
    rewards, kept = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0, 1]])
    got = advantages(rewards, kept, scale="batch", source="all")
    torch.testing.assert_close(got, torch.tensor([[-1 / 1.0001, 0.0]]))


def test_nan_counts_nowhere_and_gets_zero():
    # Scored (0, 2): mean 1, variance 2.
    got = advantages(torch.tensor([[0.0, NAN, 2.0]]), every(3))
    one = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(got, torch.tensor([[-one, 0.0, one]]))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", [[NAN, 3.0, NAN], [NAN, NAN, NAN], [2.0, 2.0, 2.0]])
def test_groups_without_spread_get_zero(source, scale, row):
    rewards = torch.tensor([row, [0.0, 1.0, 5.0]])
    got = advantages(rewards, every(3, 2), source=source, scale=scale)
    assert got[0].tolist() == [0.0, 0.0, 0.0]
    assert (got[1] != 0).all()


def test_one_kept_rollout_learns_only_from_all():
    # Kept alone: nothing to compare with. Of all (0, 4): (4 - 2) / (sqrt(8) + 1e-4).
    rewards, kept = torch.tensor([[0.0, 4.0]]), torch.tensor([[1]])
    assert advantages(rewards, kept).item() == 0.0
    expected = 2 / (math.sqrt(8) + 1e-4)
    assert advantages(rewards, kept, source="all").item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", SCALES)
def test_equals_trl_bit_for_bit(scale):
    for seed in range(20):
        rewards_PN, kept_PM = random_case(seed)
        rewards_PN[seed % 5, : seed % 12] = NAN
        expected = trl_advantages(rewards_PN.gather(1, kept_PM), scale)
        assert torch.equal(advantages(rewards_PN, kept_PM, scale=scale), expected)
        expected = trl_advantages(rewards_PN, scale).gather(1, kept_PM)
        assert torch.equal(advantages(rewards_PN, kept_PM, scale=scale, source="all"), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_source_is_irrelevant_when_all_are_kept(scale):
    rewards_PN, _ = random_case(3)
    kept = every(12, 5)
    from_kept = advantages(rewards_PN, kept, scale=scale)
    assert torch.equal(from_kept, advantages(rewards_PN, kept, scale=scale, source="all"))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("scale", SCALES)
def test_shift_and_order_do_not_matter(source, scale):
    rewards_PN, kept_PM = random_case(4)
    rewards_PN = rewards_PN.double()
    expected = advantages(rewards_PN, kept_PM, source=source, scale=scale)
    shifted = advantages(rewards_PN + 1000, kept_PM, source=source, scale=scale)
    torch.testing.assert_close(shifted, expected)
    flipped = advantages(rewards_PN.flip(1), 11 - kept_PM, source=source, scale=scale)
    torch.testing.assert_close(flipped, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_stretching_rewards_cancels_but_for_epsilon_and_scale_none(source):
    rewards_PN, kept_PM = random_case(5)
    once = advantages(rewards_PN, kept_PM, source=source)
    torch.testing.assert_close(
        advantages(7 * rewards_PN, kept_PM, source=source), once, rtol=1e-3, atol=0
    )
    once = advantages(rewards_PN, kept_PM, source=source, scale="none")
    torch.testing.assert_close(
        advantages(7 * rewards_PN, kept_PM, source=source, scale="none"), 7 * once
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]
)
def test_dtype_is_kept_and_half_precision_rounds_once(dtype):
    rewards = torch.tensor([[0, 0, 0, 1], [5, 1, 2, 3]])
    got = advantages(rewards.to(dtype), every(4, 2))
    assert got.dtype == (torch.float32 if dtype == torch.int64 else dtype)
    exact = advantages(rewards.double(), every(4, 2)).to(got.dtype)
    # float32 arithmetic before the one rounding leaves at most the last bit of the result.
    torch.testing.assert_close(got, exact, rtol=torch.finfo(got.dtype).eps, atol=0)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    rewards_PN, kept_PM = random_case(6)
    got = advantages(rewards_PN.cuda(), kept_PM.cuda())
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), advantages(rewards_PN, kept_PM))


def test_unusable_arguments_are_named():
    rewards, kept = torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"source is 'some'; choose one of \['all', 'kept'\]"):
        advantages(rewards, kept, source="some")
    with pytest.raises(ValueError, match="scale is 'std'; choose one of"):
        advantages(rewards, kept, scale="std")
    with pytest.raises(ValueError, match=r"shape \(3,\) and kept indices \(2, 2\)"):
        advantages(rewards[0], kept)
    with pytest.raises(ValueError, match="same P"):
        advantages(rewards, kept[:1])


def test_docstring_example_is_true():
    got = advantages(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.tensor([[0, 3]]))
    assert str(got) == "tensor([[-0.7070,  0.7070]])"
