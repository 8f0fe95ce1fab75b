"""Objectives that regress log-ratios on rewards: one residual, five papers.

    u = r - beta * log(pi / pi_ref)        r reward, log-ratio summed over the rollout's tokens

At the optimum of "reward minus beta * KL to the reference", u is the same for all rollouts of a
prompt. Each objective here is a way to ask for that, and all are valid whatever policy the rollouts
came from. So a selection rule does not move the optimum where the policy can represent it; where
it cannot, errors on the kept rollouts (for max_variance: the extremes) weigh more.

Shape letters: B kept rows, T completion tokens, K rollouts of the reference per prompt.
"""

from torch import Tensor

from podsrl.core.objective_batch import KeptBatch

Result = tuple[Tensor, dict[str, Tensor]]


def residual(batch: KeptBatch, beta: float) -> Tensor:
    """u = r - beta * log(pi / pi_ref) of each row, (B,); NaN where the reward is.

    Example: reward 1, log-ratio 0.5, beta 0.1: 0.95.
    """
    log_ratio_B = batch.log_ratio_B()
    return batch.rewards_B.to(log_ratio_B.dtype) - beta * log_ratio_B


def agro(batch: KeptBatch, *, beta: float) -> Result:
    """Half the variance of u within each group.

    Any-Generation Reward Optimization, arXiv 2503.19612 (read in notes, without code). Its gradient
    is -beta times the leave-one-out policy gradient of u. The paper's on-policy form adds a term
    for the gradient through sampling; a kept subset is not a sample of the policy, so that term is
    left out: the off-policy form.

    Args:
        batch: with reference log-probs; a group's kept rows complete.
        beta: > 0, in units of reward per nat.

    Returns:
        The loss, mean over rows (a group of k rows weighs k; unbiased variance), and metrics.

    Edge cases:
        Rows without reward or tokens are left out. A group with one other row adds 0.

    Example: rewards (0, 1), log-ratios 0: half of the variance 1/2, so 0.25.
    """
    u_B = residual(batch, beta)
    loss = batch.mean_over_rows(batch.group_variance(u_B)) / 2
    return loss, {"residual_variance": 2 * loss.detach()}
