"""What the fields of an objective rule out; the other fields of PODSConfig stand in checks.py."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from trl import GRPOConfig

from podsrl.core.combine import SUM_THEN_NORMALIZE
from podsrl.core.objectives import OBJECTIVES, Objective
from podsrl.core.objectives.pairing import PAIR_MODES
from podsrl.core.objectives.pairs import SEGMENTS
from podsrl.core.objectives.regression import TIES
from podsrl.core.select import RULES
from podsrl.trl.head_checks import check_head, fill_in_alpha
from podsrl.trl.needs import check_needs

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

GRPO = "grpo"
DEFAULT_REFERENCE_ROLLOUTS = 8
DEFAULT_BRANCHES = 4
# Settings of TRL's own loss, which no other objective reads.
GRPO_LOSS_FIELDS = (
    "loss_type",
    "importance_sampling_level",
    "delta",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
)


def _name_own(config: "PODSConfig") -> None:
    """Give a rule and an `Objective` that are the thing itself, not its name, a name to go by.

    Example: `PODSConfig(selection_rule=my_rule)` adds `my_rule` to RULES.
    """
    rule: Any = config.selection_rule  # text by their types, which recipes need
    objective: Any = config.objective
    if callable(rule):
        config.selection_rule = rule.__name__
        RULES[config.selection_rule] = rule
    if isinstance(objective, Objective):
        config.objective = objective.function.__name__
        OBJECTIVES[config.objective] = objective


def check_objective(config: "PODSConfig") -> None:
    """Raise `ValueError` for what the objective and its options rule out."""
    _check_pairs(config)
    _check_at_least(config, "sapg_mu_max", 1)
    _check_segments(config)
    _check_bridges(config)
    _check_verdicts(config)
    check_head(config)
    if config.qrpo_ties not in (None, *TIES):
        raise ValueError(f"qrpo_ties is {config.qrpo_ties!r}; choose one of {', '.join(TIES)}.")
    objective = config.get_objective()
    if objective is not None:
        _check_micro_batches(config, objective)
        _check_reference(config, objective)
        _check_unread(config, objective)


def fill_in_objective_options(config: "PODSConfig") -> None:
    """Put the objective's own values where None stands for them.

    A rule or objective that is the thing itself goes by its name from here on.

    Raises `ValueError` for an unknown objective, for options of another one, and for a strength
    that is not above 0.
    """
    _name_own(config)
    fill_in_alpha(config)
    if config.objective not in (GRPO, *OBJECTIVES):
        known = ", ".join([GRPO, *OBJECTIVES])
        raise ValueError(f"objective is {config.objective!r}; choose one of {known}.")
    options = OBJECTIVES[config.objective].options if config.objective in OBJECTIVES else {}
    for name in sorted({name for each in OBJECTIVES.values() for name in each.options}):
        value = getattr(config, name)
        if name in options and value is None:
            setattr(config, name, options[name])
        elif name not in options and name != "beta" and name not in _trl_defaults():
            _refuse_set(config, name, value)
    if config.beta is None:
        config.beta = 0.0
    for name in {"beta", "rebel_eta", "value_beta", "subtb_lambda"} & set(options):
        if not getattr(config, name) > 0:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but objective={config.objective!r} divides by "
                f"it or multiplies all it learns by it: set {name} above 0, or leave it out "
                f"for {options[name]}."
            )


def _refuse_set(config: "PODSConfig", name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(
            f"{name} is {value!r}, which has no effect with objective={config.objective!r}: "
            f"leave {name} out."
        )


def _check_pairs(config: "PODSConfig") -> None:
    if config.pair_mode not in (None, *PAIR_MODES):
        raise ValueError(
            f"pair_mode is {config.pair_mode!r}; choose one of {', '.join(PAIR_MODES)}."
        )
    for name in ("tdpo_alpha", "bmc_delta", "rbrm_alpha", "sdpo_first_turn", "veripo_policy_beta"):
        _check_at_least(config, name, 0)
    for name in ("sdpo_num_turns", "veripo_policy_steps", "veripo_pair_steps"):
        _check_at_least(config, name, 1)
    if config.veripo_drop_solved is not None and not 0 <= config.veripo_drop_solved <= 1:
        raise ValueError(
            f"veripo_drop_solved is {config.veripo_drop_solved}: a share, choose 0 to 1."
        )


def _check_segments(config: "PODSConfig") -> None:
    if config.sdpo_segment not in (None, *SEGMENTS):
        raise ValueError(
            f"sdpo_segment is {config.sdpo_segment!r}; choose one of {', '.join(SEGMENTS)}."
        )
    _check_at_least(config, "sdpo_branches", 1)
    if config.sdpo_segment != "value_drop":
        if config.sdpo_branches is not None:
            raise ValueError(
                f"sdpo_branches is {config.sdpo_branches}, which has no effect without "
                "sdpo_segment='value_drop': leave sdpo_branches out."
            )
        return
    needs: dict[str, tuple[Any, str]] = {
        "sdpo_first_turn": (None, "as the turn is found for each pair"),
        "sdpo_num_turns": (None, "as the turns are found for each pair"),
        "pair_mode": ("extremes", "as each pair has a winner of its own"),
        "multi_objective_aggregation": (
            SUM_THEN_NORMALIZE,
            "as rewards normalised within a group do not compare with those of continuations",
        ),
    }
    for name, (value, reason) in needs.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, but sdpo_segment='value_drop' needs "
                f"{name}={value!r}, {reason}: leave {name} out, or set sdpo_segment='fixed'."
            )


def _check_bridges(config: "PODSConfig") -> None:
    """What writing rollouts anew cannot be beside."""
    _check_at_least(config, "bmc_bridges", 0)
    if config.objective != "bmc":
        _refuse_set(config, "bmc_bridges", config.bmc_bridges)
    if not config.bmc_bridges:
        return
    needs = {
        "pair_mode='extremes', as each pair has a winner of its own": (
            config.pair_mode == "extremes"
        ),
        f"multi_objective_aggregation={SUM_THEN_NORMALIZE!r}, as what is written anew is in no "
        "group to be normalised within": config.multi_objective_aggregation == SUM_THEN_NORMALIZE,
        "early_stop=False, which would count what is written anew as sampled": (
            not config.early_stop
        ),
        "behaviours left out, as a rollout's place says whose it is": not config.behaviours,
        "use_vllm=False, as each goes on from tokens of its own": not config.use_vllm,
        "use_transformers_continuous_batching=False, as each goes on from tokens of its own": (
            not config.use_transformers_continuous_batching
        ),
    }
    check_needs("bmc_bridges needs", needs, "leave bmc_bridges out")


def _check_verdicts(config: "PODSConfig") -> None:
    """What choosing by verdicts cannot be beside, as what it chooses is decided by rewards."""
    _check_at_least(config, "veripo_max_tokens", 1)
    if config.veripo_checks is None and config.veripo_max_tokens is None:
        return
    needs = {
        "selection_rule='max_variance', which keeps rollouts that pass and others": (
            config.selection_rule == "max_variance"
        ),
        "early_stop=False, which stops by the rewards": not config.early_stop,
        "sampling_rounds=0, which stop by the rewards": not config.sampling_rounds,
        "refill_constant_groups=0, which replaces prompts of equal rewards, though all right ones "
        "may differ in a check": not config.refill_constant_groups,
        "a batch sampled for each step (num_iterations=1, steps_per_generation="
        f"{config.gradient_accumulation_steps}), as the two stages choose otherwise": (
            config.num_iterations == 1
            and config.steps_per_generation == config.gradient_accumulation_steps
        ),
    }
    check_needs("veripo_checks and veripo_max_tokens need", needs, "leave them out")


def places_of_checks(config: "PODSConfig", names: Sequence[str]) -> list[int]:
    """The places of the checks among the reward functions of these names, the first one's first.

    Empty where pairs are made by rewards.

    Raises `ValueError` for a check that is none of them, or the first, which is asked anyway.
    """
    if config.veripo_checks is None and config.veripo_max_tokens is None:
        return []
    for name in config.veripo_checks or ():
        if name not in names[1:]:
            raise ValueError(
                f"veripo_checks names {name}, but the rewards are {', '.join(names)}, of which the "
                "first says what is right: name it in reward_funcs, with weight 0, behind that one"
            )
    return [0, *(names.index(name) for name in config.veripo_checks or ())]


def _check_at_least(config: "PODSConfig", name: str, least: int) -> None:
    value = getattr(config, name)
    if value is not None and not value >= least:
        raise ValueError(f"{name} is {value}: choose at least {least}.")


def _check_micro_batches(config: "PODSConfig", objective: Objective) -> None:
    batch_size, m = config.per_device_train_batch_size, config.num_generations
    if objective.needs_whole_groups and batch_size % m:
        raise ValueError(
            f"objective={config.objective!r} compares the kept rollouts of a prompt with each "
            f"other, so every micro-batch must hold groups whole, but "
            f"per_device_train_batch_size = {batch_size} is no multiple of num_generations = "
            f"{m}. Set it to a multiple of {m}, and gradient_accumulation_steps for the rest."
        )


def _check_reference(config: "PODSConfig", objective: Objective) -> None:
    if objective.needs_prefixes and config.multi_objective_aggregation != SUM_THEN_NORMALIZE:
        raise ValueError(
            f"objective={config.objective!r} needs multi_objective_aggregation="
            f"{SUM_THEN_NORMALIZE!r}, as prefixes are in no group to be normalised within."
        )
    if not objective.needs_reference_rewards:
        return _refuse_set(config, "num_reference_rollouts", config.num_reference_rollouts)
    if int(config.num_reference_rollouts or 0) < 1:
        raise ValueError(
            f"num_reference_rollouts is {config.num_reference_rollouts}, but "
            f"objective={config.objective!r} needs at least 1: the papers take 8 and 20."
        )
    needs = {
        "sync_ref_model": (False, "as rewards of the reference are sampled once per prompt"),
        "use_vllm": (False, "as vLLM samples from the policy only"),
        "multi_objective_aggregation": (
            SUM_THEN_NORMALIZE,
            "as rewards normalised within a group do not compare with the reference's",
        ),
    }
    for name, (value, reason) in needs.items():
        if getattr(config, name) != value:
            raise ValueError(f"objective={config.objective!r} needs {name}={value!r}, {reason}.")


def _check_unread(config: "PODSConfig", objective: Objective) -> None:
    """Settings that look as if they changed what is learned, but would not."""
    defaults = _trl_defaults()
    for name in GRPO_LOSS_FIELDS if objective.schedule is None else ():
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{name} is {getattr(config, name)!r}, but belongs to TRL's loss, which "
                f"objective={config.objective!r} replaces: leave {name} out."
            )
    if not objective.needs_reference and config.beta:
        raise ValueError(
            f"beta is {config.beta}, but objective={config.objective!r} reads no reference: leave "
            "beta out."
        )
    if not objective.needs_advantages and config.own_advantages():
        raise ValueError(
            f"advantage={config.advantage!r}, advantage_from={config.advantage_from!r} and "
            f"advantage_weights={config.advantage_weights!r} have no effect with "
            f"objective={config.objective!r}, which reads rewards: leave them out."
        )


def _trl_defaults() -> dict[str, Any]:
    return {each.name: each.default for each in fields(GRPOConfig)}
