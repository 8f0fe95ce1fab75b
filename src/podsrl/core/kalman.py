"""KRPO: advantages against a Kalman filter that reads a group's rewards one after another.

Shape letters: P prompts, R rollouts per prompt.
"""

import math

import torch
from torch import Tensor

# The constant in the denominator of the published code.
EPSILON = 1e-8

ORDERS = ("generation", "sorted")


def krpo(
    rewards_PR: Tensor,
    counted_PR: Tensor,
    *,
    process_variance: float = 1e-5,
    observation_variance: float = 1e-2,
    order: str = "generation",
    innovation: bool = False,
) -> Tensor:
    """Rewards against a Kalman filter's running estimate of their group (KRPO, arXiv 2505.07527).

    The filter starts at x = 0, P = 1 in each group and reads its rewards one after another, with
    Q = `process_variance` and R = `observation_variance`: P' = P + Q, K = P' / (P' + R),
    x <- x + K (r - x), P <- (1 - K) P'. A = (r - x) / (sqrt(P) + 1e-8), with x and P after r was
    read, as in the authors' code (billhhh/KRPO_LLMs_RL, train.py). There the baseline holds the
    reward that it judges, and a constant group has advantages: (1, 1) gets (0.0995, 0.0705).
    `innovation=True` takes the filter's own standardised innovation instead, (r - x) / sqrt(P' + R)
    with x from before.

    `order="generation"` reads positions 0, 1, ..., R - 1. `"sorted"` reads from the lowest reward
    up: independent of positions, but the estimate then lags behind every reward; for comparison.
    NaN and uncounted rewards are passed over. Raises `ValueError` for Q < 0, R <= 0 or an unknown
    order.
    """
    check_options(process_variance, observation_variance, order)
    seen_PR = counted_PR & ~rewards_PR.isnan()
    if order == "sorted":
        places_PR = rewards_PR.masked_fill(~seen_PR, torch.nan).argsort(dim=1, stable=True)
        rewards_PR, seen_PR = rewards_PR.gather(1, places_PR), seen_PR.gather(1, places_PR)
    mean_P, variance_P = torch.zeros_like(rewards_PR[:, 0]), torch.ones_like(rewards_PR[:, 0])
    columns = []
    for reward_P, seen_P in zip(rewards_PR.unbind(1), seen_PR.unbind(1), strict=True):
        predicted_P = variance_P + process_variance
        total_P = predicted_P + observation_variance
        surprise_P = reward_P - mean_P
        gain_P = predicted_P / total_P
        mean_P = torch.where(seen_P, mean_P + gain_P * surprise_P, mean_P)
        # (1 - K) P' = R K and r - x = (1 - K) (r - x before), without the cancellation in 1 - K.
        variance_P = torch.where(seen_P, observation_variance * gain_P, variance_P)
        if innovation:
            columns.append(surprise_P / (total_P.sqrt() + EPSILON))
        else:
            residual_P = surprise_P * (observation_variance / total_P)
            columns.append(residual_P / (variance_P.sqrt() + EPSILON))
    result_PR = torch.stack(columns, dim=1)
    if order == "sorted":
        result_PR = torch.empty_like(result_PR).scatter_(1, places_PR, result_PR)
    return result_PR


def check_options(
    process_variance: float, observation_variance: float, order: str, *, prefix: str = ""
) -> None:
    """Raise `ValueError`, naming `prefix` and option, for options that no filter has."""
    if not 0 <= process_variance < math.inf:
        raise ValueError(
            f"{prefix}process_variance is {process_variance}; it must be finite and >= 0."
        )
    if not 0 < observation_variance < math.inf:
        raise ValueError(
            f"{prefix}observation_variance is {observation_variance}; it must be finite and > 0."
        )
    if order not in ORDERS:
        raise ValueError(f"{prefix}order is {order!r}; choose one of {list(ORDERS)}.")
