"""A search: a recipe, the space of what may change, and what each trial may spend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from podsrl.compare.budget import FIELDS as BUDGET_FIELDS
from podsrl.compare.budget import Budget, read_budget
from podsrl.compare.comparison import PlannedRun, base_settings, check_arms
from podsrl.compare.presets import Settings, arm_settings
from podsrl.compare.queue import state_of
from podsrl.runs.checks import check_names, read_yaml
from podsrl.runs.evaluations import read_curve
from podsrl.runs.folder import device_name, read_json, versions, write_json
from podsrl.runs.settings import parse_settings
from podsrl.tune.prior import read_prior
from podsrl.tune.settings import AHEAD, fits, trial_settings
from podsrl.tune.space import Space, Values, read_space
from podsrl.tune.suggest import MAX_DRAWS_WITHOUT_NEW, Search

FIELDS = (
    "recipe",
    "space",
    "trials",
    "budget",
    *(name for names in BUDGET_FIELDS.values() for name in names),
    "output_dir",
    "seed",
    "plan",
    "confirm_settings",
    "confirm_seeds",
)
DEFAULT_TRIALS, DEFAULT_CONFIRMED, DEFAULT_CONFIRM_SEEDS = 24, 3, 4
RECIPE = "recipe"
"""Name of the recipe itself among the confirmed, and of how its trial was chosen."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that were proposed, and what came of them."""

    number: int
    values: Values
    chosen: str
    """recipe, random or model."""
    run: PlannedRun

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @cached_property
    def state(self) -> str:
        """Of its run, as `podsrl.compare.queue.state_of` has it, at the first look."""
        return state_of(self.run)

    @cached_property
    def score(self) -> float | None:
        """See `score_of`; None unless it is finished."""
        return score_of(self.run.folder) if self.state == "finished" else None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A search as its file describes it."""

    output_dir: Path
    recipe: Settings
    recipe_values: Values
    """What the recipe has of the settings in the space."""
    search: Search
    num_trials: int
    budget: Budget
    seed: int
    num_confirmed: int
    num_confirm_seeds: int

    def settings(self, values: Values) -> Settings:
        """All settings of a trial with these values; the recipe's own are the recipe."""
        if values == self.recipe_values:
            return self.recipe
        return trial_settings(values, self.recipe, self.search.space)

    def trials(self) -> list[Trial]:
        """Those that have been proposed, in order, as the folder has them now."""
        found: list[Trial] = []
        while (path := self.folder(len(found)) / "trial.json").is_file():
            content = read_json(path)
            values = content["values"]
            run = self.run(len(found), values)
            found.append(Trial(number=len(found), values=values, chosen=content["chosen"], run=run))
        return found

    def folder(self, number: int) -> Path:
        """Where a trial's proposal and run are."""
        return self.output_dir / trial_name(number)

    def run(self, number: int, values: Values) -> PlannedRun:
        """The run of a trial. All have one seed: what it does to a score, it does to all."""
        folder = self.folder(number) / f"seed-{self.seed}"
        own = {"output_dir": str(folder), "seed": self.seed, **self.budget.settings}
        return PlannedRun(
            arm=trial_name(number),
            seed=self.seed,
            folder=folder,
            settings=self.settings(values) | own,
        )


def trial_name(number: int) -> str:
    """Example: `trial_name(7) == "trial-007"`."""
    return f"trial-{number:03}"


def score_of(folder: Path) -> float | None:
    """Return the mean accuracy over the evaluations of a run after its first step; None without.

    The mean over the marks and not the end, because it asks for learning early, too, and one
    evaluation is noisy. On the clock a step past several marks counts once for each, and a last row
    without a mark not at all.

    Example: accuracies 0.2 before the first step, then 0.3 and 0.5: 0.4.
    """
    rows = [row for row in read_curve(folder) if row["step"] > 0]
    marked = [row for row in rows if row.get("mark_seconds") is not None] or rows
    return sum(row["accuracy"] for row in marked) / len(marked) if marked else None


def load_tuning(path: Path) -> Tuning:
    """Read and check a tune file; see docs/tune.md for its fields. Nothing is loaded or written.

    Raises `ValueError` naming the field or setting and the remedy, also for a space in which no
    drawn values go together.
    """
    if not path.is_file():
        raise ValueError(f"tune file {path} does not exist: give a YAML file")
    content = read_yaml(path)
    check_names("field", content, FIELDS, "see docs/tune.md")
    recipe = arm_settings(RECIPE, {}, base_settings(content.get("recipe") or {}, path.parent))
    space = read_space(content.get("space"))
    _check_ahead(recipe, space)
    tuning = Tuning(
        output_dir=Path(content.get("output_dir") or f"runs/{path.stem}"),
        recipe=recipe,
        recipe_values=_values_of(recipe, space),
        search=_search(recipe, space, content.get("plan"), path.parent),
        num_trials=_whole(content, "trials", DEFAULT_TRIALS, least=1),
        budget=read_budget(content),
        seed=_whole(content, "seed", 0, least=0),
        num_confirmed=_whole(content, "confirm_settings", DEFAULT_CONFIRMED, least=0),
        num_confirm_seeds=_whole(content, "confirm_seeds", DEFAULT_CONFIRM_SEEDS, least=2),
    )
    check_arms([tuning.run(0, tuning.recipe_values)])
    _check_space(tuning)
    return tuning


def write_tuning(tuning: Tuning) -> None:
    """Write tune.json; a later start may ask for more trials, and for nothing else.

    Raises `ValueError` where the folder holds a search of other settings.
    """
    path = tuning.output_dir / "tune.json"
    _, config, _ = parse_settings(tuning.run(0, tuning.recipe_values).settings)
    content: dict[str, Any] = {
        "recipe": tuning.recipe,
        "space": {name: repr(of) for name, of in tuning.search.space.dimensions.items()},
        "budget": tuning.budget.unit,
        **tuning.budget.settings,
        "seed": tuning.seed,
        "prior": None if tuning.search.prior is None else repr(tuning.search.prior),
    }
    if path.exists():
        _check_same(read_json(path), content, path)
    write_json(
        path,
        content
        | {
            "trials": tuning.num_trials,
            "confirm_settings": tuning.num_confirmed,
            "confirm_seeds": tuning.num_confirm_seeds,
            "versions": versions(device_name(config.device)),
        },
    )


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    for name, value in new.items():
        if old.get(name) != value:
            raise ValueError(
                f"{name} is {value!r}, but {path} was begun with {old.get(name)!r}: name another "
                "output_dir, or undo the change"
            )


def _search(recipe: Settings, space: Space, plan: Any, folder: Path) -> Search:
    def settings(values: Values) -> Settings:
        return trial_settings(values, recipe, space)

    def sizes(values: Values) -> tuple[int, int]:
        found = settings(values)
        return found["num_rollouts"], found["num_generations"]

    prior = None
    if plan is not None:
        beside_file = folder / str(plan)
        prior = read_prior(beside_file if beside_file.is_file() else Path(str(plan)))
    return Search(space, lambda values: fits(settings(values)), sizes, prior)


def _values_of(recipe: Settings, space: Space) -> Values:
    """The recipe's values of the settings in the space, the defaults of those it leaves out."""
    parts = parse_settings({**recipe, "output_dir": "runs/none"})
    found = {}
    for name in space.dimensions:
        value = next(getattr(part, name) for part in parts if hasattr(part, name))
        found[name] = recipe.get(name, getattr(value, "value", value))
    return found


def _check_ahead(recipe: Settings, space: Space) -> None:
    """Rollouts sampled ahead are counted in rows, so that another m would mean other prompts."""
    named = [name for name in AHEAD if recipe.get(name)]
    if named and "num_generations" in space.dimensions:
        raise ValueError(
            f"the recipe sets {named[0]}, which depends on num_generations, and the space changes "
            "that: leave one of them out"
        )


def _check_space(tuning: Tuning) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    space = tuning.search.space
    if not any(tuning.search.is_valid(space.draw(rng)) for _ in range(MAX_DRAWS_WITHOUT_NEW)):
        raise ValueError(
            "space: no values that were drawn go together: num_rollouts (n) must be at least "
            "num_generations (m), and the rows of a step whole groups of m"
        )


def _whole(content: Mapping[str, Any], name: str, default: int, *, least: int) -> int:
    value = content.get(name, default)
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number, at least {least}")
    return value


def scored(trials: Sequence[Trial]) -> list[Trial]:
    """Those that have a score, the best measured first, and of equal ones the earlier."""
    found = [trial for trial in trials if trial.score is not None]
    return sorted(found, key=lambda trial: (-(trial.score or 0.0), trial.number))


def known(trials: Sequence[Trial]) -> tuple[list[Values], list[float]]:
    """Values of all trials, those with scores first, and these scores.

    A failed trial counts as the lowest score, so that the model keeps away from it; without any
    score it says nothing yet.
    """
    finished = scored(trials)
    scores = [trial.score or 0.0 for trial in finished]
    failed = [trial for trial in trials if trial.state == "failed"] if scores else []
    first = finished + failed
    rest = [trial for trial in trials if trial not in first]
    return [t.values for t in first + rest], scores + [min(scores, default=0.0)] * len(failed)
