"""Weights by which kept rollouts stand for all sampled ones that have the same reward.

Shape letters: P prompts, N rollouts sampled per prompt.
"""

import torch
from torch import Tensor

from podsrl.core.order import dense_ranks


def stratified_weights(rewards_PN: Tensor, is_kept_PN: Tensor) -> Tensor:
    """Return weights that make kept rollouts stand for all sampled ones of their reward.

    w = (n_c / n) / (m_c / m) for a kept rollout whose reward n_c of the n sampled and m_c of the
    kept rollouts of its group have; 0 for one that is not kept. m is the mean number kept per
    group, which is every group's where all keep the same. Given the rewards, a rule that breaks
    ties at random keeps each rollout of class c with probability m_c / n_c, so the mean over tie
    orders of (1/m) sum_kept w A g is (1/n) sum_all A g, for any A and g that are functions of the
    rollout and the group's rewards.

    A class of which none is kept has nobody to stand for it: its part of the sum is missing, and
    the update is biased by it. `frac_unrepresented` counts these rollouts. With continuous rewards
    every rollout is its own class and w is the constant m / n: nothing is corrected.

    Args:
        rewards_PN: (P, N) float rewards; classes are rewards equal to the last bit. Every NaN is a
            class of its own (its advantage is 0).
        is_kept_PN: (P, N) bool.

    Returns:
        (P, N) weights in the rewards' dtype.

    Example:
        >>> is_kept = torch.tensor([[True, False, False, True]])
        >>> stratified_weights(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), is_kept)  # 3/4, 1/4 over 1/2
        tensor([[1.5000, 0.0000, 0.0000, 0.5000]])
    """
    sampled_PN, kept_PN = _class_sizes(rewards_PN, is_kept_PN)
    num_prompts, num_rollouts = rewards_PN.shape
    num_kept = is_kept_PN.sum().double() / num_prompts
    weights_PN = (sampled_PN.double() / num_rollouts) / (kept_PN.double() / num_kept)
    return weights_PN.masked_fill(~is_kept_PN, 0.0).to(rewards_PN.dtype)


def frac_unrepresented(rewards_PN: Tensor, is_kept_PN: Tensor) -> Tensor:
    """Share of the scored rollouts whose reward no kept rollout of their group has, a scalar.

    What stratified weights cannot make up for. Rewards (0, 0, 1, 2), the first and the last kept:
    the class 1 is missing, 1/4. NaN when nothing was scored.
    """
    _, kept_PN = _class_sizes(rewards_PN, is_kept_PN)
    scored_PN = ~rewards_PN.isnan()
    return (scored_PN & (kept_PN == 0)).sum().double() / scored_PN.sum()


def _class_sizes(rewards_PN: Tensor, is_kept_PN: Tensor) -> tuple[Tensor, Tensor]:
    """For each rollout, how many sampled and how many kept ones of its group have its reward."""
    class_PN = dense_ranks(rewards_PN)
    empty_PN = torch.zeros_like(class_PN)
    sampled_PN = empty_PN.scatter_add(1, class_PN, torch.ones_like(class_PN))
    kept_PN = empty_PN.scatter_add(1, class_PN, is_kept_PN.long())
    return sampled_PN.gather(1, class_PN), kept_PN.gather(1, class_PN)
