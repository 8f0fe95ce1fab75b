"""Fit a head on some prompts and measure it on the others, beside features that need no model.

Shape letters: K items (prompts, rollouts or places in them), D layers, H hidden size, F features
that need no model, P prompts held out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from podsrl.probe.auroc import Items, auroc, auroc_within, draws, interval
from podsrl.probe.fit import Choice, Fitted, Loss, TooFew, check_kinds, choose, log_loss, of
from podsrl.probe.head import CHANCE
from podsrl.probe.pairs import choose_gated, choose_pairs, pair_loss

FRAC_HELD_OUT = 1 / 3
LEAST_HELD_OUT = 20
DIGITS = 4


@dataclass(frozen=True)
class Kind:
    """A way to fit a head, and what it is held to."""

    choose: Callable[..., Choice]
    auroc: Callable[..., np.ndarray]
    """Whose interval must lie above chance: over all pairs, or over those of one prompt."""
    loss: Loss
    of_pairs: bool = False
    """Fitted on pairs of rollouts of one prompt, so that there must be rollouts."""


KINDS = {
    "logistic": Kind(choose, auroc, log_loss),
    "bradley_terry": Kind(choose_pairs, auroc_within, pair_loss, of_pairs=True),
    "gated": Kind(choose_gated, auroc_within, pair_loss, of_pairs=True),
}


@dataclass(frozen=True)
class Measured:
    """A head and what it reaches on held-out prompts."""

    choice: Choice
    figures: dict[str, Any]
    """See `measure`; what JSON can hold."""


def measure(
    features_KDH: np.ndarray,
    items: Items,
    trivial: Sequence[Mapping[str, float]],
    *,
    seed: int,
    kind: str = "logistic",
    frac_held_out: float = FRAC_HELD_OUT,
) -> Measured:
    """Return the head that the prompts to fit on give, measured on the held-out ones.

    Prompts are split at random, each with all its items. Layer and penalty are chosen and the head
    is fitted on the ones; on the others it is measured once, and is not fitted again, so that the
    figures are those of the head itself.

    Args:
        features_KDH: hidden states of each item at each layer that is tried.
        trivial: features of each item that need no model, the same names for all.
        kind: a key of `KINDS`.
        frac_held_out: of the prompts.

    Returns figures:
        - `auroc`, `low`, `high`: a 95 % interval over held-out prompts (percentiles of a
          bootstrap); of a kind that is fitted on pairs, over pairs of one prompt's rollouts
        - `within`: the same over pairs of one prompt's rollouts; absent where a prompt is one item
        - `trivial`: as `auroc`, of each feature alone, its sign chosen on the prompts to fit on
        - `together`: of all of them in one logistic regression, or Bradley-Terry's for pairs
        - `minus_together`: the head's minus that, on the same draws
        - `log_loss`, `log_loss_constant`: of the head, and of the mean of the prompts fitted on;
          of pairs for a kind that is fitted on these, with log 2 as the constant one
        - `num_prompts_fitted`, `num_prompts_held_out`, `frac_right`, `strength`, `losses`

    Raises `TooFew`, a `ValueError`, for fewer than `LEAST_HELD_OUT` held-out prompts, and as
    `choose` does.
    """
    how = KINDS[kind]
    is_out_K = _is_held_out(items, frac_held_out, seed)
    fit_on, held_out = of(items, ~is_out_K), of(items, is_out_K)
    choice = how.choose(features_KDH[~is_out_K], fit_on, seed=seed)
    scores_K = choice.log_odds(features_KDH[is_out_K])
    drawn_DP = draws(held_out.num_prompts, seed=seed)
    reached = _reached(how.auroc, held_out, scores_K, drawn_DP)
    ends = interval(*reached)
    rate = float(fit_on.right_K.sum() / fit_on.num_prompts)
    constant = Fitted(np.zeros(1), float(np.log(rate / (1 - rate))))
    nothing_K1 = np.zeros((len(scores_K), 1))
    scored = Fitted(np.ones(1), 0.0)
    figures: dict[str, Any] = {
        "auroc": ends["value"],
        "low": ends["low"],
        "high": ends["high"],
        "num_prompts_fitted": fit_on.num_prompts,
        "num_prompts_held_out": held_out.num_prompts,
        "frac_right": round(float(items.right_K.sum() / items.num_prompts), DIGITS),
        "strength": choice.strength,
        "losses": [round(loss, DIGITS) for loss in choice.losses_D],
        "log_loss": round(how.loss(scored, scores_K[:, None], held_out), DIGITS),
        "log_loss_constant": round(how.loss(constant, nothing_K1, held_out), DIGITS),
    }
    if held_out.num_prompts < len(held_out.prompt_K):
        figures["within"] = interval(*_reached(auroc_within, held_out, scores_K, drawn_DP))
    parts, trivial = (fit_on, held_out), _telling(trivial, items, how)
    more = _trivial(trivial, is_out_K, parts, drawn_DP, reached, (how, seed))
    return Measured(choice, figures | more)


def told_of_head(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `podsrl.probe.head.About` says of the figures of `measure`, by its names."""
    return {
        "auroc": figures["auroc"],
        "auroc_low": figures["low"],
        "auroc_high": figures["high"],
        "num_prompts_fitted": figures["num_prompts_fitted"],
        "num_prompts_held_out": figures["num_prompts_held_out"],
        "within_low": figures["within"]["low"] if "within" in figures else None,
    }


def _reached(
    auroc_of: Callable[..., np.ndarray], items: Items, scores_K: np.ndarray, drawn_DP: np.ndarray
) -> tuple[float, np.ndarray]:
    """The value, and that of each draw, (D,)."""
    return float(auroc_of(items, scores_K)[0]), auroc_of(items, scores_K, drawn_DP)


def _trivial(
    trivial: Sequence[Mapping[str, float]],
    is_out_K: np.ndarray,
    parts: tuple[Items, Items],
    drawn_DP: np.ndarray,
    head: tuple[float, np.ndarray],
    fitting: tuple[Kind, int],
) -> dict[str, Any]:
    """Figures of the features that need no model.

    parts: the items to fit on and those held out. fitting: how the head was fitted, and the seed.
    """
    fit_on, held_out = parts
    how, seed = fitting
    names = list(trivial[0])
    features_KF = np.array([[each[name] for name in names] for each in trivial], dtype=float)
    alone = {}
    for place, name in enumerate(names):
        falls = float(how.auroc(fit_on, features_KF[~is_out_K, place])[0]) < CHANCE
        scores_K = features_KF[is_out_K, place] * (-1 if falls else 1)
        alone[name] = interval(*_reached(how.auroc, held_out, scores_K, drawn_DP))
        alone[name]["sign"] = -1 if falls else 1
    if not names:
        return {"trivial": {}}
    fit_together = choose_pairs if how.of_pairs else choose
    together = fit_together(features_KF[~is_out_K][:, None], fit_on, seed=seed)
    scores_K = together.log_odds(features_KF[is_out_K][:, None])
    value, found_D = _reached(how.auroc, held_out, scores_K, drawn_DP)
    return {
        "trivial": alone,
        "together": interval(value, found_D),
        "minus_together": interval(head[0] - value, head[1] - found_D),
    }


def _telling(
    trivial: Sequence[Mapping[str, float]], items: Items, how: Kind
) -> list[dict[str, float]]:
    """The features that differ between items; between those of one prompt where pairs are."""
    first: dict[tuple[str, int], float] = {}
    names: dict[str, bool] = {}
    for prompt, each in zip(items.prompt_K.tolist(), trivial, strict=True):
        group = prompt if how.of_pairs else 0
        for name, value in each.items():
            names[name] = names.get(name, False) or first.setdefault((name, group), value) != value
    return [{name: each[name] for name in names if names[name]} for each in trivial]


def _is_held_out(items: Items, frac_held_out: float, seed: int) -> np.ndarray:
    """Which items are of held-out prompts, at least so many that an interval means something."""
    check_kinds(items, "prompts")
    num = round(frac_held_out * items.num_prompts)
    if num < LEAST_HELD_OUT:
        raise TooFew(
            f"{frac_held_out:g} of {items.num_prompts} prompts are {num} held out, but it takes "
            f"{LEAST_HELD_OUT} to measure a probe: log more prompts, or hold out a larger share"
        )
    order = np.random.default_rng(seed).permutation(items.num_prompts)
    is_out_P = np.zeros(items.num_prompts, dtype=bool)
    is_out_P[order[:num]] = True
    return is_out_P[items.prompt_K]
