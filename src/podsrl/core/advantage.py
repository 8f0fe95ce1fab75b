"""Advantages of the kept rollouts: how much better each one is than its group.

Shape letters: P prompts, N rollouts sampled per prompt, M rollouts kept per prompt, R rewards per
prompt that the baseline is taken from (M or N).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# TRL's constant. The denominator is std + EPSILON, so a group with almost equal rewards gets small
# advantages instead of amplified noise.
EPSILON = 1e-4

SCALES = ("group", "batch", "none")


def advantages(
    rewards_PN: Tensor, kept_PM: Tensor, *, source: str = "kept", scale: str = "group"
) -> Tensor:
    """Return the advantage of every kept rollout.

    A = (r - mean) / (std + 1e-4). The mean is the group's. The standard deviation (unbiased) is the
    group's for `scale="group"`, that of all groups together for `"batch"`, and the division is left
    out for `"none"` (Dr. GRPO, arXiv 2503.20783). Both come from the kept rewards for
    `source="kept"` (PODS, arXiv 2504.13818, appendix A.3) and from all N rewards for `"all"`. The
    arithmetic is that of TRL 1.16, `GRPOTrainer._generate_and_score_completions`.

    Args:
        rewards_PN: (P, N) rewards, finite or NaN (no reward could be computed); any real dtype.
        kept_PM: (P, M) int64 indices into the N rollouts of each group, as `podsrl.select` returns.
        source: a key of `ESTIMATORS`: whose rewards give mean and standard deviation.
        scale: one of `SCALES`: which standard deviation divides.

    Returns:
        (P, M) advantages on the rewards' device and in their dtype (integers become the default
        float dtype). Half precision is computed in float32 and rounded once.

    Edge cases:
        NaN rewards count in no mean and in no standard deviation, and their advantage is 0.
        A group whose source holds one scored rollout has no spread: its advantage is 0.
        A constant group gets 0, up to the rounding of its mean.
        With N = M both sources give the same.

    Raises:
        ValueError: an unknown source or scale; rewards or indices that are not two-dimensional, or
            differ in their number of groups.

    Example:
        >>> rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
        >>> advantages(rewards, torch.tensor([[0, 3]]))  # (0 - 1/2) / sqrt(1/2), and its mirror
        tensor([[-0.7070,  0.7070]])
    """
    if source not in ESTIMATORS:
        raise ValueError(f"source is {source!r}; choose one of {sorted(ESTIMATORS)}.")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; choose one of {list(SCALES)}.")
    if rewards_PN.ndim != 2 or kept_PM.ndim != 2 or len(rewards_PN) != len(kept_PM):
        raise ValueError(
            f"rewards have shape {tuple(rewards_PN.shape)} and kept indices {tuple(kept_PM.shape)};"
            " pass (P, N) and (P, M) with the same P: one row per prompt."
        )
    if not rewards_PN.is_floating_point():
        rewards_PN = rewards_PN.to(torch.get_default_dtype())
    return ESTIMATORS[source](rewards_PN, kept_PM, scale)


def from_kept(rewards_PN: Tensor, kept_PM: Tensor, scale: str) -> Tensor:
    """Advantages of the kept rollouts against the kept rewards of their group."""
    rewards_PM = rewards_PN.gather(1, kept_PM)
    return normalise(rewards_PM, rewards_PM, scale)


def from_all(rewards_PN: Tensor, kept_PM: Tensor, scale: str) -> Tensor:
    """Advantages of the kept rollouts against all rewards of their group."""
    return normalise(rewards_PN.gather(1, kept_PM), rewards_PN, scale)


def normalise(rewards_PM: Tensor, baseline_PR: Tensor, scale: str) -> Tensor:
    """Rewards minus the baseline's group means, over its standard deviation; NaN becomes 0."""
    wide = torch.promote_types(rewards_PM.dtype, torch.float32)
    baseline_PR = baseline_PR.to(wide)
    result_PM = rewards_PM.to(wide) - baseline_PR.nanmean(dim=1, keepdim=True)
    if scale != "none":
        deviation = nan_std(baseline_PR if scale == "group" else baseline_PR.reshape(1, -1))
        result_PM = result_PM / (deviation + EPSILON)
    return torch.nan_to_num(result_PM, nan=0.0).to(rewards_PM.dtype)


def nan_std(values_PR: Tensor) -> Tensor:
    """Unbiased standard deviation of each row without its NaNs, (P, 1); NaN below two values."""
    deviation_PR = values_PR - values_PR.nanmean(dim=1, keepdim=True)
    count_P1 = (~values_PR.isnan()).sum(dim=1, keepdim=True).to(values_PR.dtype)
    # Bessel's correction. One value gives 0 * inf, none gives NaN / NaN: NaN both times.
    return (deviation_PR.square().nanmean(dim=1, keepdim=True) * (count_P1 / (count_P1 - 1))).sqrt()


ESTIMATORS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "kept": from_kept,
    "all": from_all,
}
