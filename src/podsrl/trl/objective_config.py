"""ObjectiveConfig: the fields of PODSConfig that say what is minimised, and their checks."""

from dataclasses import dataclass, field, fields
from typing import Any

from trl import GRPOConfig

from podsrl.core.objectives import OBJECTIVES, Objective
from podsrl.trl.advantage_config import AGGREGATION
from podsrl.trl.pair_config import PairConfig

GRPO = "grpo"
DEFAULT_REFERENCE_ROLLOUTS = 8
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


@dataclass
class ObjectiveConfig(PairConfig):
    """PairConfig with the choice of an objective; `PODSConfig` inherits it.

    Raises `ValueError` for an unknown objective, for a value that is not above 0 where it has to
    be, for micro-batches that cannot hold the groups that the objective needs whole, and for
    settings that would have no effect with the objective.

    Example: `objective="agro", beta=0.05` regularises with 0.05 rewards per nat.
    """

    objective: str = field(
        default=GRPO,
        metadata={
            "help": "What is minimised on the kept rollouts: 'grpo' (TRL's loss, as loss_type says)"
            f" or one of {', '.join(OBJECTIVES)}. See docs/methods.md."
        },
    )
    beta: float | None = field(
        default=None,
        metadata={
            "help": "Strength of the pull to the reference policy: TRL's KL coefficient for 'grpo',"
            " rewards per nat of log-ratio for the others. Default: the objective's own; 0 for "
            "those without a reference."
        },
    )
    rebel_eta: float | None = field(
        default=None,
        metadata={"help": "objective='rebel': nats that one unit of reward asks for. Default: 1."},
    )
    value_beta: float | None = field(
        default=None,
        metadata={
            "help": "objective='astar_po': between the best (towards 0) and the mean reward "
            "(large) of the reference as its value. Default: 0.5."
        },
    )
    num_reference_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "astar_po, qrpo: rollouts sampled once per prompt from the reference policy. "
            f"Default: {DEFAULT_REFERENCE_ROLLOUTS}."
        },
    )

    def __post_init__(self) -> None:
        if self.objective != GRPO and self.objective not in OBJECTIVES:
            known = ", ".join([GRPO, *OBJECTIVES])
            raise ValueError(f"objective is {self.objective!r}; choose one of {known}.")
        self._fill_in_options()
        super().__post_init__()
        objective = self.get_objective()
        if objective is not None:
            self._check_micro_batches(objective)
            self._check_reference(objective)
            self._check_unread(objective)

    def get_objective(self) -> Objective | None:
        """The objective; None for TRL's own loss."""
        return OBJECTIVES.get(self.objective)

    def objective_options(self) -> dict[str, Any]:
        """The keyword arguments of the objective's function."""
        objective = self.get_objective()
        if objective is None:
            return {}
        names = [name for name in objective.options if name not in (objective.schedule or ())]
        return {name: getattr(self, name) for name in names}

    def is_policy_stage(self, step: int) -> bool:
        """Whether the objective's schedule, if it has one, gives this step to TRL's own loss."""
        objective = self.get_objective()
        if objective is None or objective.schedule is None:
            return False
        num_policy, num_own = (getattr(self, name) for name in objective.schedule)
        return step % (num_policy + num_own) < num_policy

    def _fill_in_options(self) -> None:
        objective = OBJECTIVES.get(self.objective)
        options = objective.options if objective else {}
        for name in sorted({name for each in OBJECTIVES.values() for name in each.options}):
            value = getattr(self, name)
            if name in options and value is None:
                setattr(self, name, options[name])
            elif name not in options and name != "beta" and name not in _trl_defaults():
                self._refuse_set(name, value)
        if self.beta is None:
            self.beta = 0.0
        for name in {"beta", "rebel_eta", "value_beta"} & set(options):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but objective={self.objective!r} divides by "
                    f"it or multiplies all it learns by it: set {name} above 0, or leave it out "
                    f"for {options[name]}."
                )

    def _refuse_set(self, name: str, value: Any) -> None:
        if value is not None:
            raise ValueError(
                f"{name} is {value!r}, which has no effect with objective={self.objective!r}: "
                f"leave {name} out."
            )

    def _check_micro_batches(self, objective: Objective) -> None:
        batch_size, m = self.per_device_train_batch_size, self.num_generations
        if objective.needs_whole_groups and batch_size % m:
            raise ValueError(
                f"objective={self.objective!r} compares the kept rollouts of a prompt with each "
                f"other, so every micro-batch must hold groups whole, but "
                f"per_device_train_batch_size = {batch_size} is no multiple of num_generations = "
                f"{m}. Set it to a multiple of {m}, and gradient_accumulation_steps for the rest."
            )

    def _check_reference(self, objective: Objective) -> None:
        if not objective.needs_reference_rewards:
            return self._refuse_set("num_reference_rollouts", self.num_reference_rollouts)
        if self.num_reference_rollouts is None:
            self.num_reference_rollouts = DEFAULT_REFERENCE_ROLLOUTS
        if self.num_reference_rollouts < 1:
            raise ValueError(
                f"num_reference_rollouts is {self.num_reference_rollouts}, but "
                f"objective={self.objective!r} needs at least 1: the papers take 8 and 20."
            )
        needs = {
            "sync_ref_model": (False, "as rewards of the reference are sampled once per prompt"),
            "use_vllm": (False, "as vLLM samples from the policy only"),
            "multi_objective_aggregation": (
                AGGREGATION,
                "as rewards normalised within a group do not compare with the reference's",
            ),
        }
        for name, (value, reason) in needs.items():
            if getattr(self, name) != value:
                raise ValueError(f"objective={self.objective!r} needs {name}={value!r}, {reason}.")

    def _check_unread(self, objective: Objective) -> None:
        """Settings that look as if they changed what is learned, but would not."""
        defaults = _trl_defaults()
        for name in GRPO_LOSS_FIELDS if objective.schedule is None else ():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but belongs to TRL's loss, which "
                    f"objective={self.objective!r} replaces: leave {name} out."
                )
        if not objective.needs_reference and self.beta:
            raise ValueError(
                f"beta is {self.beta}, but objective={self.objective!r} reads no reference: leave "
                "beta out."
            )
        if not objective.needs_advantages and self.own_advantages():
            raise ValueError(
                f"advantage={self.advantage!r}, advantage_from={self.advantage_from!r} and "
                f"advantage_weights={self.advantage_weights!r} have no effect with "
                f"objective={self.objective!r}, which reads rewards: leave them out."
            )


def _trl_defaults() -> dict[str, Any]:
    return {each.name: each.default for each in fields(GRPOConfig)}
