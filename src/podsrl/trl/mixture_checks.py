"""What `rollout_mixture` says, and what it cannot go with: one error each, with the remedy."""

from typing import TYPE_CHECKING, Any

from podsrl.core.objectives import OBJECTIVES
from podsrl.trl.behaviours_checks import TOLERANCE
from podsrl.trl.needs import check_needs, from_json

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

POLICY = "policy"
"""Stands for the model that is trained, among the models of a mixture."""
KEYS = ("model", "head")
EXAMPLE = (
    '[{"model": "policy", "head": "runs/a/probe-prefix.safetensors"}, '
    '{"model": "runs/b/model", "head": "runs/b/probe-prefix.safetensors"}]'
)


def read_mixture(value: Any) -> list[dict[str, str]] | None:
    """The models and heads of a setting, which a flag gives as JSON; None where it is left out.

    Raises `ValueError` for what is no list of two or more models with a head each, of which one is
    the policy.

    Example: the text of `EXAMPLE` gives two, of which the first is the policy.
    """
    if value is None:
        return None
    found = from_json("rollout_mixture", value, EXAMPLE)
    if not isinstance(found, list) or not all(map(_is_agent, found)):
        raise ValueError(
            f"rollout_mixture is {value!r}: give a list of mappings with model and head, a folder "
            f"or name and a file, such as {EXAMPLE}."
        )
    num_policies = sum(each["model"] == POLICY for each in found)
    if len(found) < 2 or num_policies != 1:
        raise ValueError(
            f"rollout_mixture has {len(found)} models, {num_policies} of them the policy: give the "
            f"policy once, as {POLICY!r}, and one or more others."
        )
    return [{key: each[key] for key in KEYS} for each in found]


def _is_agent(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(KEYS)
        and all(isinstance(each, str) and each for each in value.values())
    )


def num_mixed(config: "PODSConfig") -> int:
    """Rollouts of a group that the mixture writes; the policy alone samples the others.

    Example: a share of 0.5 of n = 64 are 32.
    """
    return round(float(config.rollout_mixture_share or 0) * int(config.num_rollouts or 0))


def check_mixture(config: "PODSConfig") -> None:
    """Raise `ValueError` for a share that is no whole rollouts, and for what does not fit."""
    share, n = config.rollout_mixture_share, int(config.num_rollouts or 0)
    if not config.rollout_mixture:
        if share is not None:
            raise ValueError(
                f"rollout_mixture_share is {share}, which has no effect without rollout_mixture: "
                "leave it out."
            )
        return
    if share is None or not 0 < share <= 1 or abs(share * n - num_mixed(config)) > TOLERANCE:
        raise ValueError(
            f"rollout_mixture_share is {share}: of num_rollouts = {n} it must be whole rollouts, "
            f"from {1 / n:.6g} (1) to 1 ({n})."
        )
    _check_mixed_objective(config)
    needs = {
        "fast_sampling=True, as generate runs one model": config.fast_sampling,
        "use_vllm=False, which runs one model": not config.use_vllm,
        "use_transformers_continuous_batching=False, which runs one model": (
            not config.use_transformers_continuous_batching
        ),
        "behaviours left out, as both say who samples by the place in the group": (
            not config.behaviours
        ),
        "early_stop=False, which would stop the rollouts of whoever is slower": (
            not config.early_stop
        ),
        "sampling_rounds=0, as a prompt that is settled early has not its share": (
            not config.sampling_rounds
        ),
        "bmc_bridges left out, as a rollout's place says whose it is": not config.bmc_bridges,
    }
    check_needs("rollout_mixture needs", needs, "leave rollout_mixture out")


def _check_mixed_objective(config: "PODSConfig") -> None:
    """A token that several models have written has no probability that a loss could read."""
    objective = config.get_objective()
    if objective is not None and objective.any_policy and not objective.needs_behaviour:
        return
    fit = [
        name for name, each in OBJECTIVES.items() if each.any_policy and not each.needs_behaviour
    ]
    raise ValueError(
        f"objective={config.objective!r} needs to know how likely a rollout was to be sampled, or "
        "takes it for the policy's own, but what rollout_mixture writes has no probability: choose "
        f"an objective whose optimum is the same whoever sampled ({', '.join(fit)})."
    )
