"""The next settings to try, from the scores of those that were tried.

Shape letters: N measured settings, P candidates, D features, K quantile levels.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from podsrl.tune.conformal import fit
from podsrl.tune.prior import Prior
from podsrl.tune.space import Space, Values

NUM_CANDIDATES = 500
NUM_AT_RANDOM = 5
MAX_DRAWS_WITHOUT_NEW = 1000
MAX_TO_LIST = 20_000


@dataclass(frozen=True)
class Proposal:
    """Settings to try, and how they were chosen: at random, or by the model."""

    values: Values
    chosen: str


@dataclass(frozen=True)
class Search:
    """Where settings are looked for.

    is_valid: whether values of one setting go with those of the others.
    sizes: n and m that a run with these values has, for the prior.
    """

    space: Space
    is_valid: Callable[[Values], bool]
    sizes: Callable[[Values], tuple[int, int]]
    prior: Prior | None = None


def propose(
    search: Search,
    tried: Sequence[Values],
    scores: Sequence[float],
    *,
    seed: int,
) -> Proposal | None:
    """Return settings that have not been tried and that go together, None where none are left.

    The first `NUM_AT_RANDOM` are drawn from the space, with a prior as its time ratios are. Then
    Thompson sampling on the conformalised quantiles: of each of `NUM_CANDIDATES` random candidates
    one quantile, drawn anew, is its value, and the largest is tried. It needs no waiting: several
    workers that know the same scores draw differently.

    Args:
        tried: settings of all trials, also of those without a score yet.
        scores: of the first of `tried`; those after them are under way.
        seed: of this proposal; the same seed and scores propose the same.

    Example: with a space of n in {4, 8} and m in {4, 8} and all but (8, 8) tried, (8, 8); then
    None, as (4, 8) keeps more than it samples.
    """
    rng = np.random.default_rng(seed)
    candidates = _draw(search, tried, rng)
    if not candidates:
        return None
    if len(scores) < NUM_AT_RANDOM:
        return Proposal(candidates[_at_random(search, candidates, rng)], "random")
    features_PD = features(search, candidates)
    found = fit(features(search, tried[: len(scores)]), np.array(scores), seed=seed)
    quantiles_PK = found.predict(features_PD)
    drawn_P = rng.integers(quantiles_PK.shape[1], size=len(candidates))
    values_P = quantiles_PK[np.arange(len(candidates)), drawn_P]
    return Proposal(candidates[int(values_P.argmax())], "model")


def recommend(
    search: Search, settings: Sequence[Values], scores: Sequence[float], *, seed: int
) -> list[int]:
    """Return the places of measured settings, those first that should be confirmed.

    In order of the mean of the score and the model's median there, which averages over settings
    that are alike: of many noisy scores the best is too good to be true.

    Example: one setting gives [0].
    """
    measured_N = np.array(scores)
    found_N = fit(features(search, settings), measured_N, seed=seed)
    median_N = np.median(found_N.predict(features(search, settings)), axis=1)
    return [int(place) for place in np.argsort(-(measured_N + median_N) / 2, kind="stable")]


def features(search: Search, settings: Sequence[Values]) -> np.ndarray:
    """What the model sees of settings, (P, D): their values, and what the prior predicts."""
    encoded_PD = search.space.encode(settings)
    if search.prior is None:
        return encoded_PD
    return np.column_stack([encoded_PD, _predicted(search, search.prior, settings)])


def _predicted(search: Search, prior: Prior, settings: Sequence[Values]) -> np.ndarray:
    """The log of each setting's predicted time ratio, (P,)."""
    pairs = [search.sizes(values) for values in settings]
    ratios = {pair: prior.log_ratio(*pair) for pair in set(pairs)}
    return np.array([ratios[pair] for pair in pairs])


def _draw(search: Search, tried: Sequence[Values], rng: np.random.Generator) -> list[Values]:
    """Candidates, all different, valid and not tried; fewer where the space has no more."""
    seen = {_key(values) for values in tried}
    found: list[Values] = []
    without_new = 0
    while len(found) < NUM_CANDIDATES and without_new < MAX_DRAWS_WITHOUT_NEW:
        values = search.space.draw(rng)
        key = _key(values)
        without_new += 1
        if key not in seen and search.is_valid(values):
            seen.add(key)
            found.append(values)
            without_new = 0
    if not found and search.space.num_values() <= MAX_TO_LIST:  # few are left, or none
        return [v for v in search.space.every() if _key(v) not in seen and search.is_valid(v)]
    return found


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _at_random(search: Search, candidates: Sequence[Values], rng: np.random.Generator) -> int:
    """The place of one candidate, drawn as its predicted time ratio is."""
    if search.prior is None:
        return 0
    weights_P = np.exp(_predicted(search, search.prior, candidates))
    return int(rng.choice(len(candidates), p=weights_P / weights_P.sum()))
