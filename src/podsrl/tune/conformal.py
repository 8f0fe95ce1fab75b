"""Quantiles of a score that has not been measured, from those that have been.

Conformalised quantile regression: a gradient booster for each of several quantiles, and intervals
between them widened by what was missed on scores held out from the fit, so that they hold what they
promise however well the boosters fit (Romano, Patterson and Candes, arXiv 1905.03222). For searches
as in Optimizing Hyperparameters with Conformal Quantile Regression, arXiv 2305.03623.

Shape letters: N measured settings, P to predict, D features, K quantile levels, V held out.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_LEVELS = 5
NUM_TREES, LEARNING_RATE = 10, 0.4
LEAST_TO_CONFORMALISE = 32
FRAC_HELD_OUT = 0.1


def levels(num: int = NUM_LEVELS) -> np.ndarray:
    """Return k / (num + 1) for k = 1..num, float64 (K,): evenly spread, mirrored at 1/2.

    Example: `levels(3)` is 1/4, 1/2, 3/4.
    """
    return np.arange(1, num + 1) / (num + 1)


@dataclass(frozen=True)
class Quantiles:
    """Fitted quantiles; `widening_K` is added to them, downwards below the median."""

    models: list[Any]
    widening_K: np.ndarray

    def predict(self, features_PD: np.ndarray) -> np.ndarray:
        """Quantiles of each setting, in order, float64 (P, K)."""
        found = np.stack([model.predict(features_PD) for model in self.models], axis=1)
        # Each level was fitted by itself, so that they may cross.
        return np.sort(found + self.widening_K, axis=1)


def fit(
    features_ND: np.ndarray,
    scores_N: np.ndarray,
    *,
    seed: int,
    num_levels: int = NUM_LEVELS,
    least_to_conformalise: int = LEAST_TO_CONFORMALISE,
) -> Quantiles:
    """Return conformalised quantiles of the scores at `levels(num_levels)`.

    From `least_to_conformalise` scores on a tenth of them, at least one, is held out from the fit
    and `widening` says by how much each interval missed; with fewer there is nothing to spare and
    the quantiles are the boosters' own.

    Raises `ValueError` for features and scores of different numbers, and without a score.

    Example: constant scores c give quantiles that are c everywhere.
    """
    if len(features_ND) != len(scores_N) or not len(scores_N):
        raise ValueError(
            f"{len(features_ND)} rows of features and {len(scores_N)} scores: give one score for "
            "each setting, and at least one"
        )
    at_K = levels(num_levels)
    held_V = np.array([], dtype=int)
    if len(scores_N) >= least_to_conformalise:
        num_held = max(1, int(FRAC_HELD_OUT * len(scores_N)))
        held_V = np.random.default_rng(seed).permutation(len(scores_N))[:num_held]
    fitted_N = np.setdiff1d(np.arange(len(scores_N)), held_V)
    models = [
        _booster(level, len(fitted_N), seed).fit(features_ND[fitted_N], scores_N[fitted_N])
        for level in at_K
    ]
    if not len(held_V):
        return Quantiles(models, np.zeros(num_levels))
    found_VK = np.stack([model.predict(features_ND[held_V]) for model in models], axis=1)
    return Quantiles(models, widening(np.sort(found_VK, axis=1), scores_N[held_V]))


def widening(quantiles_VK: np.ndarray, scores_V: np.ndarray) -> np.ndarray:
    """Return what to add to each quantile so that intervals between them hold what they promise.

    Levels a and 1 - a enclose a share 1 - 2a. A held-out score misses their interval by
    E = max(q_a - y, y - q_{1-a}), below 0 inside it. Widening both ends by the
    ceil((1 - 2a)(V + 1))-th smallest E, at most the largest, covers a fresh exchangeable score with
    at least that chance if there are enough of them. The median stays.

    Args:
        quantiles_VK: of each held-out setting, at levels mirrored at 1/2, in order.
        scores_V: what was measured there.

    Example: intervals 0 to 1 at levels 1/4 and 3/4, scores 0.5, 1.2, 3: E is -0.5, 0.2, 2, and
    the ceil(4 / 2) = 2nd smallest widens both ends by 0.2.
    """
    num_held, num_levels = quantiles_VK.shape
    found_K = np.zeros(num_levels)
    for low in range(num_levels // 2):
        high = num_levels - 1 - low
        missed_V = np.maximum(quantiles_VK[:, low] - scores_V, scores_V - quantiles_VK[:, high])
        share = 1 - 2 * levels(num_levels)[low]
        # Rounded, because (1 - 2/6) x 3 is a hair above 2.
        place = min(num_held, math.ceil(round(share * (num_held + 1), 9)))
        found_K[high] = np.sort(missed_V)[place - 1]
        found_K[low] = -found_K[high]
    return found_K


def _booster(level: float, num_scores: int, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        loss="quantile",
        quantile=level,
        max_iter=NUM_TREES,
        learning_rate=LEARNING_RATE,
        max_depth=2,
        # A leaf of one noisy score would be believed.
        min_samples_leaf=max(1, min(3, num_scores // 3)),
        early_stopping=False,
        random_state=seed,
    )
