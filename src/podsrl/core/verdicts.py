"""Verdicts: whether a rollout passes several checks, and the first that it fails.

Shape letters: P prompts, N sampled rollouts, F reward functions, C checks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PASSED = -1
RIGHT, PASS = 1.0, 0.5


def failed_check(rewards_PNF: Tensor, checks: Sequence[int]) -> Tensor:
    """Place in `checks` of the first that each rollout fails, int64 (P, N); `PASSED` for none.

    The first of them asks whether the rollout is right, and is failed below 1; the others are
    failed below 1/2. NaN fails none, as the check does not apply.

    checks: places among the F reward functions, the most important first.

    Example: rewards (1, 1), (1, 0), (0, 0), (1, NaN) of two functions, checks (0, 1): -1, 1, 0, -1.
    """
    values_PNC = rewards_PNF[..., list(checks)]
    least_C = torch.full((len(checks),), PASS, dtype=values_PNC.dtype, device=values_PNC.device)
    least_C[:1] = RIGHT
    fails_PNC = values_PNC < least_C
    first_PN = fails_PNC.long().argmax(dim=-1)  # of equal values argmax names the first
    return first_PN.masked_fill(~fails_PNC.any(dim=-1), PASSED)


def verdicts(rewards_PNF: Tensor, checks: Sequence[int]) -> Tensor:
    """1 for rollouts that pass all checks and 0 for the others, in the rewards' dtype (P, N).

    NaN where the first check has no value. As rewards of a rule and of pairs these choose rollouts
    that are right in every way against all others: VerIPO's pairs (arXiv 2505.19000; second-hand).

    Arguments and the meaning of a check are those of `failed_check`.

    Example: rewards (1, 1), (1, 0), (0, 0), (NaN, 1) of two functions, checks (0, 1): 1, 0, 0, NaN.
    """
    passes_PN = (failed_check(rewards_PNF, checks) == PASSED).to(rewards_PNF.dtype)
    return passes_PN.masked_fill(rewards_PNF[..., checks[0]].isnan(), torch.nan)
