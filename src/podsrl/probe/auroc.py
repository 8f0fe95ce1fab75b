"""How well scores tell right from wrong: area under the ROC curve, with intervals over prompts.

Rollouts of one prompt are no independent evidence, so intervals draw prompts, with all that is of
them. Every prompt weighs the same, whatever the number of its rollouts.

Shape letters: K scored items (prompts or rollouts), P prompts, D bootstrap draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from podsrl.probe.head import CHANCE

NUM_DRAWS = 2000
LEVELS = (0.025, 0.975)
# Draws whose weights are held at once, in numbers.
_ENTRIES = 2**22


@dataclass(frozen=True)
class Items:
    """Items of prompts, each with a share of right and of wrong rollouts."""

    prompt_K: np.ndarray
    """Number of the prompt, from 0, without gaps."""
    right_K: np.ndarray
    """Weight among right rollouts; those of a prompt's items and `wrong_K` add up to 1."""
    wrong_K: np.ndarray

    @classmethod
    def of_prompts(cls, rates_P: Sequence[float]) -> "Items":
        """One item a prompt, of which this share of the rollouts is right."""
        rates_K = np.asarray(rates_P, dtype=float)
        return cls(np.arange(len(rates_K)), rates_K, 1 - rates_K)

    @classmethod
    def of_rollouts(cls, prompt_K: Sequence[int], is_right_K: Sequence[bool]) -> "Items":
        """One item a rollout, or a place in it; all of a prompt weigh as much as one prompt."""
        _, place_K, counts_P = np.unique(prompt_K, return_inverse=True, return_counts=True)
        right_K = np.asarray(is_right_K, dtype=float)
        weight_K = 1 / counts_P[place_K]
        return cls(place_K, right_K * weight_K, (1 - right_K) * weight_K)

    @property
    def num_prompts(self) -> int:
        return int(self.prompt_K.max()) + 1


def auroc(items: Items, scores_K: np.ndarray, weights_DP: np.ndarray | None = None) -> np.ndarray:
    """Return the chance that a right rollout scores above a wrong one, ties counting half.

    The sum over pairs of right and wrong of [s > s'] + [s = s'] / 2, each pair weighted by the
    product of its weights, over the sum of these.

    weights_DP: how often each prompt is drawn, in each of D draws; None: once, and D = 1.

    Returns float64 (D,); .5, which is chance, for a draw without both kinds.

    Example: scores (1, 2, 2), right (0, 1, 0): pairs (2, 1) and (2, 2): (1 + 1/2) / 2 = 0.75.
    """
    if weights_DP is None:
        weights_DP = np.ones((1, items.num_prompts))
    order_K = np.argsort(scores_K, kind="stable")
    starts = np.flatnonzero(np.diff(scores_K[order_K], prepend=np.nan) != 0)
    num_at_once = max(1, _ENTRIES // len(order_K))
    found = []
    for first in range(0, len(weights_DP), num_at_once):
        drawn_DK = weights_DP[first : first + num_at_once][:, items.prompt_K[order_K]]
        # Sums over items of equal score, from the lowest up.
        right = np.add.reduceat(drawn_DK * items.right_K[order_K], starts, axis=1)
        wrong = np.add.reduceat(drawn_DK * items.wrong_K[order_K], starts, axis=1)
        below = wrong.cumsum(1) - wrong / 2
        pairs = right.sum(1) * wrong.sum(1)
        above = (right * below).sum(1)
        found.append(np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), CHANCE))
    return np.concatenate(found)


def auroc_within(
    items: Items, scores_K: np.ndarray, weights_DP: np.ndarray | None = None
) -> np.ndarray:
    """Return `auroc` over pairs of rollouts of one prompt only: what a prompt's state cannot give.

    Prompts weigh by their pairs of right and wrong. Arguments and result are those of `auroc`; .5
    where no prompt has both.
    """
    above_P, pairs_P = np.zeros(items.num_prompts), np.zeros(items.num_prompts)
    for prompt in range(items.num_prompts):
        is_of = items.prompt_K == prompt
        right, wrong, scores = items.right_K[is_of], items.wrong_K[is_of], scores_K[is_of]
        order = np.sign(scores[:, None] - scores[None, :])
        pairs = right[:, None] * wrong[None, :] * (len(scores) > 1)
        pairs_P[prompt], above_P[prompt] = pairs.sum(), (pairs * (order + 1) / 2).sum()
    if weights_DP is None:
        weights_DP = np.ones((1, items.num_prompts))
    pairs_D = weights_DP @ pairs_P
    return np.where(pairs_D > 0, weights_DP @ above_P / np.where(pairs_D > 0, pairs_D, 1), CHANCE)


def draws(num_prompts: int, *, seed: int, num_draws: int = NUM_DRAWS) -> np.ndarray:
    """Return how often each of `num_prompts` prompts is drawn, (D, P): a bootstrap over prompts."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=num_draws)


def interval(value: float, drawn_D: np.ndarray) -> dict[str, float]:
    """Return a figure with the 95 % interval of its draws, as JSON can hold it."""
    low, high = np.quantile(drawn_D, LEVELS).tolist()
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}
