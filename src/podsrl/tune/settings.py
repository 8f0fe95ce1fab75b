"""What a trial's run is told: the recipe, the trial's values, and a batch that goes with them."""

import math
from collections.abc import Mapping
from typing import Any

from podsrl.compare.presets import Settings, arm_settings
from podsrl.trl.config import PODSConfig
from podsrl.tune.space import Space, Values

BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Sampled ahead for several optimizer steps: in rollouts, so that they follow m.
AHEAD = ("steps_per_generation", "generation_batch_size")


def batch_of(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows of a micro-batch and micro-batches of a step, TRL's defaults where unset."""
    rows, steps = (int(settings.get(name) or getattr(PODSConfig, name)) for name in BATCH)
    return rows, steps


def trial_settings(values: Values, recipe: Settings, space: Space) -> Settings:
    """Return all settings of a trial: the recipe's with these values.

    With another m a step keeps as many prompts as the recipe has, as in `podsrl compare`: the
    micro-batch is the largest number of rows, at most the recipe's, that divides the step, in whole
    groups if there is one; `gradient_accumulation_steps` follows. A space that names the batch
    itself is taken at its word.

    Raises `ValueError` where the recipe's own batch is no whole number of groups.

    Example: a recipe with m = 16 and 64 rows has 4 prompts a step; m = 4 gives 16 rows, m = 32
    gives 2 micro-batches of 64.
    """
    settings = arm_settings("of the search", values, recipe)
    if "num_generations" in values and not set(BATCH) & set(space.dimensions):
        settings |= _batch(settings["num_generations"], recipe)
    return settings


def fits(settings: Mapping[str, Any]) -> bool:
    """Whether n >= m and the rows of a step are whole groups of m; the rest is checked later."""
    n, m = settings["num_rollouts"], settings["num_generations"]
    return 1 < m <= n and math.prod(batch_of(settings)) % m == 0


def _batch(num_kept: int, recipe: Settings) -> Settings:
    rows, steps = batch_of(recipe)
    kept_before = recipe["num_generations"]
    if rows * steps % kept_before:
        raise ValueError(
            f"a step of the recipe has {rows} x {steps} rows, no whole number of groups of "
            f"num_generations {kept_before}: make per_device_train_batch_size a multiple of it"
        )
    step = rows * steps // kept_before * num_kept
    sizes = [size for size in range(1, rows + 1) if step % size == 0]
    whole = [size for size in sizes if size % num_kept == 0]
    micro = max(whole or sizes)
    return dict(zip(BATCH, (micro, step // micro), strict=True))
