"""The next settings to try: against a plain implementation, and never what does not go together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from podsrl.tune import conformal
from podsrl.tune.prior import Prior, read_prior
from podsrl.tune.space import Choices, Range, Space, Values
from podsrl.tune.suggest import NUM_AT_RANDOM, Search, propose, recommend

SIZES = Space({"num_rollouts": Choices((4, 8)), "num_generations": Choices((4, 8))})


def sizes(values: Values) -> tuple[int, int]:
    return values["num_rollouts"], values["num_generations"]


def keeps_no_more_than_it_samples(values: Values) -> bool:
    n, m = sizes(values)
    return m <= n


def search_of(space: Space, prior: Prior | None = None) -> Search:
    return Search(space, keeps_no_more_than_it_samples, sizes, prior)


WIDE = Space(
    {
        "num_rollouts": Range(low=4, high=64, is_log=True, is_whole=True),
        "num_generations": Choices((4, 8, 16)),
        "learning_rate": Range(low=1e-6, high=1e-4, is_log=True, is_whole=False),
    }
)


def measured(num: int, seed: int = 0) -> tuple[list[Values], list[float]]:
    """Settings and scores that rise with the learning rate."""
    rng = np.random.default_rng(seed)
    found: list[Values] = []
    while len(found) < num:
        values = WIDE.draw(rng)
        if keeps_no_more_than_it_samples(values):
            found.append(values)
    scores = [0.3 + 0.02 * np.log10(v["learning_rate"]) + 0.01 * rng.normal() for v in found]
    return found, scores


def test_the_last_setting_that_is_left_and_then_none() -> None:
    """Of four pairs one keeps more than it samples; tried ones are not tried again."""
    tried: list[Values] = [{"num_rollouts": 4, "num_generations": 4}]
    tried.append({"num_rollouts": 8, "num_generations": 4})
    search = search_of(SIZES)
    last = propose(search, tried, [0.1, 0.2], seed=0)
    assert last is not None and last.values == {"num_rollouts": 8, "num_generations": 8}
    assert propose(search, [*tried, last.values], [0.1, 0.2], seed=0) is None


@pytest.mark.parametrize("num", [0, 12])
def test_what_does_not_go_together_is_never_proposed(num: int) -> None:
    tried, scores = measured(num)
    for seed in range(6):
        found = propose(search_of(WIDE), tried, scores, seed=seed)
        assert found is not None and keeps_no_more_than_it_samples(found.values)
        assert found.values not in tried


def test_same_seed_and_scores_same_proposal() -> None:
    tried, scores = measured(8)
    first, again, other = (propose(search_of(WIDE), tried, scores, seed=s) for s in (1, 1, 2))
    assert first == again and first != other
    assert first is not None and first.chosen == "model"


def test_below_five_scores_it_is_random_search() -> None:
    """Scores say nothing yet, and trials under way have none."""
    tried, scores = measured(9)
    few = NUM_AT_RANDOM - 1
    first = propose(search_of(WIDE), tried, scores[:few], seed=1)
    other = propose(search_of(WIDE), tried, [-s for s in scores[:few]], seed=1)
    assert first == other and first is not None and first.chosen == "random"


def test_against_a_plain_implementation() -> None:
    """The same candidates and draws; boosters, sorting and the largest value one by one."""
    tried, scores = measured(12)
    found = propose(search_of(WIDE), tried, scores, seed=5)
    rng = np.random.default_rng(5)
    seen = [json.dumps(values, sort_keys=True) for values in tried]
    candidates: list[Values] = []
    while len(candidates) < 500:
        values = WIDE.draw(rng)
        key = json.dumps(values, sort_keys=True)
        if values["num_generations"] <= values["num_rollouts"] and key not in seen:
            seen.append(key)
            candidates.append(values)

    def row(values: Values) -> list[float]:
        n, m, rate = (values[name] for name in WIDE.dimensions)
        return [
            np.log(n / 4) / np.log(16),
            [4, 8, 16].index(m) / 2,
            np.log(rate / 1e-6) / np.log(100),
        ]

    columns = []
    for k in range(1, 6):
        booster = HistGradientBoostingRegressor(
            loss="quantile",
            quantile=k / 6,
            max_iter=conformal.NUM_TREES,
            learning_rate=conformal.LEARNING_RATE,
            max_depth=2,
            min_samples_leaf=3,
            early_stopping=False,
            random_state=5,
        )
        booster.fit([row(values) for values in tried], scores)
        columns.append(booster.predict([row(values) for values in candidates]))
    drawn = rng.integers(5, size=500)
    values = [sorted(column[i] for column in columns)[drawn[i]] for i in range(500)]
    assert found is not None and found.values == candidates[values.index(max(values))]


def test_a_lucky_score_is_not_believed_alone() -> None:
    """0.50 among neighbours at 0.30 stands behind one of several at 0.45, by what is around it."""
    space = Space({"learning_rate": Range(low=0.0, high=1.0, is_log=False, is_whole=False)})
    places = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    scores = [0.3, 0.3, 0.5, 0.3, 0.3, 0.3, 0.45, 0.45, 0.46, 0.45, 0.45, 0.45]
    search = Search(space, lambda _: True, lambda _: (8, 4))
    settings = [{"learning_rate": place} for place in places]
    assert recommend(search, settings, scores, seed=0)[0] == 8
    assert sorted(recommend(search, settings, scores, seed=0)) == list(range(12))
    assert recommend(search, settings[:1], scores[:1], seed=0) == [0]


def test_the_prior_between_predicted_pairs() -> None:
    prior = Prior({(16, 4): 2.0, (64, 4): 0.5, (4, 4): 1.0, (16, 16): 8.0})
    assert prior.log_ratio(16, 4) == pytest.approx(np.log(2))
    assert prior.log_ratio(32, 4) == pytest.approx(0.0)
    # Pairs with n = m speak for n = m.
    assert 0 < prior.log_ratio(8, 8) < np.log(8)


def test_draws_at_random_follow_the_prior() -> None:
    """Eight times as fast, drawn eight times as often: 8 / 9 of 300, +- 4 standard errors."""
    search = search_of(SIZES, Prior({(4, 4): 1.0, (8, 8): 8.0, (8, 4): 1e-9}))
    drawn = [propose(search, [], [], seed=seed) for seed in range(300)]
    share = np.mean([p is not None and sizes(p.values) == (8, 8) for p in drawn])
    assert share == pytest.approx(8 / 9, abs=0.073)


def plan(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    return path


def test_a_plan_is_read_or_refused(tmp_path: Path) -> None:
    gain = {"num_rollouts": 8, "num_kept": 4, "time_ratio": [1.5, 1.0, 2.0]}
    dead = {"num_rollouts": 4, "num_kept": 4, "time_ratio": [None, None, None]}
    assert read_prior(plan(tmp_path, {"gains": [gain, dead]})).time_ratios == {(8, 4): 1.5}
    with pytest.raises(ValueError, match=r"predicts no arm: .* without --pilot 0"):
        read_prior(plan(tmp_path, {"costs": {}}))
    with pytest.raises(ValueError, match="found no arm that learns"):
        read_prior(plan(tmp_path, {"gains": [dead]}))
    with pytest.raises(ValueError, match=r"none\.json does not exist"):
        read_prior(tmp_path / "none.json")


def test_the_last_of_many_is_found_though_draws_miss_it() -> None:
    """Of 15,600 pairs one is left: a thousand draws find it once in sixteen times."""
    space = Space(
        {
            "num_rollouts": Range(low=1, high=1300, is_log=True, is_whole=True),
            "num_generations": Choices((1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)),
        }
    )
    *tried, last = space.every()
    search = Search(space, lambda _: True, sizes)
    found = propose(search, tried, [], seed=0)
    assert found is not None and found.values == last
    assert propose(search, [*tried, last], [], seed=0) is None
