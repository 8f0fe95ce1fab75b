"""Advantages of the kept rollouts: how much better each one is than its group.

An estimator maps rewards and the mask of those that it counts to an advantage for every position.
To add one, write one function and add it to `ESTIMATORS`.

Shape letters: P prompts, N rollouts sampled per prompt, M rollouts kept per prompt, R rollouts per
prompt that an estimator sees (M or N).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from podsrl.core.kalman import krpo
from podsrl.core.stratified import stratified_weights

# TRL's constant. The denominator is std + EPSILON, so a group with almost equal rewards gets small
# advantages instead of amplified noise.
EPSILON = 1e-4

SOURCES = ("all", "kept")
SCALES = ("group", "batch", "none")
WEIGHTS = ("none", "stratified")


def advantages(
    rewards_PN: Tensor,
    kept_PM: Tensor,
    *,
    source: str = "kept",
    estimator: str = "grpo",
    weights: str = "none",
    **options: Any,
) -> Tensor:
    """Return the advantage of every kept rollout.

    With the estimator `grpo`, A = (r - mean) / (std + 1e-4). The mean is the group's. The standard
    deviation (unbiased) is the group's for `scale="group"`, that of all groups together for
    `"batch"`, and the division is left out for `"none"`. Both come from the kept rewards for
    `source="kept"` (PODS, arXiv 2504.13818, appendix A.3) and from all N rewards for `"all"`. The
    arithmetic is that of TRL 1.16, `GRPOTrainer._generate_and_score_completions`. The functions in
    `ESTIMATORS` say what the other estimators compute.

    Args:
        rewards_PN: (P, N) rewards, finite or NaN (no reward could be computed); any real dtype.
        kept_PM: (P, M) int64 indices into the N rollouts of each group, as `podsrl.select` returns.
        source: one of `SOURCES`: whose rewards the estimator counts.
        estimator: a key of `ESTIMATORS`.
        weights: one of `WEIGHTS`; `"stratified"` multiplies by `stratified_weights`.
        options: the estimator's own, by name, for example `scale` of `grpo`.

    Returns:
        (P, M) advantages on the rewards' device and in their dtype (integers become the default
        float dtype). Half precision is computed in float32 and rounded once.

    Edge cases:
        NaN rewards count in no mean and in no standard deviation, and their advantage is 0.
        A group whose source holds one scored rollout has no spread: its advantage is 0.
        A constant group gets 0, up to the rounding of its mean (not from `krpo`).
        With N = M both sources give the same.

    Raises:
        ValueError: an unknown source, estimator, weighting or scale; `krpo` or stratified weights
            with the source "kept"; rewards or indices that are not two-dimensional, or differ in
            their number of groups.

    Example:
        >>> rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
        >>> advantages(rewards, torch.tensor([[0, 3]]))  # (0 - 1/2) / sqrt(1/2), and its mirror
        tensor([[-0.7070,  0.7070]])
    """
    _check_settings(source, estimator, weights)
    _check_shapes(rewards_PN, kept_PM)
    wide_PN, dtype = _widened(rewards_PN)
    # Gathered first, the kept rewards are summed in TRL's order: the same bits, not only values.
    counted_PR = wide_PN.gather(1, kept_PM) if source == "kept" else wide_PN
    every_PR = torch.ones_like(counted_PR, dtype=torch.bool)
    result_PR = ESTIMATORS[estimator](counted_PR, every_PR, **options)
    result_PM = result_PR if source == "kept" else result_PR.gather(1, kept_PM)
    if weights == "stratified":
        is_kept_PN = torch.zeros_like(wide_PN, dtype=torch.bool).scatter(1, kept_PM, True)
        result_PM = result_PM * stratified_weights(wide_PN, is_kept_PN).gather(1, kept_PM)
    return torch.nan_to_num(result_PM, nan=0.0).to(dtype)


def masked_advantages(
    rewards_PN: Tensor,
    is_kept_PN: Tensor,
    *,
    source: str = "kept",
    estimator: str = "grpo",
    weights: str = "none",
    **options: Any,
) -> Tensor:
    """Return the advantages of kept rollouts where groups keep different numbers of them.

    What `advantages` computes, for a (P, N) boolean mask instead of indices: (P, N), 0 where a
    rollout is not kept. A group that keeps none has no advantages; one that keeps a single rollout
    gets 0 from its own rewards alone. Equal to `advantages` up to the rounding of sums.

    Raises `ValueError` as `advantages` does, and for a mask that is not boolean.

    Example:
        >>> rewards = torch.tensor([[0.0, 0.0, 4.0], [1.0, 2.0, 3.0]])
        >>> is_kept = torch.tensor([[True, False, True], [False, False, False]])
        >>> masked_advantages(rewards, is_kept, estimator="dr_grpo")  # mean of 0 and 4 is 2
        tensor([[-2.,  0.,  2.],
                [ 0.,  0.,  0.]])
    """
    _check_settings(source, estimator, weights)
    if rewards_PN.ndim != 2 or rewards_PN.shape != is_kept_PN.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards_PN.shape)} and the mask "
            f"{tuple(is_kept_PN.shape)}; pass (P, N) twice: one row per prompt."
        )
    if is_kept_PN.dtype != torch.bool:
        raise ValueError(
            f"the mask has dtype {is_kept_PN.dtype}, but torch.bool is needed; pass kept indices "
            "to `advantages`."
        )
    wide_PN, dtype = _widened(rewards_PN)
    counted_PN = is_kept_PN if source == "kept" else torch.ones_like(is_kept_PN)
    result_PN = ESTIMATORS[estimator](wide_PN, counted_PN, **options)
    if weights == "stratified":
        result_PN = result_PN * stratified_weights(wide_PN, is_kept_PN)
    return torch.nan_to_num(result_PN, nan=0.0).masked_fill(~is_kept_PN, 0.0).to(dtype)


def grpo(rewards_PR: Tensor, counted_PR: Tensor, *, scale: str = "group") -> Tensor:
    """Rewards minus their group's mean, over a standard deviation (arXiv 2402.03300, section 4.1).

    Mean and deviation are those of the counted rewards that are not NaN; `scale` as in
    `advantages`. Float (P, R) and bool (P, R) to float (P, R). Raises `ValueError` for a scale
    that is not one of `SCALES`.

    Example: (0, 0, 0, 1), all counted: mean 1/4, deviation 1/2, so (-0.5, -0.5, -0.5, 1.5).
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; choose one of {list(SCALES)}.")
    baseline_PR = rewards_PR.masked_fill(~counted_PR, torch.nan)
    centred_PR = rewards_PR - baseline_PR.nanmean(dim=1, keepdim=True)
    if scale == "none":
        return centred_PR
    return centred_PR / (_nan_std(baseline_PR, of_batch=scale == "batch") + EPSILON)


def dr_grpo(rewards_PR: Tensor, counted_PR: Tensor) -> Tensor:
    """Rewards minus their group's mean, undivided (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Example: (0, 0, 0, 1), all counted: (-0.25, -0.25, -0.25, 0.75).
    """
    return grpo(rewards_PR, counted_PR, scale="none")


def rloo(rewards_PR: Tensor, counted_PR: Tensor) -> Tensor:
    """Rewards minus the mean of the other counted ones of their group (arXiv 2402.14740).

    A_i = r_i - mean_{j != i} r_j, which is c / (c - 1) times the distance from the mean of all c
    counted ones. NaN for a reward that has no other beside it.

    Example: (0, 0, 0, 1), all counted: the others' means are 1/3, 1/3, 1/3 and 0, so
    (-1/3, -1/3, -1/3, 1).
    """
    scored_PR = counted_PR & ~rewards_PR.isnan()
    count_P1 = scored_PR.sum(dim=1, keepdim=True).to(rewards_PR.dtype)
    return dr_grpo(rewards_PR, counted_PR) * (count_P1 / (count_P1 - scored_PR.to(count_P1.dtype)))


def _nan_std(values_PR: Tensor, *, of_batch: bool = False) -> Tensor:
    """Unbiased deviation of each row, or of all, without NaNs, (P, 1); NaN below two values."""
    if of_batch:
        values_PR = values_PR.reshape(1, -1)
    deviation_PR = values_PR - values_PR.nanmean(dim=1, keepdim=True)
    count_P1 = (~values_PR.isnan()).sum(dim=1, keepdim=True).to(values_PR.dtype)
    # Bessel's correction. One value gives 0 * inf, none gives NaN / NaN: NaN both times.
    return (deviation_PR.square().nanmean(dim=1, keepdim=True) * (count_P1 / (count_P1 - 1))).sqrt()


def _widened(rewards_PN: Tensor) -> tuple[Tensor, torch.dtype]:
    """Rewards in at least float32, and the dtype that results are rounded to."""
    if not rewards_PN.is_floating_point():
        rewards_PN = rewards_PN.to(torch.get_default_dtype())
    return rewards_PN.to(torch.promote_types(rewards_PN.dtype, torch.float32)), rewards_PN.dtype


def _check_shapes(rewards_PN: Tensor, kept_PM: Tensor) -> None:
    if rewards_PN.ndim != 2 or kept_PM.ndim != 2 or len(rewards_PN) != len(kept_PM):
        raise ValueError(
            f"rewards have shape {tuple(rewards_PN.shape)} and kept indices {tuple(kept_PM.shape)};"
            " pass (P, N) and (P, M) with the same P: one row per prompt."
        )


def _check_settings(source: str, estimator: str, weights: str) -> None:
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; choose one of {list(SOURCES)}.")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; choose one of {list(ESTIMATORS)}.")
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; choose one of {list(WEIGHTS)}.")
    if source != "all":
        needing = [
            *([f"estimator={estimator!r}"] if estimator in NEEDS_ALL else []),
            *([f"weights={weights!r}"] if weights == "stratified" else []),
        ]
        if needing:
            raise ValueError(
                f"{' and '.join(needing)} counts all sampled rollouts, but source is {source!r}; "
                "pass source='all'."
            )


Estimator = Callable[..., Tensor]

ESTIMATORS: dict[str, Estimator] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "krpo": krpo,
}

# A filter over the kept rollouts alone would see extremes where it expects the policy's rewards.
NEEDS_ALL = frozenset({"krpo"})
