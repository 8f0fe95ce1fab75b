"""What None stands for in the fields of PODSConfig, those of objectives apart."""

from typing import TYPE_CHECKING

from podsrl.trl.behaviours_checks import read_behaviours
from podsrl.trl.checks import settings_needing_all, why_dead_rows_matter
from podsrl.trl.idle import DEFAULT_STEPS
from podsrl.trl.mixture_checks import read_mixture
from podsrl.trl.objective_checks import DEFAULT_BRANCHES, DEFAULT_REFERENCE_ROLLOUTS

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

DEFAULT_ROLLOUTS_PER_KEPT = 2


def fill_in_defaults(config: "PODSConfig") -> None:
    """Give every field that is None for its default the value that it stands for."""
    if config.advantage_from is None:
        config.advantage_from = "all" if settings_needing_all(config) else "kept"
    if config.num_rollouts is None:
        config.num_rollouts = DEFAULT_ROLLOUTS_PER_KEPT * config.num_generations
    config.behaviours = read_behaviours(config.behaviours)
    config.rollout_mixture = read_mixture(config.rollout_mixture)
    if config.rollout_mixture is not None and config.rollout_mixture_share is None:
        config.rollout_mixture_share = 1.0
    samples_more = config.num_rollouts > config.num_generations
    if config.fast_sampling is None:
        others = (config.behaviours, config.rollout_mixture)
        config.fast_sampling = samples_more or others != (None, None)
    config.packed_update = samples_more if config.packed_update is None else config.packed_update
    if config.skip_dead_rows is None:
        config.skip_dead_rows = config.packed_update and why_dead_rows_matter(config) is None
    objective = config.get_objective()
    needs_reference = objective is not None and objective.needs_reference_rewards
    if needs_reference and config.num_reference_rollouts is None:
        config.num_reference_rollouts = DEFAULT_REFERENCE_ROLLOUTS
    if config.sdpo_segment == "value_drop" and config.sdpo_branches is None:
        config.sdpo_branches = DEFAULT_BRANCHES
    if config.stop_after_idle_steps is None:
        is_trls = not samples_more and objective is None
        config.stop_after_idle_steps = 0 if is_trls else DEFAULT_STEPS
    if config.sampling_rounds:
        _fill_in_rounds(config, config.num_generations, config.num_rollouts)


def _fill_in_rounds(config: "PODSConfig", m: int, n: int) -> None:
    if config.sampling_rounds_enough is None:
        config.sampling_rounds_enough = -(-m // 4)
    if config.sampling_rounds_give_up is None:
        config.sampling_rounds_give_up = min(2 * m, n)
