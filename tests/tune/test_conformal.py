"""Conformalised quantiles: what they promise, against a plain implementation and by hand."""

import math

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from podsrl.tune.conformal import LEARNING_RATE, NUM_TREES, Quantiles, fit, levels, widening


def plain_widening(quantiles: list[list[float]], scores: list[float], share: float) -> float:
    """The split conformal correction of one interval, score by score."""
    missed = sorted(
        max(low - y, y - high) for (low, high), y in zip(quantiles, scores, strict=True)
    )
    place = math.ceil(round(share * (len(scores) + 1), 9))
    return missed[min(place, len(missed)) - 1]


def test_levels_are_mirrored() -> None:
    assert levels(5) == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert levels(5) + levels(5)[::-1] == pytest.approx(1)


def test_widening_by_hand() -> None:
    """E is -0.5, 0.2 and 2; half of 3 + 1 is the 2nd smallest."""
    ends = np.array([[0.0, 0.5, 1.0]] * 3)
    assert widening(ends, np.array([0.5, 1.2, 3.0])) == pytest.approx([-0.2, 0.0, 0.2])
    # Where all lie well inside, intervals become narrower: the levels are met, not just kept.
    assert widening(ends, np.array([0.5, 0.5, 0.5])) == pytest.approx([0.5, 0.0, -0.5])


def test_widening_is_that_of_a_plain_implementation() -> None:
    rng = np.random.default_rng(0)
    for num_held in (1, 2, 3, 7, 40):
        quantiles = np.sort(rng.normal(size=(num_held, 5)), axis=1)
        scores = rng.normal(size=num_held)
        found = widening(quantiles, scores)
        for low, share in ((0, 4 / 6), (1, 2 / 6)):
            wanted = plain_widening(quantiles[:, [low, 4 - low]].tolist(), scores.tolist(), share)
            assert (found[4 - low], found[low]) == pytest.approx((wanted, -wanted))
        assert found[2] == 0


def test_intervals_hold_what_they_promise() -> None:
    """Whatever the boosters made of it: here they know nothing, and their quantiles are one point.

    1,000 draws of 19 held-out scores and a fresh one: the share of fresh ones inside is at least
    the nominal one, within 4 standard errors (0.06 at 2/6).
    """
    rng = np.random.default_rng(1)
    scores = rng.exponential(size=(1000, 20))
    inside = np.zeros(2)
    for row in scores:
        ends = 1.0 + widening(np.ones((19, 5)), row[:19])
        inside += [ends[0] <= row[19] <= ends[4], ends[1] <= row[19] <= ends[3]]
    assert (inside / 1000 >= np.array([4 / 6, 2 / 6]) - 0.06).all()
    assert (inside / 1000 <= np.array([4 / 6, 2 / 6]) + 0.06 + 1 / 20).all()


def noisy(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.uniform(size=(num, 2))
    return features, features[:, 0] + 0.1 * rng.normal(size=num)


def test_below_32_scores_quantiles_are_those_of_the_library() -> None:
    features, scores = noisy(31)
    found = fit(features, scores, seed=3)
    assert not found.widening_K.any()
    wanted = [
        HistGradientBoostingRegressor(
            loss="quantile",
            quantile=level,
            max_iter=NUM_TREES,
            learning_rate=LEARNING_RATE,
            max_depth=2,
            min_samples_leaf=3,
            early_stopping=False,
            random_state=3,
        )
        .fit(features, scores)
        .predict(features)
        for level in levels(5)
    ]
    assert (found.predict(features) == np.sort(np.stack(wanted, axis=1), axis=1)).all()


def test_from_32_on_a_tenth_is_held_out_and_widens() -> None:
    features, scores = noisy(40)
    found = fit(features, scores, seed=3)
    held = np.random.default_rng(3).permutation(40)[:4]
    rest = np.setdiff1d(np.arange(40), held)
    alone = fit(features[rest], scores[rest], seed=3, least_to_conformalise=1000)
    assert (found.widening_K == widening(alone.predict(features[held]), scores[held])).all()
    assert found.widening_K.any()


def test_a_constant_added_to_all_scores_is_added_to_the_quantiles() -> None:
    features, scores = noisy(40)
    first, second = (fit(features, scores + c, seed=3).predict(features) for c in (0.0, 5.0))
    assert second == pytest.approx(first + 5.0)


def test_edges() -> None:
    features, _ = noisy(6)
    assert (fit(features, np.full(6, 0.3), seed=0).predict(features) == 0.3).all()
    assert (fit(features[:1], np.array([0.3]), seed=0).predict(features) == 0.3).all()
    crossing = Quantiles(fit(*noisy(40), seed=0).models, np.array([9.0, 0, 0, 0, -9]))
    assert (np.diff(crossing.predict(features), axis=1) >= 0).all()
    with pytest.raises(ValueError, match="6 rows of features and 5 scores"):
        fit(features, np.zeros(5), seed=0)
    with pytest.raises(ValueError, match="0 rows of features and 0 scores"):
        fit(features[:0], np.zeros(0), seed=0)
