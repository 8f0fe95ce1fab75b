"""AdvantageConfig: the fields of PODSConfig that say what advantages are, and their checks."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from podsrl.core.advantage import ESTIMATORS, NEEDS_ALL, SOURCES, WEIGHTS
from podsrl.core.kalman import check_options as check_krpo_options

AGGREGATION = "sum_then_normalize"


@dataclass
class AdvantageConfig(GRPOConfig):
    """GRPOConfig with the choice of an advantage estimator; `PODSConfig` inherits it.

    Raises `ValueError` for an unknown estimator, source, weighting or Kalman option, and for
    combinations in which one setting would have no effect.
    """

    advantage: str = field(
        default="grpo",
        metadata={
            "help": f"Estimator of the advantages: {', '.join(ESTIMATORS)}. Only grpo divides as "
            "scale_rewards says; docs/methods.md has the formulas."
        },
    )
    advantage_from: str | None = field(
        default=None,
        metadata={
            "help": "Rewards that advantages compare with: 'kept' (the m kept rollouts, the "
            "paper's choice) or 'all' (the n sampled ones). Default: 'all' for advantage='krpo' "
            "and advantage_weights='stratified', which need them, else 'kept'."
        },
    )
    advantage_weights: str = field(
        default="none",
        metadata={
            "help": "'stratified' weighs kept rollouts so that on average they teach what all n "
            "would, for rewards with few values (0/1). 'none' is the paper's choice."
        },
    )
    krpo_process_variance: float = field(
        default=1e-5,
        metadata={"help": "advantage='krpo': variance of the reward level's drift per rollout."},
    )
    krpo_observation_variance: float = field(
        default=1e-2,
        metadata={"help": "advantage='krpo': variance of a reward around its level."},
    )
    krpo_order: str = field(
        default="generation",
        metadata={"help": "advantage='krpo': rewards are read in 'generation' or 'sorted' order."},
    )
    krpo_innovation: bool = field(
        default=False,
        metadata={
            "help": "advantage='krpo': compare a reward with the estimate from before it was read, "
            "instead of, as published, after."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        needing_all = self._settings_needing_all()
        if self.advantage_from is None:
            self.advantage_from = "all" if needing_all else "kept"
        self._check_advantage_names()
        self._check_advantage_combination(needing_all)
        if self.advantage == "krpo":
            check_krpo_options(
                self.krpo_process_variance,
                self.krpo_observation_variance,
                self.krpo_order,
                prefix="krpo_",
            )

    def own_advantages(self) -> bool:
        """Whether the advantages differ from those that TRL computes from the kept rewards."""
        chosen = (self.advantage, self.advantage_from, self.advantage_weights)
        return chosen != ("grpo", "kept", "none")

    def advantage_options(self) -> dict[str, Any]:
        """The keyword arguments of `podsrl.core.advantage.advantages` for these fields."""
        options: dict[str, Any] = {
            "estimator": self.advantage,
            "source": self.advantage_from,
            "weights": self.advantage_weights,
        }
        if self.advantage == "grpo":
            options["scale"] = self.scale_rewards
        if self.advantage == "krpo":
            options |= {
                "process_variance": self.krpo_process_variance,
                "observation_variance": self.krpo_observation_variance,
                "order": self.krpo_order,
                "innovation": self.krpo_innovation,
            }
        return options

    def _settings_needing_all(self) -> list[str]:
        stratified = self.advantage_weights == "stratified"
        return [
            *([f"advantage={self.advantage!r}"] if self.advantage in NEEDS_ALL else []),
            *(["advantage_weights='stratified'"] if stratified else []),
        ]

    def _check_advantage_names(self) -> None:
        for name, known in (
            ("advantage", ESTIMATORS),
            ("advantage_from", SOURCES),
            ("advantage_weights", WEIGHTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}."
                )

    def _check_advantage_combination(self, needing_all: list[str]) -> None:
        if needing_all and self.advantage_from != "all":
            raise ValueError(
                f"{' and '.join(needing_all)} counts the rewards of all n rollouts, but "
                f"advantage_from is {self.advantage_from!r}: leave advantage_from out."
            )
        if self.advantage != "grpo" and self.scale_rewards == "batch":
            raise ValueError(
                f"scale_rewards='batch' has no effect with advantage={self.advantage!r}, which "
                "divides by no standard deviation of rewards: leave one of the two out."
            )
        if self.own_advantages() and self.multi_objective_aggregation != AGGREGATION:
            chosen = [
                f"{name}={getattr(self, name)!r}"
                for name in ("advantage", "advantage_from", "advantage_weights")
            ]
            raise ValueError(
                f"{', '.join(chosen)} needs multi_objective_aggregation={AGGREGATION!r}, but it is "
                f"{self.multi_objective_aggregation!r}: set it, or these, to their defaults."
            )
