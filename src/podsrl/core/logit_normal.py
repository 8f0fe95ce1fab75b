"""How success rates differ between prompts: a logit-normal distribution, and its fit to counts.

Shape letters: Q nodes of the logit, P prompts, K = n + 1 numbers of right rollouts, G pairs of
mean and spread.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from podsrl.core.theory import binomial

STEP = 0.1
LIMIT = 16.0
# A Gaussian as narrow as one step is still summed to 1e-8 by the nodes.
SPREADS = (0.1, 6.0)
MEANS = (-9.0, 9.0)
NUM_MEANS, NUM_SPREADS = 91, 41
MEAN_STEP = (MEANS[1] - MEANS[0]) / (NUM_MEANS - 1)
SPREAD_STEP = (SPREADS[1] / SPREADS[0]) ** (1 / (NUM_SPREADS - 1))
HALF_CHI_SQUARED = 1.9207  # half the 0.95 quantile of chi squared with one degree of freedom


def nodes() -> Tensor:
    """Return the logits at which distributions are summed, float64 (Q,)."""
    return torch.arange(-LIMIT, LIMIT + STEP / 2, STEP, dtype=torch.float64)


def rates() -> Tensor:
    """Return the success rates at the nodes, float64 (Q,): 1 / (1 + exp(-logit))."""
    return nodes().sigmoid()


def weights(mean: Tensor, spread: Tensor) -> Tensor:
    """Return the probability of each node when the logit is normal, float64 (..., Q).

    mean and spread (standard deviation, at least 0.1, where all prompts are as good as alike) are
    those of the logit and have the shape (...).

    Example: `weights(torch.tensor(0.0), torch.tensor(2.0)) @ rates()` is 0.5.
    """
    mean, spread = (x.double().unsqueeze(-1) for x in (mean, spread))
    return (-((nodes() - mean) / spread).square() / 2).softmax(-1)


@dataclass(frozen=True)
class Fit:
    """The most likely logit-normal, and all those that the counts do not speak against."""

    mean: float
    spread: float
    likely_G2: Tensor
    """(G, 2): mean and spread of all within 1.92 of the largest log likelihood, the best first."""

    def interval(self, values_G: Tensor) -> tuple[float, float, float]:
        """Return a figure at the best fit and its 95 % profile-likelihood interval.

        values_G holds the figure at each row of `likely_G2`. The interval is from the smallest to
        the largest: a value is inside if some mean and spread that give it are likely enough. NaN
        (a figure that these do not have) is left out.
        """
        finite = values_G[~values_G.isnan()]
        if not len(finite):
            return math.nan, math.nan, math.nan
        return float(values_G[0]), float(finite.min()), float(finite.max())

    def weights(self) -> Tensor:
        """Probabilities of the nodes for each likely pair, float64 (G, Q)."""
        return weights(self.likely_G2[:, 0], self.likely_G2[:, 1])


def fit(num_right_P: Tensor, num_rollouts: int) -> Fit:
    """Return the logit-normal under which these numbers of right rollouts are likeliest.

    Each prompt has a rate p with logit p normal, and of its n rollouts a binomial number is right.
    The likelihood is computed on a grid of means (-9 to 9) and spreads (0.1 to 6), so nothing can
    fail to converge; the grid is laid a second time, finer, around what the first finds likely.

    Args:
        num_right_P: int (P,), 0..n each; at least one prompt.
        num_rollouts: n, the same for every prompt.

    Edge cases: nothing right, or everything, is likeliest at the end of the grid (mean rate 1e-4),
    with an interval that says how much more is possible. One prompt is fitted, with an interval
    that says little.

    Raises:
        ValueError: no prompts, or counts outside 0..n.

    Example: 16 rollouts of each of 64 prompts, 8 right everywhere: mean 0, spread 0.1 (alike).
    """
    if not len(num_right_P):
        raise ValueError("there are no prompts to fit: sample rollouts of at least one")
    if not ((num_right_P >= 0) & (num_right_P <= num_rollouts)).all():
        raise ValueError(
            f"{int(num_right_P.min())} to {int(num_right_P.max())} of {num_rollouts} rollouts are "
            "right: counts must lie between 0 and the number of rollouts"
        )
    times_K = num_right_P.long().cpu().bincount(minlength=num_rollouts + 1).double()
    pairs_G2, chance_GK = _grid(*MEANS, *SPREADS, num_rollouts)
    likelihood_G = torch.special.xlogy(times_K, chance_GK).sum(1)
    near_G2 = pairs_G2[likelihood_G >= likelihood_G.max() - 2 * HALF_CHI_SQUARED]
    (low, narrow), (high, wide) = near_G2.amin(0).tolist(), near_G2.amax(0).tolist()
    # One step further out: what is likely may be narrower than the steps of the first grid.
    pairs_G2, chance_GK = _grid(
        max(MEANS[0], low - MEAN_STEP),
        min(MEANS[1], high + MEAN_STEP),
        max(SPREADS[0], narrow / SPREAD_STEP),
        min(SPREADS[1], wide * SPREAD_STEP),
        num_rollouts,
    )
    likelihood_G = torch.special.xlogy(times_K, chance_GK).sum(1)
    order_G = likelihood_G.argsort(descending=True)
    num_likely = int((likelihood_G >= likelihood_G.max() - HALF_CHI_SQUARED).sum())
    likely_G2 = pairs_G2[order_G[:num_likely]]
    mean, spread = likely_G2[0].tolist()
    return Fit(mean, spread, likely_G2)


@lru_cache(maxsize=2)
def _grid(
    low: float, high: float, narrow: float, wide: float, num_rollouts: int
) -> tuple[Tensor, Tensor]:
    """Pairs of mean and spread between these ends, (G, 2), and P(K = k) under each, (G, K)."""
    means = torch.linspace(low, high, NUM_MEANS, dtype=torch.float64)
    logs = torch.linspace(math.log(narrow), math.log(wide), NUM_SPREADS, dtype=torch.float64)
    spreads = logs.exp().clamp(*SPREADS)
    pairs_G2 = torch.cartesian_prod(means, spreads)
    chance_QK = binomial(num_rollouts, rates())
    return pairs_G2, weights(pairs_G2[:, 0], pairs_G2[:, 1]) @ chance_QK
