"""What stopping early saved, and whom it preferred, in numbers.

Shape letters: P groups, N rollouts per group, M kept rollouts, T lengths 0..max_length.
"""

import torch
from torch import Tensor


def early_stop_metrics(
    rewards_PN: Tensor,
    kept_PM: Tensor,
    *,
    has_ended_PN: Tensor,
    length_PN: Tensor,
    max_length: int,
) -> dict[str, Tensor]:
    """Scalar tensors on what stopping saved and whom it preferred; docs/metrics.md defines them.

    length_PN: tokens drawn of each rollout. With lengths 2, 4 and 3, the last one stopped, and
    max_length 8, at most 5 more tokens would have been drawn, 5 / (9 + 5) = 0.357 of all; by the
    two others' lengths one more, 1 / (9 + 1) = 0.1.
    """
    num_drawn = length_PN.sum().double()
    missing_PN = tokens_to_come(length_PN, has_ended_PN, max_length=max_length)
    at_most_PN = (max_length - length_PN.double()).masked_fill(has_ended_PN, 0)
    failed_PN = rewards_PN.isnan() & has_ended_PN
    return {
        "pods/frac_rollouts_stopped": (~has_ended_PN).double().mean(),
        "pods/frac_tokens_saved": missing_PN.sum() / (num_drawn + missing_PN.sum()),
        "pods/frac_tokens_saved_at_most": at_most_PN.sum() / (num_drawn + at_most_PN.sum()),
        "pods/finished_mean_length": length_PN[has_ended_PN].double().mean(),
        "pods/kept_mean_length": length_PN.gather(1, kept_PM).double().mean(),
        "pods/frac_no_reward": failed_PN.sum() / has_ended_PN.sum(),
    }


def tokens_to_come(length_PN: Tensor, has_ended_PN: Tensor, *, max_length: int) -> Tensor:
    """Estimate, per rollout, the tokens that it was still to have when stopped; 0 if it had ended.

    From the share S(t) of rollouts longer than t tokens, estimated from all P * N by the product
    over s <= t of 1 - (ended with s tokens) / (had s tokens or more) (Kaplan and Meier 1958), a
    rollout stopped after c tokens has sum over t = c..max_length - 1 of S(t) / S(c) to come. It
    takes stopped rollouts to go on like those of the batch that went on; beyond the longest one
    that is known to have ended it counts up to max_length.

    Args:
        length_PN: tokens drawn, whole numbers from 1 to max_length, any real dtype.
        has_ended_PN: bool; False for stopped rollouts.

    Returns:
        float64 (P, N).

    Example: lengths 2 and 4 ended, 3 stopped, at most 8 tokens. Of those with 3 tokens or more none
    ended at 3, and all at 4: S(3) / S(3) = 1, S(4) = 0, so 1 token to come.
    """
    length_PN = length_PN.long()
    every_T = torch.bincount(length_PN.flatten(), minlength=max_length + 1).double()
    ended_T = torch.bincount(length_PN[has_ended_PN], minlength=max_length + 1).double()
    at_risk_T = every_T.flip(0).cumsum(0).flip(0)
    survival_T = (1 - ended_T / at_risk_T.clamp(min=1)).cumprod(0)
    to_come_T = survival_T[:-1].flip(0).cumsum(0).flip(0) / survival_T[:-1]
    to_come_T = torch.nn.functional.pad(to_come_T, (0, 1))
    return to_come_T[length_PN].masked_fill(has_ended_PN, 0.0)
