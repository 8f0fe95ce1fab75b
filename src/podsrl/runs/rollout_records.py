"""Records of the rollout log: one of each prompt of a batch, and why each rollout was kept."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podsrl.core.selection import Selection

# Rules that keep nothing but ends of the sorted rewards: a kept rollout lies above or below all
# dropped ones, and that is why it was kept. Of other rules only the name can be said.
RULES_OF_ENDS = ("max_variance", "max_reward")


def why(
    rewards_N: Sequence[float], kept_N: Sequence[bool], rule: str = "max_variance"
) -> list[str]:
    """Return why each rollout of one group was kept, or that it was not.

    | word | the rollout |
    |---|---|
    | no_reward | has no reward (NaN), kept or not |
    | dropped | has a reward and was not kept |
    | all | was kept together with every other one that has a reward |
    | lowest, highest | was kept, and lies below, above every dropped one |
    | tie | was kept while one with the same reward was dropped: the seed chose |
    | the rule's name | was kept by a rule that does not keep ends, such as random |

    Args:
        rewards_N: what the rule ranked, NaN for no reward; equal means equal to the last bit.
        kept_N: which were kept, any number of them, also none.
        rule: the rule's name; `lowest`, `highest` and `tie` are said of `RULES_OF_ENDS` only.

    Raises: ValueError when the two differ in length.

    Example:
        >>> why([0.0, 0.5, 1.0, 1.0], [True, False, True, False])
        ['lowest', 'dropped', 'tie', 'dropped']
    """
    pairs = list(zip(rewards_N, kept_N, strict=True))
    dropped = {reward for reward, kept in pairs if not kept and not math.isnan(reward)}
    bounds = (min(dropped), max(dropped)) if dropped else None
    return [_why(reward, kept, dropped, bounds, rule) for reward, kept in pairs]


def _why(
    reward: float, kept: bool, dropped: set[float], bounds: tuple[float, float] | None, rule: str
) -> str:
    if math.isnan(reward):
        return "no_reward"
    if not kept:
        return "dropped"
    if bounds is None:
        return "all"
    if rule not in RULES_OF_ENDS:
        return rule
    if reward in dropped:
        return "tie"
    if reward < bounds[0]:
        return "lowest"
    return "highest" if reward > bounds[1] else rule


def batch_records(
    selection: "Selection",
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Any],
    num_tokens: Sequence[int],
    *,
    advantages: Mapping[int, float],
    rule: str,
    given: Sequence[list[list[int]]] | None = None,
) -> list[dict[str, Any]]:
    """Return the records of the prompts that the first process sampled, as JSON can hold them.

    Args:
        selection: rewards and kept rollouts of all P prompts of all processes.
        rows: the data set's row, with `prompt` and perhaps `answer`, of each of its prompts.
        completions: texts or message lists of the rollouts it sampled, group after group. Where
            the last group is shared with another process the rest of it has neither text nor
            length: null.
        num_tokens: their lengths.
        advantages: of the kept rollouts it trains on, by position among all sampled ones.
        rule: the name of the selection rule, for `why`.
        given: of rollouts with turns, where in each text stands what the model did not write and is
            not trained on: first character, and the one after the last.
    """
    num_rollouts = selection.rewards_PN.shape[1]
    rewards_PN = selection.rewards_PN[: len(rows)].tolist()
    parts_PFN = selection.rewards_per_func_PNF[: len(rows)].transpose(1, 2).tolist()
    kept = set(selection.kept_rows_B.tolist())
    missing = [None] * (len(rows) * num_rollouts - len(completions))
    completions, lengths = [*completions, *missing], [*num_tokens, *missing]
    records = []
    for i, (row, rewards_N) in enumerate(zip(rows, rewards_PN, strict=True)):
        places = range(i * num_rollouts, (i + 1) * num_rollouts)
        kept_N = [place in kept for place in places]
        record: dict[str, Any] = {
            "question": question_of(row["prompt"]),
            "rewards": [_number(reward) for reward in rewards_N],
            "parts": [[_number(reward) for reward in part_N] for part_N in parts_PFN[i]],
            "num_tokens": [lengths[place] for place in places],
            "kept": [int(is_kept) for is_kept in kept_N],
            "why": why(rewards_N, kept_N, rule),
            "advantages": [_number(advantages.get(place)) for place in places],
            "texts": [_text(completions[place]) for place in places],
        }
        if given is not None:
            record["given"] = [given[place] if place < len(given) else [] for place in places]
        if row.get("answer") is not None:
            record["answer"] = str(row["answer"])
        records.append(record)
    return records


def question_of(prompt: Any) -> str | None:
    """Return the last user message of a chat, or the prompt itself."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message["role"] == "user"]
    return _text((asked or prompt)[-1:])


def _text(completion: Any) -> str | None:
    """The text of a completion or of messages, whose content is text or a list of blocks."""
    if completion is None or isinstance(completion, str):
        return completion
    contents = [message.get("content") or "" for message in completion]
    return "\n".join(
        content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
        for content in contents
    )


def _number(value: float | None) -> float | None:
    """Six significant digits, about what a float32 holds; null for what is no number."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
