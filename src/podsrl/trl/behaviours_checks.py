"""What `behaviours` says, and what it cannot go with: one error each, with the remedy."""

from math import isfinite
from typing import TYPE_CHECKING, Any

from podsrl.core.combine import SUM_THEN_NORMALIZE
from podsrl.core.objectives import OBJECTIVES
from podsrl.trl.needs import check_needs, from_json

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

EXAMPLE = '[{"temperature": 1.0, "share": 0.5}, {"temperature": 1.3, "share": 0.5}]'
KEYS = ("temperature", "share")
# Of a behaviour that learns for itself: reward per nat of its entropy.
FOLLOWER = "follower_entropy"
# Rollouts by which a share may miss a whole number, as thirds are written with few digits.
TOLERANCE = 0.01


def read_behaviours(value: Any) -> list[dict[str, float]] | None:
    """The behaviours of a setting, which a flag gives as JSON; None where it is left out.

    Raises `ValueError` for what is no list of a temperature and a share each, both above 0; a
    follower has its `follower_entropy`, too, which may be 0.

    Example: the text `[{"temperature": 1, "share": 1}]` gives one of temperature 1.0 and share 1.0.
    """
    if value is None:
        return None
    found = from_json("behaviours", value, EXAMPLE)
    if not isinstance(found, list) or not found or not all(map(_is_behaviour, found)):
        raise ValueError(
            f"behaviours is {value!r}: give a list of mappings with temperature and share, numbers "
            f"above 0, such as {EXAMPLE}; a follower has {FOLLOWER}, 0 or more, too."
        )
    return [{key: float(number) for key, number in each.items()} for each in found]


def _is_behaviour(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) - {FOLLOWER} == set(KEYS)
        and all(type(each) in (int, float) and isfinite(each) for each in value.values())
        and min(value[key] for key in KEYS) > 0
        and value.get(FOLLOWER, 0) >= 0
    )


def num_rollouts_each(config: "PODSConfig") -> list[int]:
    """Rollouts of a group that each behaviour samples.

    Example: shares 0.5 and 0.5 of n = 64 are 32 and 32.
    """
    return [round(each["share"] * int(config.num_rollouts or 0)) for each in _behaviours(config)]


def behaviours_differ(config: "PODSConfig") -> bool:
    """Whether any behaviour is another policy than the one that is trained, at `temperature`."""
    return any(
        each["temperature"] != config.temperature or FOLLOWER in each
        for each in _behaviours(config)
    )


def num_followers(config: "PODSConfig") -> int:
    """How many behaviours learn for themselves, each with an adapter of its own."""
    return sum(FOLLOWER in each for each in _behaviours(config))


def parts_of_policies(config: "PODSConfig") -> tuple[tuple[int, int], ...] | None:
    """How many of n and of m are the leader's, and each follower's; None without followers.

    The leader has all behaviours that are no followers; they stand first.

    Example: shares .5 and .5 of n = 64 and m = 16, the second a follower's: (32, 8), (32, 8).
    """
    count = num_followers(config)
    if not count:
        return None
    sizes, shares = num_rollouts_each(config), [each["share"] for each in _behaviours(config)]
    kept = [round(share * config.num_generations) for share in shares[-count:]]
    first = (sum(sizes[:-count]), config.num_generations - sum(kept))
    return (first, *zip(sizes[-count:], kept, strict=True))


def check_followers(config: "PODSConfig") -> None:
    """Raise `ValueError` for followers that cannot be, and for what they do not go with."""
    behaviours, count = _behaviours(config), num_followers(config)
    leaders, followers = behaviours[:-count], behaviours[-count:]
    share = sum(each["share"] for each in followers)
    needs = {
        "objective='sapg', whose leader weighs what followers sampled": config.objective == "sapg",
        "followers to stand last, after one behaviour or more of the leader": (
            bool(leaders) and not any(FOLLOWER in each for each in leaders)
        ),
        f"followers at the policy's temperature, {config.temperature:g}: they explore by their "
        "entropy": all(each["temperature"] == config.temperature for each in followers),
        f"followers with at most half of the rollouts, not {share:g}, as the leader is to learn "
        "from no more of theirs than of its own": share <= 0.5 + TOLERANCE,
        "budget='per_prompt'": config.budget == "per_prompt",
        "num_generations_start=None": config.num_generations_start is None,
        "advantage_weights='none'": config.advantage_weights == "none",
        f"multi_objective_aggregation={SUM_THEN_NORMALIZE!r}": (
            config.multi_objective_aggregation == SUM_THEN_NORMALIZE
        ),
        "fp16=False, whose scaling of losses is the leader's": not config.fp16,
    }
    check_needs("follower_entropy needs", needs, "leave follower_entropy out")
    _check_kept_shares(config, followers)


def _check_kept_shares(config: "PODSConfig", followers: list[dict[str, float]]) -> None:
    """Each policy keeps its share of m, which must be whole, and can be compared among itself."""
    m = config.num_generations
    shares = [each["share"] for each in followers]
    counts = [share * m for share in shares]
    if any(abs(count - round(count)) > TOLERANCE or round(count) < 2 for count in counts):
        raise ValueError(
            f"the shares {', '.join(f'{share:g}' for share in shares)} of followers keep "
            f"{', '.join(f'{count:g}' for count in counts)} of num_generations = {m} rollouts, "
            "which must be whole and at least 2: change the shares, or num_generations."
        )


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
    if num_followers(config):
        check_followers(config)
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
