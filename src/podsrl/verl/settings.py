"""What stands under `trainer.v1.pods` in verl's configuration, and what it cannot go with."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from podsrl.core.budget import FLOORS
from podsrl.core.rules import RULES
from podsrl.core.selection import BUDGETS, Selector

DEFAULT_ROLLOUTS_PER_KEPT = 2

WHY_NOT = {
    "gae": "a critic would learn the values of kept rollouts, which are chosen to be extremes",
    "remax": "its baseline is a rollout of its own, which is none of the group",
    "reinforce_plus_plus": "its baseline is the mean of a batch chosen to be extremes",
}
"""Estimators of verl that do not compare a rollout with the kept ones of its group, and why that
does not fit; others, a user's own among them, pass."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of `trainer.v1.pods`; m is verl's `actor_rollout_ref.rollout.n`.

    num_kept: m. verl's batch sizes, denominators and mini-batches all count with it.
    num_rollouts: n, sampled per prompt. Default: 2 m.
    selection_rule, budget, budget_floor, budget_cap: as in `PODSConfig`.
    seed: decides ties, and the rule "random".
    dropped_data_dir: folder for the dropped rollouts, one JSON line each, as verl writes the kept
        ones to `trainer.rollout_data_dir`. Default: none are written.

    Raises `ValueError` for what is out of range or unknown.

    Example: `Settings(num_kept=8, num_rollouts=32)`.
    """

    num_kept: int
    num_rollouts: int
    selection_rule: str = "max_variance"
    budget: str = "per_prompt"
    budget_floor: int = 0
    budget_cap: int | None = None
    seed: int = 42
    dropped_data_dir: str | None = None

    def __post_init__(self) -> None:
        n, m = self.num_rollouts, self.num_kept
        if not 2 <= m <= n:
            raise ValueError(
                f"actor_rollout_ref.rollout.n (kept) is {m} and trainer.v1.pods.num_rollouts "
                f"(sampled) is {n}; 2 <= kept <= sampled is needed."
            )
        for name, value, known in (
            ("selection_rule", self.selection_rule, RULES),
            ("budget", self.budget, BUDGETS),
            ("budget_floor", self.budget_floor, FLOORS),
        ):
            if value not in known:
                choice = ", ".join(map(str, known))
                raise ValueError(f"trainer.v1.pods.{name} is {value!r}; choose one of {choice}.")
        if self.budget != "pooled" and (self.budget_floor or self.budget_cap is not None):
            raise ValueError(
                "trainer.v1.pods.budget_floor and budget_cap do nothing with budget=per_prompt; "
                "leave them out or set budget=pooled."
            )
        if self.budget_cap is not None and not m <= self.budget_cap <= n:
            raise ValueError(
                f"trainer.v1.pods.budget_cap is {self.budget_cap}; it lies between the {m} kept "
                f"on average and the {n} sampled."
            )

    def selector(self) -> Selector:
        """The choice that the settings describe; advantages are verl's."""
        return Selector(
            num_kept=self.num_kept,
            rule=self.selection_rule,
            budget=self.budget,
            budget_floor=self.budget_floor,
            budget_cap=self.budget_cap,
        )


def settings_of(config: Any) -> Settings:
    """Read verl's configuration; raise `ValueError` for what PODS cannot go with.

    config: verl's whole one. Without `trainer.v1.pods` the defaults hold.
    """
    refuse(config)
    options: Mapping[str, Any] = config.trainer.v1.get("pods") or {}
    names = [field.name for field in fields(Settings) if field.name != "num_kept"]
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(
            f"trainer.v1.pods.{unknown[0]} is unknown; choose from {', '.join(names)}. How many "
            "are kept is actor_rollout_ref.rollout.n."
        )
    num_kept = int(config.actor_rollout_ref.rollout.n)
    defaults = {"num_rollouts": DEFAULT_ROLLOUTS_PER_KEPT * num_kept}
    return Settings(num_kept=num_kept, **{**defaults, **options})


def refuse(config: Any) -> None:
    """Raise `ValueError` where verl's own settings compare kept rollouts with no group."""
    estimator = config.algorithm.adv_estimator
    estimator = str(getattr(estimator, "value", estimator))  # a word, or verl's enumeration of it
    if estimator in WHY_NOT:
        raise ValueError(
            f"algorithm.adv_estimator is {estimator!r}, with which PODS does not go: "
            f"{WHY_NOT[estimator]}. Set grpo or another that compares a group's rollouts."
        )
    if config.critic.get("enable"):
        raise ValueError(f"critic.enable is True, with which PODS does not go: {WHY_NOT['gae']}.")
