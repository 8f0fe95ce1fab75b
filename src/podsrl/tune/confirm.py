"""The best trials and the recipe on fresh seeds, as an ordinary comparison, and what comes of it.

The best of many noisy scores is too good to be true, and more so the more there are. So no score of
the search is a result: what was best there is run again with seeds that the search has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from podsrl.compare.comparison import Comparison
from podsrl.intervals import Interval, mean_interval
from podsrl.runs.folder import read_json
from podsrl.tune.dunnett import differences
from podsrl.tune.suggest import recommend
from podsrl.tune.tuning import RECIPE, Trial, Tuning, known, score_of

FOLDER = "confirm"


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """One arm of the confirmation: mean accuracy over the marks, over its seeds."""

    arm: str
    values: dict[str, Any]
    search_score: float | None
    mean: Interval
    difference: float | None
    """From the recipe's mean; None for the recipe, and where nothing can be said."""
    half: float | None
    """Half the width of the 95 % interval, which holds for all arms together."""

    @property
    def is_better(self) -> bool:
        """Whether the interval of the difference lies above 0."""
        return self.difference is not None and self.half is not None and self.difference > self.half


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the confirmation showed."""

    arms: list[Confirmed]
    """The recipe first."""
    seeds: list[int]
    """Those with which every arm has a result."""
    winner: str | None
    text: str


def chosen(tuning: Tuning) -> list[Trial]:
    """The trials to confirm: those the search recommends, the recipe's own left out."""
    trials = tuning.trials()
    values, scores = known(trials)
    if not scores:
        return []
    by_key = {str(trial.values): trial for trial in trials if trial.score is not None}
    ranked = recommend(tuning.search, values[: len(scores)], scores, seed=tuning.seed)
    found = [by_key[str(values[place])] for place in ranked if str(values[place]) in by_key]
    return [trial for trial in found if trial.values != tuning.recipe_values][
        : tuning.num_confirmed
    ]


def comparison(tuning: Tuning, trials: Sequence[Trial]) -> Comparison:
    """The recipe and these trials on the seeds after the search's."""
    first = tuning.seed + 1
    return Comparison(
        output_dir=tuning.output_dir / FOLDER,
        arms={RECIPE: tuning.recipe, **{t.name: tuning.settings(t.values) for t in trials}},
        seeds=tuple(range(first, first + tuning.num_confirm_seeds)),
        budget=tuning.budget,
        baseline=RECIPE,
    )


def verdict(tuning: Tuning) -> Verdict | None:
    """What the folder's confirmation shows; None before an arm and the recipe have a result.

    A winner is named only if its interval against the recipe lies above 0: the one with the largest
    mean of those. Seeds that some arm has no result with are left out for all; an arm without any
    is left out.
    """
    folder = tuning.output_dir / FOLDER
    if not (folder / "comparison.json").is_file():
        return None
    content = read_json(folder / "comparison.json")
    scores = {arm: _scores(folder / arm, content["seeds"]) for arm in content["arms"]}
    scores = {arm: by_seed for arm, by_seed in scores.items() if by_seed}
    if RECIPE not in scores or len(scores) < 2:
        return None
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in scores.values())))
    names = [RECIPE, *(arm for arm in scores if arm != RECIPE)]
    found, half = np.full(len(names) - 1, np.nan), None
    if len(seeds) > 1:
        result = differences(np.array([[scores[arm][seed] for seed in seeds] for arm in names]))
        found, half = result.values, result.half
    trials = {trial.name: trial for trial in tuning.trials()}
    arms = [
        Confirmed(
            arm=arm,
            values=tuning.recipe_values if arm == RECIPE else trials[arm].values,
            search_score=None if arm == RECIPE else trials[arm].score,
            mean=mean_interval(list(scores[arm].values())),
            difference=None if arm == RECIPE or half is None else float(found[place - 1]),
            half=None if arm == RECIPE else half,
        )
        for place, arm in enumerate(names)
    ]
    better = [arm for arm in arms if arm.is_better]
    winner = max(better, key=lambda arm: arm.difference or 0.0).arm if better else None
    return Verdict(arms=arms, seeds=seeds, winner=winner, text=_text(arms, winner, seeds))


def _scores(folder: Path, seeds: Sequence[int]) -> dict[int, float]:
    """Seed -> score of the finished runs."""
    found = {}
    for seed in seeds:
        run = folder / f"seed-{seed}"
        score = score_of(run) if (run / "result.json").is_file() else None
        if score is not None:
            found[seed] = score
    return found


def _text(arms: Sequence[Confirmed], winner: str | None, seeds: Sequence[int]) -> str:
    if len(seeds) < 2:
        return "no difference shown: fewer than two seeds have a result with every arm"
    best = max(arms[1:], key=lambda arm: arm.difference or 0.0)
    named = next((arm for arm in arms if arm.arm == winner), best)
    points = f"{100 * (named.difference or 0.0):+.1f} points, 95 % {_bounds(named)}"
    if winner is None:
        return (
            f"no difference shown: {best.arm} is nearest with {points}, over {len(seeds)} seeds; "
            "keep the recipe, or confirm with more seeds"
        )
    return f"{winner} is better than the recipe: {points}, over {len(seeds)} seeds"


def _bounds(arm: Confirmed) -> str:
    value, half = arm.difference or 0.0, arm.half or 0.0
    return f"{100 * (value - half):+.1f} to {100 * (value + half):+.1f}"
