"""What `behaviours` says, and what it cannot go with: one error each, with the remedy."""

import json
from math import isfinite
from typing import TYPE_CHECKING, Any

from podsrl.core.objectives import OBJECTIVES
from podsrl.trl.needs import check_needs

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

EXAMPLE = '[{"temperature": 1.0, "share": 0.5}, {"temperature": 1.3, "share": 0.5}]'
KEYS = ("temperature", "share")
# Rollouts by which a share may miss a whole number, as thirds are written with few digits.
TOLERANCE = 0.01


def read_behaviours(value: Any) -> list[dict[str, float]] | None:
    """The behaviours of a setting, which a flag gives as JSON; None where it is left out.

    Raises `ValueError` for what is no list of a temperature and a share each, both above 0.

    Example: the text `[{"temperature": 1, "share": 1}]` gives one of temperature 1.0 and share 1.0.
    """
    if value is None:
        return None
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"behaviours is {value!r}, no JSON: write {EXAMPLE}.") from error
    if not isinstance(found, list) or not found or not all(map(_is_behaviour, found)):
        raise ValueError(
            f"behaviours is {value!r}: give a list of mappings with temperature and share, numbers "
            f"above 0, such as {EXAMPLE}."
        )
    return [{key: float(each[key]) for key in KEYS} for each in found]


def _is_behaviour(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(KEYS)
        and all(
            type(each) in (int, float) and isfinite(each) and each > 0 for each in value.values()
        )
    )


def num_rollouts_each(config: "PODSConfig") -> list[int]:
    """Rollouts of a group that each behaviour samples.

    Example: shares 0.5 and 0.5 of n = 64 are 32 and 32.
    """
    return [round(each["share"] * int(config.num_rollouts or 0)) for each in _behaviours(config)]


def temperature_of_places(config: "PODSConfig") -> list[float]:
    """The temperature of each of the n places of a group: those of the first behaviour come first.

    Example: shares 0.5 of temperature 1 and 0.5 of 1.3, n = 4: 1, 1, 1.3, 1.3.
    """
    pairs = zip(_behaviours(config), num_rollouts_each(config), strict=True)
    return [each["temperature"] for each, count in pairs for _ in range(count)]


def behaviours_differ(config: "PODSConfig") -> bool:
    """Whether any behaviour is another policy than the one that is trained, at `temperature`."""
    return any(each["temperature"] != config.temperature for each in _behaviours(config))


def check_behaviours(config: "PODSConfig") -> None:
    """Raise `ValueError` for shares that are no whole rollouts, and for what does not fit."""
    if not config.behaviours:
        return
    _check_shares(config)
    needs = {
        "fast_sampling=True, as generate does not say how likely what it drew was": (
            config.fast_sampling
        ),
        "use_vllm=False, which samples at one temperature": not config.use_vllm,
        "use_transformers_continuous_batching=False, which samples at one temperature": (
            not config.use_transformers_continuous_batching
        ),
        "early_stop=False, which would stop the rollouts of whoever is slower": (
            not config.early_stop
        ),
        "sampling_rounds=0, as a prompt that is settled early has not its shares": (
            not config.sampling_rounds
        ),
    }
    check_needs("behaviours needs", needs, "leave behaviours out")
    if behaviours_differ(config):
        _check_other_policies(config)


def _check_other_policies(config: "PODSConfig") -> None:
    """What takes every rollout for one of the policy that is trained."""
    objective = config.get_objective()
    if objective is None or not objective.any_policy:
        others = [name for name, each in OBJECTIVES.items() if each.any_policy and name != "sapg"]
        raise ValueError(
            f"objective={config.objective!r} takes every rollout for one of the policy that is "
            f"trained, at temperature {config.temperature:g}, but behaviours samples at others: "
            "its updates would be biased. Choose 'sapg', which weighs each token by how likely "
            f"either is to draw it, or one whose optimum is the same whoever sampled "
            f"({', '.join(others)})."
        )
    tokens_left_out = "as no weight makes up for tokens that are never drawn"
    given = set(config.generation_kwargs or ())
    needs = {
        f"top_k=0, {tokens_left_out}": not config.top_k,
        f"top_p=1, {tokens_left_out}": config.top_p == 1,
        f"min_p=None, {tokens_left_out}": not config.min_p,
        "repetition_penalty=1, as the policy that is trained has none": (
            config.repetition_penalty == 1
        ),
        "generation_kwargs without settings of sampling": not given
        & {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample"},
        "advantage other than 'krpo', which reads rewards in the order of sampling": (
            config.advantage != "krpo"
        ),
    }
    check_needs("behaviours needs", needs, "leave behaviours out")


def _check_shares(config: "PODSConfig") -> None:
    n, shares = int(config.num_rollouts or 0), [each["share"] for each in _behaviours(config)]
    if abs(sum(shares) - 1) * n > TOLERANCE * len(shares):
        raise ValueError(
            f"the shares of behaviours are {', '.join(f'{share:g}' for share in shares)}, which "
            f"make {sum(shares):g}: they must make 1."
        )
    counts = num_rollouts_each(config)
    whole = all(
        abs(share * n - count) <= TOLERANCE for share, count in zip(shares, counts, strict=True)
    )
    if not whole or 0 in counts:
        near = nearest_counts(shares, n)
        remedy = f"make num_rollouts at least {len(shares)}"
        if near:
            each = ", ".join(f"{count / n:.6g} ({count})" for count in near)
            remedy = f"the nearest shares that do are {each}"
        raise ValueError(
            f"the shares {', '.join(f'{share:g}' for share in shares)} of num_rollouts = {n} are "
            f"{', '.join(f'{share * n:g}' for share in shares)} rollouts, which must be whole and "
            f"at least 1: {remedy}."
        )


def nearest_counts(shares: list[float], num_rollouts: int) -> list[int] | None:
    """Whole numbers near the shares, at least 1 each, that add up to n; None for n too small.

    The largest remainders are rounded up.

    Example: shares 0.3 and 0.7 of n = 8 are 2.4 and 5.6: 2 and 6.
    """
    if num_rollouts < len(shares):
        return None
    counts = [max(1, int(share * num_rollouts)) for share in shares]
    while sum(counts) != num_rollouts:
        step = 1 if sum(counts) < num_rollouts else -1
        lacks = [share * num_rollouts - count for share, count in zip(shares, counts, strict=True)]
        open_places = [i for i, count in enumerate(counts) if count + step >= 1]
        counts[max(open_places, key=lambda i: step * lacks[i])] += step
    return counts


def _behaviours(config: "PODSConfig") -> list[dict[str, float]]:
    assert not isinstance(config.behaviours, str)  # read by now
    return config.behaviours or []
