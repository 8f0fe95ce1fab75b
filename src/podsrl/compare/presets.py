"""What an arm of a comparison is: a recipe, a preset, and changes."""

from collections.abc import Callable
from typing import Any

from podsrl.compare.budget import FIELDS as BUDGET_FIELDS
from podsrl.runs.checks import check_names, check_values
from podsrl.runs.settings import setting_names, setting_types
from podsrl.trl.config import PODSConfig
from podsrl.trl.defaults import DEFAULT_ROLLOUTS_PER_KEPT

Settings = dict[str, Any]

# What the comparison itself sets, the same for all arms: a recipe's own values do not count.
OWN_SETTINGS = (
    "output_dir",
    "seed",
    "data_seed",
    *(name for names in BUDGET_FIELDS.values() for name in names),
    "num_train_epochs",
    "resume",
)


def arm_settings(name: str, changes: Settings, base: Settings) -> Settings:
    """Return all settings of an arm: the recipe, its preset, and on top its own changes.

    The preset is that of the arm's name, or the one it names as `preset`, or `pods`. n and m are
    always among the settings.

    Raises `ValueError` naming the arm, for unknown settings and for sizes that do not fit.

    Example: `arm_settings("grpo", {}, {"num_generations": 4})["num_rollouts"] == 4`.
    """
    changes = dict(changes)
    preset = changes.pop("preset", name if name in PRESETS else "pods")
    if preset not in PRESETS:
        raise ValueError(f"arm {name}: preset is {preset!r}; choose from {', '.join(PRESETS)}")
    check_settings(f"arm {name}", changes)
    settings = _shared_defaults() | base | changes
    settings.setdefault("num_generations", PODSConfig.num_generations)
    settings.setdefault("num_rollouts", DEFAULT_ROLLOUTS_PER_KEPT * settings["num_generations"])
    try:
        return settings | PRESETS[preset](settings) | changes
    except ValueError as error:
        raise ValueError(f"arm {name}: {error}") from error


def _shared_defaults() -> Settings:
    """What all arms have unless the recipe says otherwise: the same code, and no model on disk."""
    return {
        "fast_sampling": True,
        "packed_update": True,
        "lr_scheduler_type": "constant",
        "save_model": False,
        "log_rollouts": "false",
    }


def _pods(settings: Settings) -> Settings:
    return {}


def _grpo(settings: Settings) -> Settings:
    return {"num_rollouts": settings["num_generations"]}


def _grpo_ga(settings: Settings) -> Settings:
    """Train on all n: as many rows at a time, so that more micro-batches make a step."""
    n, m = settings["num_rollouts"], settings["num_generations"]
    steps = settings.get("gradient_accumulation_steps", 1)
    if steps * n % m:
        raise ValueError(
            f"gradient_accumulation_steps x n / m = {steps} x {n} / {m} is no whole number: make "
            "num_rollouts a multiple of num_generations, or give the arm its own "
            "num_generations, gradient_accumulation_steps and preset: pods"
        )
    changes = {"num_generations": n, "gradient_accumulation_steps": steps * n // m}
    if settings.get("steps_per_generation"):
        changes["steps_per_generation"] = settings["steps_per_generation"] * n // m
    if settings.get("generation_batch_size"):
        changes["generation_batch_size"] = settings["generation_batch_size"] * n // m
    return changes


def check_settings(where: str, settings: Settings) -> None:
    """Raise `ValueError` for settings that a run does not have or take, or that are no arm's."""
    own = [name for name in settings if name in OWN_SETTINGS]
    if own:
        raise ValueError(
            f"{where} sets {own[0]}, which the comparison sets for all runs alike: leave it out"
        )
    check_names(f"setting of {where}", settings, sorted(setting_names()), "see docs/compare.md")
    # Text is read later, as the text of a flag is.
    told = {name: value for name, value in settings.items() if not isinstance(value, str)}
    check_values(told, setting_types())


PRESETS: dict[str, Callable[[Settings], Settings]] = {
    "grpo": _grpo,
    "grpo-ga": _grpo_ga,
    "pods": _pods,
}
