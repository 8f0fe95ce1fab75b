"""Heads fitted on pairs of rollouts of one prompt, a right one over a wrong one: Bradley-Terry.

They are asked which of two answers to a question is right, so that nothing is gained by knowing
which questions are easy. Their log-odds have no level of their own: only differences mean anything.

Shape letters: K items (rollouts), C pairs, D layers, H hidden size or any number of features.
"""

from dataclasses import dataclass

import numpy as np
import torch

from podsrl.probe.auroc import Items
from podsrl.probe.fit import (
    LEAST_OF_A_KIND,
    Choice,
    Fitted,
    Scorer,
    TooFew,
    best_of,
    each_alone,
    standardised,
)
from podsrl.probe.head import About, Head

MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Pairs:
    """A right and a wrong item of one prompt each; all pairs of a prompt weigh 1 together."""

    right_C: np.ndarray
    wrong_C: np.ndarray
    weight_C: np.ndarray


def pairs_of(items: Items) -> Pairs:
    """Return every right item with every wrong one of its prompt.

    Example: prompt 0 with items right, wrong, wrong and prompt 1 with a right one: pairs (0, 1)
    and (0, 2), of weight 1/2 each.
    """
    right, wrong, weights = [], [], []
    for prompt in range(items.num_prompts):
        is_of_K = items.prompt_K == prompt
        rights = np.flatnonzero(is_of_K & (items.right_K > 0))
        wrongs = np.flatnonzero(is_of_K & (items.wrong_K > 0))
        num = len(rights) * len(wrongs)
        right.append(np.repeat(rights, len(wrongs)))
        wrong.append(np.tile(wrongs, len(rights)))
        weights.append(np.full(num, 1 / max(1, num)))
    return Pairs(np.concatenate(right), np.concatenate(wrong), np.concatenate(weights))


def choose_pairs(features_KDH: np.ndarray, items: Items, *, seed: int) -> Choice:
    """Return the Bradley-Terry head of the best layer and strength; see `best_of`."""
    check_both(items)
    layers = each_alone(features_KDH)
    return best_of(features_KDH, items, layers, fit_pairs, pair_loss, seed=seed)


def choose_gated(features_KDH: np.ndarray, items: Items, *, seed: int) -> Choice:
    """Return the gated head of all layers at the best strength; see `best_of`.

    Raises `ValueError` for a single layer, where there is nothing to weigh.
    """
    num_layers = features_KDH.shape[1]
    if num_layers < 2:
        raise ValueError("a gate weighs layers, and there is one: give several, or bradley_terry")
    check_both(items)
    layers = [list(range(num_layers))]
    return best_of(features_KDH, items, layers, fit_gated, pair_loss, seed=seed)


def check_both(items: Items) -> None:
    """Raise `TooFew` unless enough prompts have a right and a wrong rollout."""
    num = len(np.unique(items.prompt_K[pairs_of(items).right_C]))
    if num < LEAST_OF_A_KIND:
        raise TooFew(
            f"only {num} of the {items.num_prompts} prompts have both a right and a wrong rollout: "
            f"it takes {LEAST_OF_A_KIND} to fit a head on pairs; log more rollouts of each prompt, "
            "or prompts that are sometimes solved"
        )


def fit_pairs(features_KH: np.ndarray, items: Items, strength: float) -> Fitted:
    """Return the Bradley-Terry head: P(right above wrong) = sigmoid(weight . (h_right - h_wrong)).

    That is logistic regression without intercept on the differences (Bradley and Terry 1952), here
    with a ridge penalty on standardised features. Each pair stands in it both ways round, half
    each, so that which of its rows comes first is of no effect. The bias puts the mean log-odds at
    0.

    Example: one feature, 1 for right and 0 for wrong rollouts: a weight that only the penalty
    bounds.
    """
    scaled_KH, mean_H, scale_H = standardised(features_KH)
    weight_H = _weight_of_scaled(scaled_KH, pairs_of(items), strength) / scale_H
    return Fitted(weight_H, float(-weight_H @ mean_H))


def _weight_of_scaled(scaled_KH: np.ndarray, pairs: Pairs, strength: float) -> np.ndarray:
    """The weight of standardised features, float64 (H,)."""
    from sklearn.linear_model import LogisticRegression

    difference_CH = scaled_KH[pairs.right_C] - scaled_KH[pairs.wrong_C]
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(
        np.concatenate([difference_CH, -difference_CH]),
        np.repeat([1, 0], len(difference_CH)),
        sample_weight=np.concatenate([pairs.weight_C, pairs.weight_C]) / 2,
    )
    weight_H: np.ndarray = model.coef_[0]
    return weight_H


@dataclass(frozen=True)
class Gated:
    """log-odds = sum_l sigmoid((gate s)_l) s_l, s_l = features of layer l . weight_l + bias_l."""

    weight_DH: np.ndarray
    bias_D: np.ndarray
    gate_DD: np.ndarray

    def log_odds(self, features_KDH: np.ndarray) -> np.ndarray:
        """Of each item, float64 (K,)."""
        of_layers_KD = np.einsum("kdh,dh->kd", features_KDH, self.weight_DH) + self.bias_D
        gate_KD = 1 / (1 + np.exp(-of_layers_KD @ self.gate_DD.T))
        found_K: np.ndarray = (gate_KD * of_layers_KD).sum(1)
        return found_K


def fit_gated(features_KDH: np.ndarray, items: Items, strength: float) -> Gated:
    """Return the heads of all layers and the gate that weighs them, fitted together on pairs.

    The gate of Representation-based Reward Modeling (arXiv 2503.10093; second-hand, from its code):
    see `Gated`. Its loss there is -log sigmoid(difference - 1), by Adam on one split; here it is
    Bradley-Terry's with the ridge penalty of `fit_pairs` on all weights, the gate's among them,
    minimised by L-BFGS from each layer's own head and a gate of 0, which halves the sum. So the
    same data give the same head.
    """
    num_layers = features_KDH.shape[1]
    scaled_KDH, mean_DH, scale_DH = standardised(features_KDH)
    pairs, features = pairs_of(items), torch.from_numpy(scaled_KDH)
    alone = [_weight_of_scaled(scaled_KDH[:, d], pairs, strength) for d in range(num_layers)]
    # Halved by the gate, the layers' heads begin as their mean.
    weight_DH = torch.tensor(np.stack(alone) * 2 / num_layers)
    gate_DD = torch.zeros(num_layers, num_layers, dtype=torch.float64)
    parameters = [weight_DH.requires_grad_(), gate_DD.requires_grad_()]
    right_C, wrong_C = torch.from_numpy(pairs.right_C), torch.from_numpy(pairs.wrong_C)
    weight_C = torch.from_numpy(pairs.weight_C)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        of_layers_KD = torch.einsum("kdh,dh->kd", features, weight_DH)
        odds_K = (torch.sigmoid(of_layers_KD @ gate_DD.T) * of_layers_KD).sum(1)
        losses_C = torch.nn.functional.softplus(odds_K[wrong_C] - odds_K[right_C])
        penalty = sum(each.square().sum() for each in parameters) / (2 * strength)
        total: torch.Tensor = (weight_C * losses_C).sum() + penalty
        total.backward()
        return total

    optimizer.step(loss)
    plain_DH = weight_DH.detach().numpy() / scale_DH
    return Gated(plain_DH, -(plain_DH * mean_DH).sum(1), gate_DD.detach().numpy())


def pair_loss(fitted: Scorer, features: np.ndarray, items: Items) -> float:
    """Return the mean over prompts with both kinds of -log P(right above wrong); log 2 by chance.

    log 2 where no prompt has both.
    """
    pairs, odds_K = pairs_of(items), fitted.log_odds(features)
    total = pairs.weight_C.sum()
    if not total:
        return float(np.log(2))
    losses_C = np.logaddexp(0, odds_K[pairs.wrong_C] - odds_K[pairs.right_C])
    return float((pairs.weight_C * losses_C).sum() / total)


def head_of(fitted: Scorer, about: About) -> Head:
    """A fit of any kind as a head, in float32."""
    if isinstance(fitted, Gated):
        parts = (fitted.weight_DH, fitted.bias_D, fitted.gate_DD)
        weight, bias, gate = (torch.from_numpy(each).float() for each in parts)
        return Head(weight, bias, about, gate)
    assert isinstance(fitted, Fitted)
    return Head(torch.from_numpy(fitted.weight_H).float(), fitted.bias, about)
