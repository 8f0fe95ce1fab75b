"""A comparison: arms that differ in some settings, each run with the same seeds and budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from podsrl.compare.budget import FIELDS as BUDGET_FIELDS
from podsrl.compare.budget import Budget, read_budget
from podsrl.compare.predictions import read_predictions
from podsrl.compare.presets import (
    OWN_SETTINGS,
    PRESETS,
    Settings,
    arm_settings,
    check_settings,
)
from podsrl.compare.weights import check_weights, digests_of_weights
from podsrl.plugins import beside, by_file_name
from podsrl.runs.checks import check_names, check_share, read_yaml
from podsrl.runs.folder import device_name, read_json, versions, write_json
from podsrl.runs.settings import parse_settings
from podsrl.runs.training import check_options, fit_to_task, load_questions
from podsrl.tasks.questions import QuestionArguments

FIELDS = (
    "recipe",
    "arms",
    "seeds",
    "budget",
    *(name for names in BUDGET_FIELDS.values() for name in names),
    "output_dir",
    "baseline",
    "share",
    "predictions",
)
QUESTION_SETTINGS = (
    *(each.name for each in fields(QuestionArguments)),
    "train_limit",
    "evaluate_limit",
)
DEFAULT_SEEDS = 8
LONGEST_NAME = 100
# What else is in the folder of a comparison.
TAKEN_NAMES = ("comparison.json", "report")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison."""

    arm: str
    seed: int
    folder: Path
    settings: Settings
    """Everything that `podsrl train` is told, as a recipe."""

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Arms, seeds and what each run may spend."""

    output_dir: Path
    arms: dict[str, Settings]
    """Settings of each arm as `podsrl train` takes them, n and m always among them."""
    seeds: tuple[int, ...]
    budget: Budget
    baseline: str
    share: float = 1.0
    """Of the baseline's best, the level to which the report measures times."""
    predictions: dict[str, Any] | None = None
    """What is predicted of the arms, fixed before they run; see predictions.py."""

    def runs(
        self, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> list[PlannedRun]:
        """All runs, or those of some arms and seeds, in the order in which they start.

        Seed by seed, so that drift of the machine hits all arms alike, and each seed begins with
        another arm: with arms a, b, c and seeds 0, 1: a0 b0 c0 b1 c1 a1.

        Raises `ValueError` for an arm or seed that the comparison does not have.
        """
        _check_known("--arms", arms, list(self.arms))
        _check_known("--seeds", seeds, list(self.seeds))
        names = list(self.arms)
        runs = []
        for place, seed in enumerate(self.seeds):
            first = place % len(names)
            for arm in names[first:] + names[:first]:
                if (arms is None or arm in arms) and (seeds is None or seed in seeds):
                    runs.append(self._run(arm, seed))
        return runs

    def _run(self, arm: str, seed: int) -> PlannedRun:
        folder = self.output_dir / arm / f"seed-{seed}"
        own = {
            "output_dir": str(folder),
            "seed": seed,
            **self.budget.settings,
        }
        return PlannedRun(arm=arm, seed=seed, folder=folder, settings=self.arms[arm] | own)


def load_comparison(path: Path, changes: Mapping[str, Any] | None = None) -> Comparison:
    """Read and check a comparison file; see docs/compare.md for its fields.

    changes: settings that win over those of its recipe.

    Every arm's settings, task, data and model name are checked as `podsrl train` checks them;
    nothing is loaded or written.

    Raises `ValueError` naming the field or arm and the remedy.
    """
    if not path.is_file():
        raise ValueError(f"comparison {path} does not exist: give a YAML file")
    content = read_yaml(path)
    check_names("field", content, FIELDS, "see docs/compare.md")
    base = base_settings(content.get("recipe") or {}, path.parent) | dict(changes or {})
    arms = {
        name: arm_settings(name, beside(own, path.parent), base)
        for name, own in _arms(content).items()
    }
    budget = read_budget(content)
    baseline = content.get("baseline") or ("grpo" if "grpo" in arms else next(iter(arms)))
    _check_known("baseline", [baseline], list(arms))
    check_share("share", content.get("share", 1.0))
    comparison = Comparison(
        output_dir=Path(content.get("output_dir") or f"runs/{path.stem}"),
        arms=arms,
        seeds=_seeds(content.get("seeds", DEFAULT_SEEDS)),
        budget=budget,
        baseline=baseline,
        share=content.get("share", 1.0),
        predictions=read_predictions(
            content.get("predictions"),
            path.parent,
            arms=list(arms),
            baseline=baseline,
            unit=budget.unit,
        ),
    )
    check_arms(comparison.runs(seeds=comparison.seeds[:1]))
    return comparison


def write_comparison(comparison: Comparison) -> None:
    """Write comparison.json; arms and seeds that are there already from an earlier start stay.

    Raises `ValueError` where the folder holds runs of other settings under the same names, or of a
    model with other weights.
    """
    path = comparison.output_dir / "comparison.json"
    _, config, _ = parse_settings(comparison.runs()[0].settings)
    arguments = [parse_settings(settings)[0] for settings in comparison.arms.values()]
    content: dict[str, Any] = {
        "arms": comparison.arms,
        "seeds": list(comparison.seeds),
        "budget": comparison.budget.unit,
        **comparison.budget.settings,
        "baseline": comparison.baseline,
        "share": comparison.share,
        **({"predictions": comparison.predictions} if comparison.predictions else {}),
        "task": _common([a.task for a in arguments]),
        "model": _common([a.model for a in arguments]),
        "weights": digests_of_weights(a.model for a in arguments),
        "versions": versions(device_name(config.device)),
    }
    if path.exists():
        content = _merged(read_json(path), content, path)
    write_json(path, content)


def _merged(old: dict[str, Any], new: dict[str, Any], path: Path) -> dict[str, Any]:
    _check_same("budget", old.get("budget", "seconds"), new["budget"], path)
    for name in BUDGET_FIELDS[new["budget"]]:
        _check_same(name, old[name], new[name], path)
    if old.get("predictions") != new.get("predictions"):
        raise ValueError(
            f"the predictions are others than {path} was begun with, and they are made before the "
            "runs: name another output_dir, or undo the change"
        )
    check_weights(old.get("weights", {}), new["weights"], path)
    for arm in set(old["arms"]) & set(new["arms"]):
        # A collection, or a folder from elsewhere, names own code otherwise.
        before, after = by_file_name(old["arms"][arm]), by_file_name(new["arms"][arm])
        for name in sorted(set(before) | set(after)):
            _check_same(f"{name} of arm {arm}", before.get(name), after.get(name), path)
    return {
        **new,
        # Of runs from before weights were written down nobody knows: nothing is said of any then.
        "weights": (old["weights"] | new["weights"]) if "weights" in old else {},
        "arms": old["arms"] | new["arms"],
        "seeds": sorted({*old["seeds"], *new["seeds"]}),
    }


def _check_same(what: str, old: Any, new: Any, path: Path) -> None:
    if old != new:
        raise ValueError(
            f"{what} is {new!r}, but {path} was begun with {old!r}: name another output_dir, or "
            "undo the change"
        )


def base_settings(recipe: Any, folder: Path) -> Settings:
    """Return what all arms share: a mapping, or a recipe file beside this one or under the cwd.

    Raises `ValueError` for a file that is not there, and for settings that no run has or that are
    set for all runs alike.
    """
    if isinstance(recipe, str):
        paths = [folder / recipe, Path(recipe)]
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise ValueError(f"recipe {recipe} does not exist: give a recipe file, or a mapping")
        recipe = read_yaml(found)
        recipe = {key: value for key, value in recipe.items() if key not in OWN_SETTINGS}
        folder = found.parent
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe is {recipe!r}: give a recipe file, or a mapping of settings")
    check_settings("recipe", recipe)
    return beside(recipe, folder)


def _arms(content: Mapping[str, Any]) -> dict[str, Settings]:
    arms = content.get("arms")
    if isinstance(arms, list):
        arms = dict.fromkeys(map(str, arms))
    if not arms or not isinstance(arms, dict):
        raise ValueError(
            f"arms is {arms!r}: name at least one, as in arms: {{grpo: {{}}, pods: {{}}}}; "
            f"presets: {', '.join(PRESETS)}"
        )
    for name, changes in arms.items():
        if not _is_folder_name(name):
            raise ValueError(
                f"arm {str(name)[:60]!r}: a name becomes a folder; use letters, digits, - and _, "
                f"at most {LONGEST_NAME}, and none of {', '.join(TAKEN_NAMES)}"
            )
        if not isinstance(changes, dict | None):
            raise ValueError(f"arm {name} is {changes!r}: write a mapping of settings, or {{}}")
        if not changes and name not in PRESETS:
            raise ValueError(
                f"arm {name} changes nothing and is no preset ({', '.join(PRESETS)}): say how it "
                "differs from the recipe"
            )
    return {name: changes or {} for name, changes in arms.items()}


def _is_folder_name(name: Any) -> bool:
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        return False
    odd = set(name) & set("/\\ ,") or name[0] == "." or not name.isprintable()
    return not odd and name not in TAKEN_NAMES


def check_arms(runs: Sequence[PlannedRun]) -> None:
    """Raise `ValueError` naming the arm for settings that `podsrl train` would refuse.

    Takes no model; questions that several runs share are loaded once.
    """
    loaded: dict[str, Any] = {}  # generating questions takes seconds
    for run in runs:
        questions = str([run.settings.get(name) for name in QUESTION_SETTINGS])
        try:
            arguments, config, model_config = parse_settings(run.settings)
            check_options(arguments, config, model_config)
            if questions not in loaded:
                loaded[questions] = load_questions(arguments, config.seed)
            task, rows = loaded[questions]
            fit_to_task(config, task, len(rows))
        except ValueError as error:
            raise ValueError(f"arm {run.arm}: {error}") from error


def _check_known(what: str, given: Sequence[Any] | None, known: Sequence[Any]) -> None:
    for name in given or ():
        if name not in known:
            choices = ", ".join(map(str, known))
            raise ValueError(f"{what} is {name}: the comparison has {choices}")


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and seeds > 0:
        return tuple(range(seeds))
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {seeds!r}: give how many, or a list of different numbers")
    return tuple(seeds)


def _common(values: Sequence[Any]) -> Any:
    """The value that all share; else all of them."""
    return values[0] if len(set(values)) == 1 else list(values)
