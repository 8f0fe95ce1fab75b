"""Several arms against one: intervals that hold for all of them together.

Shape letters: A arms, the one compared with first, S seeds, Q nodes of an integral.
"""

import functools
from dataclasses import dataclass

import numpy as np

NUM_NODES = 64
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Differences:
    """Of each arm but the first: its mean less the first's, and the half width of the interval."""

    values: np.ndarray
    half: float


def differences(scores_AS: np.ndarray) -> Differences:
    """Return each arm's mean difference from the first arm with simultaneous 95 % intervals.

    (Dunnett 1955.) Every seed was run with every arm, so that what a seed does to all arms is taken
    out: score = arm + seed + rest, and the rest's variance s^2, the same for all arms, is estimated
    with (A - 1)(S - 1) degrees of freedom. Half the width is d s sqrt(2 / S), d from `quantile`:
    that all A - 1 intervals hold the true difference has probability .95, so that the best of them
    may be looked at.

    Raises `ValueError` for fewer than two arms or seeds.

    Example: two seeds and two arms, (0, 1) and (1, 4): difference 2, rest -1/2 and 1/2 in either
    arm, s^2 = 1 with 1 degree, d = 12.71, half the width 12.71.
    """
    num_arms, num_seeds = scores_AS.shape
    if num_arms < 2 or num_seeds < 2:
        raise ValueError(
            f"{num_arms} arms with {num_seeds} seeds each: a difference and its interval need two "
            "of both"
        )
    rest_AS = scores_AS - scores_AS.mean(0) - scores_AS.mean(1, keepdims=True) + scores_AS.mean()
    degrees = (num_arms - 1) * (num_seeds - 1)
    variance = float((rest_AS**2).sum()) / degrees
    half = quantile(num_arms - 1, degrees) * (2 * variance / num_seeds) ** 0.5
    means_A = scores_AS.mean(1)
    return Differences(means_A[1:] - means_A[0], half)


@functools.cache
def quantile(num_compared: int, degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return d with P(max |t_i| <= d) = confidence over all arms that are compared with one.

    The t_i share the first arm and s: given its mean z and s / sigma, they are independent normal,
    so that P = E_s E_z [Phi(sqrt(2) d s - z) - Phi(-sqrt(2) d s - z)]^k. One arm gives Student's t.

    Example: `quantile(3, 9)` = 2.81, `quantile(1, 9)` = 2.26; the normal limit for 3 is 2.35.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr
    from scipy.stats import chi2

    nodes_Q, weights_Q = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    weights_Q = weights_Q / weights_Q.sum()
    # s / sigma at the middles of equally likely slices.
    slices = (np.arange(2000) + 0.5) / 2000
    spread = np.sqrt(chi2.ppf(slices, degrees) / degrees)

    def missing(at: float) -> float:
        reach = np.sqrt(2) * at * spread[:, None]
        inside = ndtr(reach - nodes_Q) - ndtr(-reach - nodes_Q)
        return float((inside**num_compared @ weights_Q).mean()) - confidence

    return float(brentq(missing, 0.5, 500.0))
