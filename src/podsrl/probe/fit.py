"""Fit a head: logistic regression on standardised features, its penalty and layer by prompts apart.

Shape letters: K items (prompts, rollouts or places in them), D layers, H hidden size or any number
of features.
"""

from dataclasses import dataclass

import numpy as np

from podsrl.probe.auroc import Items

NUM_FOLDS = 5
# Inverse strengths of the penalty on the squared weights of standardised features, every prompt
# weighing 1.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LEAST_OF_A_KIND = NUM_FOLDS
"""Prompts with a right rollout, and with a wrong one, that a fit takes: one for each fold."""
_FLOOR = 1e-12


@dataclass(frozen=True)
class Fitted:
    """log-odds = features . weight + bias."""

    weight_H: np.ndarray
    bias: float

    def log_odds(self, features_KH: np.ndarray) -> np.ndarray:
        """Of each item, float64 (K,)."""
        found_K: np.ndarray = features_KH @ self.weight_H + self.bias
        return found_K


@dataclass(frozen=True)
class Choice:
    """The best of several layers and strengths, and what all of them reached."""

    fitted: Fitted
    place: int
    """Which of the layers, from 0."""
    strength: float
    losses_D: list[float]
    """Log-loss of each layer on prompts that it was not fitted on, at its best strength."""


def choose(features_KDH: np.ndarray, items: Items, *, seed: int) -> Choice:
    """Return the head of the layer and strength with the least log-loss over folds of prompts.

    A prompt is in one fold with all its items, so that none is predicted by a fit that has seen it.
    Folds hold alike shares of success. The winner is fitted again to all items: how good it is must
    be measured on yet other prompts.

    Raises `ValueError` with fewer than `LEAST_OF_A_KIND` prompts of either kind.
    """
    fold_K = _folds(items, seed)[items.prompt_K]
    tried = [
        (_loss_over_folds(features_KDH[:, place], items, fold_K, strength), place, strength)
        for place in range(features_KDH.shape[1])
        for strength in STRENGTHS
    ]
    _, place, strength = min(tried)
    num_layers = features_KDH.shape[1]
    losses_D = [min(each[0] for each in tried if each[1] == i) for i in range(num_layers)]
    return Choice(fit(features_KDH[:, place], items, strength), place, strength, losses_D)


def fit(features_KH: np.ndarray, items: Items, strength: float) -> Fitted:
    """Return logistic regression with a ridge penalty, items weighted by their right and wrong.

    Features are standardised for the penalty's sake; weight and bias are of the plain ones. A
    constant feature has weight 0.

    Example: one feature, equal for right and wrong, gives weight 0 and the log-odds of the mean.
    """
    from sklearn.linear_model import LogisticRegression

    mean_H, std_H = features_KH.mean(0), features_KH.std(0)
    scale_H = np.where(std_H > _FLOOR * np.maximum(1, np.abs(mean_H)), std_H, np.inf)
    scaled_KH = (features_KH - mean_H) / scale_H
    model = LogisticRegression(C=strength, max_iter=1000)
    weight = np.concatenate([items.right_K, items.wrong_K])
    label = np.repeat([1, 0], len(items.right_K))
    has_weight = weight > 0
    twice = np.concatenate([scaled_KH, scaled_KH])[has_weight]
    model.fit(twice, label[has_weight], sample_weight=weight[has_weight])
    weight_H = model.coef_[0] / scale_H
    return Fitted(weight_H, float(model.intercept_[0] - weight_H @ mean_H))


def log_loss(fitted: Fitted, features_KH: np.ndarray, items: Items) -> float:
    """Return the mean over prompts of -log of what was predicted for what came."""
    odds_K = fitted.log_odds(features_KH)
    losses_K = items.right_K * np.logaddexp(0, -odds_K) + items.wrong_K * np.logaddexp(0, odds_K)
    return float(losses_K.sum() / len(np.unique(items.prompt_K)))


def of(items: Items, is_chosen_K: np.ndarray) -> Items:
    """The chosen items, their prompts numbered anew."""
    _, prompt_K = np.unique(items.prompt_K[is_chosen_K], return_inverse=True)
    return Items(prompt_K, items.right_K[is_chosen_K], items.wrong_K[is_chosen_K])


def check_kinds(items: Items, what: str) -> None:
    """Raise `ValueError` unless enough prompts have a right rollout, and enough a wrong one."""
    for kind, weight_K in (("right", items.right_K), ("wrong", items.wrong_K)):
        num = len(np.unique(items.prompt_K[weight_K > 0]))
        if num < LEAST_OF_A_KIND:
            raise ValueError(
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
    features_KH: np.ndarray, items: Items, fold_K: np.ndarray, strength: float
) -> float:
    losses, sizes = [], []
    for fold in range(NUM_FOLDS):
        is_out_K = fold_K == fold
        fitted = fit(features_KH[~is_out_K], of(items, ~is_out_K), strength)
        held_out = of(items, is_out_K)
        losses.append(log_loss(fitted, features_KH[is_out_K], held_out))
        sizes.append(held_out.num_prompts)
    return float(np.average(losses, weights=sizes))
