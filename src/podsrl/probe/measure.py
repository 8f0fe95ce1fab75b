"""Fit a head on some prompts and measure it on the others, beside features that need no model.

Shape letters: K items (prompts, rollouts or places in them), D layers, H hidden size, F features
that need no model, P prompts held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from podsrl.probe.auroc import Items, auroc, auroc_within, draws, interval
from podsrl.probe.fit import Fitted, check_kinds, choose, log_loss, of

FRAC_HELD_OUT = 1 / 3
LEAST_HELD_OUT = 20
DIGITS = 4


@dataclass(frozen=True)
class Measured:
    """A head and what it reaches on held-out prompts."""

    fitted: Fitted
    place: int
    """Which of the layers was chosen, from 0."""
    figures: dict[str, Any]
    """See `measure`; what JSON can hold."""


def measure(
    features_KDH: np.ndarray,
    items: Items,
    trivial: Sequence[Mapping[str, float]],
    *,
    seed: int,
    frac_held_out: float = FRAC_HELD_OUT,
) -> Measured:
    """Return the head that the prompts to fit on give, measured on the held-out ones.

    Prompts are split at random, each with all its items. Layer and penalty are chosen and the head
    is fitted on the ones; on the others it is measured once, and is not fitted again, so that the
    figures are those of the head itself.

    Args:
        features_KDH: hidden states of each item at each layer that is tried.
        trivial: features of each item that need no model, the same names for all.
        frac_held_out: of the prompts.

    Returns figures:
        - `auroc`, `low`, `high`: a 95 % interval over held-out prompts (percentiles of a bootstrap)
        - `within`: the same over pairs of one prompt's rollouts; absent where a prompt is one item
        - `trivial`: of each feature alone, its sign chosen on the prompts to fit on
        - `together`: of all of them in one logistic regression, fitted as the head is
        - `minus_together`: the head's minus that, on the same draws
        - `log_loss`, `log_loss_constant`: of the head, and of the mean of the prompts fitted on
        - `num_prompts_fitted`, `num_prompts_held_out`, `frac_right`, `strength`, `losses`

    Raises `ValueError` for fewer than `LEAST_HELD_OUT` held-out prompts, and as `choose` does.
    """
    is_out_K = _is_held_out(items, frac_held_out, seed)
    fit_on, held_out = of(items, ~is_out_K), of(items, is_out_K)
    choice = choose(features_KDH[~is_out_K], fit_on, seed=seed)
    features_KH = features_KDH[:, choice.place]
    scores_K = choice.fitted.log_odds(features_KH[is_out_K])
    drawn_DP = draws(held_out.num_prompts, seed=seed)
    found_D = auroc(held_out, scores_K, drawn_DP)
    value = float(auroc(held_out, scores_K)[0])
    ends = interval(value, found_D)
    rate = float(fit_on.right_K.sum() / fit_on.num_prompts)
    constant = Fitted(np.zeros(features_KH.shape[1]), float(np.log(rate / (1 - rate))))
    figures: dict[str, Any] = {
        "auroc": ends["value"],
        "low": ends["low"],
        "high": ends["high"],
        "num_prompts_fitted": fit_on.num_prompts,
        "num_prompts_held_out": held_out.num_prompts,
        "frac_right": round(float(items.right_K.sum() / items.num_prompts), DIGITS),
        "strength": choice.strength,
        "losses": [round(loss, DIGITS) for loss in choice.losses_D],
        "log_loss": round(log_loss(choice.fitted, features_KH[is_out_K], held_out), DIGITS),
        "log_loss_constant": round(log_loss(constant, features_KH[is_out_K], held_out), DIGITS),
    }
    if held_out.num_prompts < len(held_out.prompt_K):
        within = float(auroc_within(held_out, scores_K)[0])
        figures["within"] = interval(within, auroc_within(held_out, scores_K, drawn_DP))
    return Measured(
        choice.fitted,
        choice.place,
        figures | _trivial(trivial, is_out_K, (fit_on, held_out), drawn_DP, (value, found_D), seed),
    )


def _trivial(
    trivial: Sequence[Mapping[str, float]],
    is_out_K: np.ndarray,
    parts: tuple[Items, Items],
    drawn_DP: np.ndarray,
    head: tuple[float, np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Figures of the features that need no model; constant ones are left out.

    parts: the items to fit on and those held out.
    """
    fit_on, held_out = parts
    names = [name for name in trivial[0] if len({each[name] for each in trivial}) > 1]
    features_KF = np.array([[each[name] for name in names] for each in trivial], dtype=float)
    alone = {}
    for place, name in enumerate(names):
        falls = float(auroc(fit_on, features_KF[~is_out_K, place])[0]) < 0.5
        scores_K = features_KF[is_out_K, place] * (-1 if falls else 1)
        value = float(auroc(held_out, scores_K)[0])
        alone[name] = interval(value, auroc(held_out, scores_K, drawn_DP))
        alone[name]["sign"] = -1 if falls else 1
    if not names:
        return {"trivial": {}}
    together = choose(features_KF[~is_out_K][:, None], fit_on, seed=seed).fitted
    scores_K = together.log_odds(features_KF[is_out_K])
    value, found_D = float(auroc(held_out, scores_K)[0]), auroc(held_out, scores_K, drawn_DP)
    return {
        "trivial": alone,
        "together": interval(value, found_D),
        "minus_together": interval(head[0] - value, head[1] - found_D),
    }


def _is_held_out(items: Items, frac_held_out: float, seed: int) -> np.ndarray:
    """Which items are of held-out prompts, at least so many that an interval means something."""
    check_kinds(items, "prompts")
    num = round(frac_held_out * items.num_prompts)
    if num < LEAST_HELD_OUT:
        raise ValueError(
            f"{frac_held_out:g} of {items.num_prompts} prompts are {num} held out, but it takes "
            f"{LEAST_HELD_OUT} to measure a probe: log more prompts, or hold out a larger share"
        )
    order = np.random.default_rng(seed).permutation(items.num_prompts)
    is_out_P = np.zeros(items.num_prompts, dtype=bool)
    is_out_P[order[:num]] = True
    return is_out_P[items.prompt_K]
