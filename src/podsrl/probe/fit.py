"""Fit a head: logistic regression on standardised features, its penalty and layer by prompts apart.

Shape letters: K items (prompts, rollouts or places in them), D layers, H hidden size or any number
of features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from podsrl.probe.auroc import Items

NUM_FOLDS = 5
# Inverse strengths of the penalty on the squared weights of standardised features, every prompt
# weighing 1.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LEAST_OF_A_KIND = NUM_FOLDS
"""Prompts with a right rollout, and with a wrong one, that a fit takes: one for each fold."""
_FLOOR = 1e-12


class TooFew(ValueError):
    """There are too few prompts, or prompts of a kind, to fit a head and measure it."""


class Scorer(Protocol):
    """What a fit gives: the log-odds of success of items, of their features."""

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Of each item, float64 (K,)."""


@dataclass(frozen=True)
class Fitted:
    """log-odds = features . weight + bias."""

    weight_H: np.ndarray
    bias: float

    def log_odds(self, features_KH: np.ndarray) -> np.ndarray:
        """Of each item, float64 (K,)."""
        found_K: np.ndarray = features_KH @ self.weight_H + self.bias
        return found_K


Fit = Callable[[np.ndarray, Items, float], Scorer]
Loss = Callable[[Scorer, np.ndarray, Items], float]


@dataclass(frozen=True)
class Choice:
    """The best of several layers and strengths, and what all of them reached."""

    fitted: Scorer
    places: list[int]
    """Which of the layers it reads, from 0; one, unless a gate weighs several."""
    strength: float
    losses_D: list[float]
    """Loss of each layer on prompts that it was not fitted on, at its best strength; one for all
    layers where a gate weighs them."""

    def log_odds(self, features_KDH: np.ndarray) -> np.ndarray:
        """Of each item, float64 (K,), of its features at all layers that were tried."""
        return self.fitted.log_odds(read(features_KDH, self.places))


def read(features_KDH: np.ndarray, places: list[int]) -> np.ndarray:
    """What a fit takes: features (K, H) of one layer, (K, D, H) of several."""
    return features_KDH[:, places[0]] if len(places) == 1 else features_KDH[:, places]


def choose(features_KDH: np.ndarray, items: Items, *, seed: int) -> Choice:
    """Return the head of the layer and strength with the least log-loss over folds of prompts.

    Arguments and result are those of `best_of`.
    """
    return best_of(features_KDH, items, each_alone(features_KDH), fit, log_loss, seed=seed)


def best_of(
    features_KDH: np.ndarray,
    items: Items,
    candidates: list[list[int]],
    fit_one: Fit,
    loss: Loss,
    *,
    seed: int,
) -> Choice:
    """Return the fit of the candidate and strength with the least loss over folds of prompts.

    A prompt is in one fold with all its items, so that none is predicted by a fit that has seen it.
    Folds hold alike shares of success. The winner is fitted again to all items: how good it is must
    be measured on yet other prompts.

    candidates: places of the layers that one head reads.

    Raises `TooFew`, a `ValueError`, with fewer than `LEAST_OF_A_KIND` prompts of either kind.
    """
    fold_K = _folds(items, seed)[items.prompt_K]
    tried = [
        (
            _loss_over_folds(read(features_KDH, places), items, fold_K, strength, fit_one, loss),
            number,
            strength,
        )
        for number, places in enumerate(candidates)
        for strength in STRENGTHS
    ]
    _, number, strength = min(tried)
    losses_D = [min(each[0] for each in tried if each[1] == i) for i in range(len(candidates))]
    places = candidates[number]
    fitted = fit_one(read(features_KDH, places), items, strength)
    return Choice(fitted, places, strength, losses_D)


def each_alone(features_KDH: np.ndarray) -> list[list[int]]:
    """The candidates of `best_of` where a head reads one layer."""
    return [[place] for place in range(features_KDH.shape[1])]


def fit(features_KH: np.ndarray, items: Items, strength: float) -> Fitted:
    """Return logistic regression with a ridge penalty, items weighted by their right and wrong.

    Features are standardised for the penalty's sake; weight and bias are of the plain ones. A
    constant feature has weight 0.

    Example: one feature, equal for right and wrong, gives weight 0 and the log-odds of the mean.
    """
    from sklearn.linear_model import LogisticRegression

    scaled_KH, mean_H, scale_H = standardised(features_KH)
    model = LogisticRegression(C=strength, max_iter=1000)
    weight = np.concatenate([items.right_K, items.wrong_K])
    label = np.repeat([1, 0], len(items.right_K))
    has_weight = weight > 0
    twice = np.concatenate([scaled_KH, scaled_KH])[has_weight]
    model.fit(twice, label[has_weight], sample_weight=weight[has_weight])
    weight_H = model.coef_[0] / scale_H
    return Fitted(weight_H, float(model.intercept_[0] - weight_H @ mean_H))


def standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with mean 0 and deviation 1 over the items, these means, and these deviations.

    A constant feature is 0 everywhere, and its deviation infinite.
    """
    mean, std = features.mean(0), features.std(0)
    scale = np.where(std > _FLOOR * np.maximum(1, np.abs(mean)), std, np.inf)
    return (features - mean) / scale, mean, scale


def log_loss(fitted: Scorer, features_KH: np.ndarray, items: Items) -> float:
    """Return the mean over prompts of -log of what was predicted for what came."""
    odds_K = fitted.log_odds(features_KH)
    losses_K = items.right_K * np.logaddexp(0, -odds_K) + items.wrong_K * np.logaddexp(0, odds_K)
    return float(losses_K.sum() / len(np.unique(items.prompt_K)))


def of(items: Items, is_chosen_K: np.ndarray) -> Items:
    """The chosen items, their prompts numbered anew."""
    _, prompt_K = np.unique(items.prompt_K[is_chosen_K], return_inverse=True)
    return Items(prompt_K, items.right_K[is_chosen_K], items.wrong_K[is_chosen_K])


def check_kinds(items: Items, what: str) -> None:
    """Raise `TooFew` unless enough prompts have a right rollout, and enough a wrong one."""
    for kind, weight_K in (("right", items.right_K), ("wrong", items.wrong_K)):
        num = len(np.unique(items.prompt_K[weight_K > 0]))
        if num < LEAST_OF_A_KIND:
            raise TooFew(
                f"only {num} of the {items.num_prompts} {what} have a {kind} rollout: it takes "
                f"{LEAST_OF_A_KIND} to fit a probe; log more prompts, or easier or harder ones"
            )


def _folds(items: Items, seed: int) -> np.ndarray:
    """The fold of each prompt: dealt in the order of their rates, equal ones shuffled."""
    check_kinds(items, "prompts to fit on")
    rates_P = np.bincount(items.prompt_K, weights=items.right_K)
    shuffled = np.random.default_rng(seed).permutation(len(rates_P))
    order = shuffled[np.argsort(rates_P[shuffled], kind="stable")]
    fold_P = np.empty(len(order), dtype=int)
    fold_P[order] = np.arange(len(order)) % NUM_FOLDS
    return fold_P


def _loss_over_folds(
    features: np.ndarray,
    items: Items,
    fold_K: np.ndarray,
    strength: float,
    fit_one: Fit,
    loss: Loss,
) -> float:
    losses, sizes = [], []
    for fold in range(NUM_FOLDS):
        is_out_K = fold_K == fold
        fitted = fit_one(features[~is_out_K], of(items, ~is_out_K), strength)
        held_out = of(items, is_out_K)
        losses.append(loss(fitted, features[is_out_K], held_out))
        sizes.append(held_out.num_prompts)
    return float(np.average(losses, weights=sizes))
