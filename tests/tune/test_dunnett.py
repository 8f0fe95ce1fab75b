"""Intervals of several differences together: published quantiles, another library, and coverage."""

import numpy as np
import pytest
from scipy import stats

from podsrl.intervals import t_quantile
from podsrl.tune.dunnett import differences, quantile


@pytest.mark.parametrize(
    ("num_compared", "degrees", "published"),
    [(2, 5, 3.03), (3, 10, 2.76), (3, 12, 2.68), (9, 20, 2.95)],
)
def test_published_quantiles(num_compared: int, degrees: int, published: float) -> None:
    """Two-sided, joint confidence 95 % (Dunnett 1964, table II)."""
    assert quantile(num_compared, degrees) == pytest.approx(published, abs=0.006)


def test_one_arm_is_students_t_and_many_degrees_are_the_normal_limit() -> None:
    assert quantile(1, 9) == pytest.approx(t_quantile(9), abs=1e-3)
    assert quantile(3, 100_000) == pytest.approx(2.349, abs=2e-3)


def test_against_another_library_where_seeds_do_nothing() -> None:
    """scipy takes no seeds out and has S - 1 more degrees for it: the same half but for these."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 6))
    found = differences(scores)
    theirs = stats.dunnett(*scores[1:], control=scores[0], rng=np.random.default_rng(0))
    interval = theirs.confidence_interval()
    assert found.values == pytest.approx((interval.low + interval.high) / 2)
    pooled = scores.var(axis=1, ddof=1).mean()
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    scale = (rest**2).sum() / 15 / pooled
    wanted = (interval.high - interval.low) / 2 * scale**0.5 * quantile(3, 15) / quantile(3, 20)
    assert wanted == pytest.approx(np.full(3, found.half), rel=0.01)


def test_by_hand() -> None:
    found = differences(np.array([[0.0, 1.0], [1.0, 4.0]]))
    assert found.values == pytest.approx([2.0])
    assert found.half == pytest.approx(12.706, abs=1e-2)
    with pytest.raises(ValueError, match="2 arms with 1 seeds each"):
        differences(np.zeros((2, 1)))


def test_what_a_seed_does_to_all_arms_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 4))
    first, second = differences(scores), differences(scores + 10 * rng.normal(size=4))
    assert second.values == pytest.approx(first.values)
    assert second.half == pytest.approx(first.half)


def test_all_intervals_together_hold_95_percent() -> None:
    """4,000 times no arm is better: some interval leaves out 0 in 5 %, +- 4 standard errors."""
    rng = np.random.default_rng(2)
    wrong = 0
    for scores in rng.normal(size=(4000, 4, 4)):
        found = differences(scores)
        wrong += bool((abs(found.values) > found.half).any())
    assert 0.05 - 0.014 < wrong / 4000 < 0.05 + 0.014
