"""What the fields of PODSConfig rule out: one error each, with the value, the bound, the remedy.

Objectives have a file of their own, objective_checks.py; what takes a model or a built trainer to
know stands in refusals.py. The order of the checks is the order in which errors are found.
"""

from math import inf
from typing import TYPE_CHECKING

from podsrl.core.advantage import ESTIMATORS, NEEDS_ALL, SOURCES, WEIGHTS
from podsrl.core.budget import FLOORS
from podsrl.core.combine import SUM_THEN_NORMALIZE
from podsrl.core.kalman import check_options as check_krpo_options
from podsrl.core.schedule import smallest_unit
from podsrl.core.select import RULES
from podsrl.core.selection import BUDGETS
from podsrl.trl.behaviours_checks import check_behaviours
from podsrl.trl.mixture_checks import check_mixture
from podsrl.trl.needs import check_needs
from podsrl.trl.objective_checks import check_objective
from podsrl.trl.rounds_checks import check_rounds

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

# TRL's losses whose value and gradient are 0 where the advantage is, whatever the log-probs.
LOSSES_OF_ADVANTAGES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo")

# Those that divide by the tokens of each micro-batch, so that it counts which rows share one.
LOSSES_OF_MICRO_BATCHES = ("bnpo",)


def check_settings(config: "PODSConfig") -> None:
    """Raise `ValueError` for the first setting that cannot be, alone or beside the others."""
    _check_advantage_names(config)
    _check_advantage_combination(config)
    if config.advantage == "krpo":
        check_krpo_options(
            config.krpo_process_variance,
            config.krpo_observation_variance,
            config.krpo_order,
            prefix="krpo_",
        )
    check_objective(config)
    _check_selection(config)
    _check_rows_per_process(config)
    _check_budget(config)
    _check_schedule(config)
    _check_dead_rows(config)
    if int(config.stop_after_idle_steps or 0) < 0:
        raise ValueError(
            f"stop_after_idle_steps is {config.stop_after_idle_steps}; give a number of steps, 0 "
            "for never."
        )
    if config.early_stop:
        _check_early_stop(config)
    check_rounds(config)
    check_behaviours(config)
    check_mixture(config)
    if config.early_stop or config.sampling_rounds:
        _check_bounds(config)


def settings_needing_all(config: "PODSConfig") -> list[str]:
    """The settings that count the rewards of all n rollouts, in words."""
    stratified = config.advantage_weights == "stratified"
    return [
        *([f"advantage={config.advantage!r}"] if config.advantage in NEEDS_ALL else []),
        *(["advantage_weights='stratified'"] if stratified else []),
    ]


def why_dead_rows_matter(config: "PODSConfig") -> str | None:
    """Why a row of advantage 0 has a part in what is learned; None where it has none."""
    objective = config.get_objective()
    if objective is not None and not objective.is_zero_without_advantage:
        return f"objective={config.objective!r} learns from rows of advantage 0, too"
    reasons = {
        f"beta={config.beta} pulls every row to the reference": config.beta != 0,
        "the entropy bonus counts every row": bool(
            config.entropy_coef or config.use_adaptive_entropy
        ),
        f"top_entropy_quantile={config.top_entropy_quantile} ranks the tokens of every row": (
            config.top_entropy_quantile < 1
        ),
        f"loss_type={config.loss_type!r} is not known to leave them alone": (
            config.loss_type not in LOSSES_OF_ADVANTAGES
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def rows_may_change_process(config: "PODSConfig") -> bool:
    """Whether it is one to the loss which process reads a row, and in which micro-batch."""
    objective = config.get_objective()
    if objective is not None:
        return not objective.needs_whole_groups and objective.schedule is None
    return config.loss_type not in LOSSES_OF_MICRO_BATCHES


def _check_dead_rows(config: "PODSConfig") -> None:
    reason = why_dead_rows_matter(config)
    if config.skip_dead_rows and reason is not None:
        raise ValueError(f"skip_dead_rows is True, but {reason}: leave skip_dead_rows out.")


def _check_advantage_names(config: "PODSConfig") -> None:
    for name, known in (
        ("advantage", ESTIMATORS),
        ("advantage_from", SOURCES),
        ("advantage_weights", WEIGHTS),
    ):
        if getattr(config, name) not in known:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}; choose one of {', '.join(known)}."
            )


def _check_advantage_combination(config: "PODSConfig") -> None:
    needing_all = settings_needing_all(config)
    if needing_all and config.advantage_from != "all":
        raise ValueError(
            f"{' and '.join(needing_all)} counts the rewards of all n rollouts, but "
            f"advantage_from is {config.advantage_from!r}: leave advantage_from out."
        )
    if config.advantage != "grpo" and config.scale_rewards == "batch":
        raise ValueError(
            f"scale_rewards='batch' has no effect with advantage={config.advantage!r}, which "
            "divides by no standard deviation of rewards: leave one of the two out."
        )
    if config.own_advantages() and config.multi_objective_aggregation != SUM_THEN_NORMALIZE:
        chosen = [
            f"{name}={getattr(config, name)!r}"
            for name in ("advantage", "advantage_from", "advantage_weights")
        ]
        raise ValueError(
            f"{', '.join(chosen)} needs multi_objective_aggregation={SUM_THEN_NORMALIZE!r}, "
            f"but it is {config.multi_objective_aggregation!r}: set it, or these, to their "
            "defaults."
        )


def _check_selection(config: "PODSConfig") -> None:
    n, m = int(config.num_rollouts or 0), config.num_generations
    if n < m:
        raise ValueError(
            f"num_rollouts (n) is {n}, less than num_generations (m) = {m}. PODS keeps m of n "
            f"rollouts: raise num_rollouts to at least {m}, or lower num_generations."
        )
    if config.selection_rule not in RULES:
        raise ValueError(
            f"selection_rule is {config.selection_rule!r}; choose one of {', '.join(RULES)}."
        )


def _check_rows_per_process(config: "PODSConfig") -> None:
    """Each process must sample a whole number of rollouts; groups themselves may straddle."""
    n, m = int(config.num_rollouts or 0), config.num_generations
    rows = config.per_device_train_batch_size * config.steps_per_generation
    if rows * n % m:
        raise ValueError(
            "per_device_train_batch_size x steps_per_generation = "
            f"{config.per_device_train_batch_size} x {config.steps_per_generation} = {rows} kept "
            f"rollouts per process would come from {rows} x {n} / {m} sampled ones, which is "
            "no whole number. Make num_rollouts a multiple of num_generations (for example "
            f"{m * (n // m + 1)}), or the {rows} rows a multiple of {m}."
        )


def _check_budget(config: "PODSConfig") -> None:
    n, m = int(config.num_rollouts or 0), config.num_generations
    if config.budget not in BUDGETS:
        raise ValueError(f"budget is {config.budget!r}; choose one of {', '.join(BUDGETS)}.")
    if config.budget_floor not in FLOORS:
        raise ValueError(f"budget_floor is {config.budget_floor}; choose 0 or 2.")
    if config.budget_cap is not None and not m <= config.budget_cap <= n:
        raise ValueError(
            f"budget_cap is {config.budget_cap}, but must lie between num_generations = {m}, "
            f"which is the mean over prompts, and num_rollouts = {n}."
        )
    if config.budget == "pooled" and config.multi_objective_aggregation != SUM_THEN_NORMALIZE:
        raise ValueError(
            f"budget='pooled' needs multi_objective_aggregation={SUM_THEN_NORMALIZE!r}, because "
            "TRL's other one reads groups of equal size. Set one of the two to its default."
        )
    if config.refill_constant_groups < 0:
        raise ValueError(
            f"refill_constant_groups is {config.refill_constant_groups}; give the largest number "
            "of extra sampling rounds, 0 for none."
        )


def _check_schedule(config: "PODSConfig") -> None:
    """A micro-batch has batch_size x kept / m rows, which must be whole at every stage."""
    start, m = config.num_generations_start, config.num_generations
    steps = config.num_generations_steps
    if steps is not None and (start is None or steps < 1):
        raise ValueError(
            f"num_generations_steps is {steps}: give 1 or more, together with "
            "num_generations_start, or leave it out."
        )
    if start is None:
        return
    unit = smallest_unit(m, config.per_device_train_batch_size)
    if not 2 <= start <= m or start % unit:
        raise ValueError(
            f"num_generations_start is {start}, but must lie between 2 and num_generations = "
            f"{m} and be a multiple of {unit}, so that micro-batches of "
            f"per_device_train_batch_size = {config.per_device_train_batch_size} shrink to whole "
            f"rows. A per_device_train_batch_size that is a multiple of {m} allows any."
        )


def _check_early_stop(config: "PODSConfig") -> None:
    """What stopping relies on; reward functions and bounds are checked by the trainer."""
    rows = config.per_device_train_batch_size * config.steps_per_generation
    needs = {
        "selection_rule='max_variance'": config.selection_rule == "max_variance",
        "num_rollouts above num_generations": config.num_rollouts > config.num_generations,
        "fast_sampling=True": config.fast_sampling,
        "use_vllm=False": not config.use_vllm,
        "use_transformers_continuous_batching=False": (
            not config.use_transformers_continuous_batching
        ),
        f"multi_objective_aggregation={SUM_THEN_NORMALIZE!r}": (
            config.multi_objective_aggregation == SUM_THEN_NORMALIZE
        ),
        "advantage_from='kept', as stopped rollouts have no reward": (
            config.advantage_from == "kept"
        ),
        "budget='per_prompt'": config.budget == "per_prompt",
        "num_generations_start=None": config.num_generations_start is None,
        "refill_constant_groups=0": config.refill_constant_groups == 0,
        "whole groups in each process: per_device_train_batch_size x steps_per_generation "
        f"= {rows} must be a multiple of num_generations": rows % config.num_generations == 0,
    }
    check_needs("early_stop needs", needs, "leave early_stop out")


def _check_bounds(config: "PODSConfig") -> None:
    bounds = config.reward_bounds
    if bounds is not None and not (len(bounds) == 2 and -inf < bounds[0] < bounds[1] < inf):
        raise ValueError(
            f"reward_bounds is {bounds}: give the lowest and the highest weighted sum of "
            "rewards, two different finite numbers in this order."
        )
