"""A reward without labels: the rollouts of a prompt vote on its answer."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from podsrl.rewards.answers import normalise
from podsrl.rewards.functions import Completion, RewardFunction, Score, as_rows, completion_text

MAJORITY = "majority"
DEFAULT_GATE = 0.5

Log = Callable[[str, float], None]


def majority_reward(
    extract: Callable[[str], str | None], score: Score, *, gate: float = DEFAULT_GATE
) -> RewardFunction:
    """Return the reward that is 1 for a prompt's commonest answer and 0 for its others.

    None for all rollouts of a prompt of which fewer than the share `gate` agree, as
    `podsrl.core.votes.majority_rewards` has it. Answers are the same when they are the same text
    but for marks without meaning, as in maj@k.

    The function must be given all rollouts of a prompt, one after the other, as its attribute
    `needs_whole_groups` says: rows of the same prompt that follow each other vote together. Shares
    of the prompts go to `log_metric`, by the names of docs/metrics.md; those of a question with a
    right answer in the column `answer` say how often the vote is right, and nothing is trained on
    it. An answer that cannot be graded is not right.

    Args:
        extract: a text -> its final answer, None without one, which votes for nobody.
        score: asked of one text of each prompt, the first with the commonest answer.
        gate: 0 to 1.

    Example: answers "3", "3.", "4" and none at a gate of 1/2 are rewarded 1, 1, 0 and 0; at 3/4
    there is no reward.
    """

    def majority(
        completions: Sequence[Completion], prompts: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        answers = [_vote(extract(text)) for text in texts]
        same = itertools.groupby(range(len(texts)), key=prompts.__getitem__)
        polls = [_poll(list(places), answers, gate) for _, places in same]
        if (log := columns.get("log_metric")) is not None:
            _log_agreement(log, polls)
            _log_rightness(log, polls, score, texts, as_rows(len(texts), columns))
        return [reward for poll in polls for reward in poll.rewards]

    majority.needs_whole_groups = True  # type: ignore[attr-defined]
    return majority


@dataclass(frozen=True)
class _Poll:
    """The vote of one prompt's rollouts."""

    rewards: list[float | None]
    share: float
    """Of the rollouts, those with the commonest answer."""
    first: int | None
    """The first row with the commonest answer, None where nobody has one."""
    row: int
    """A row of the prompt."""


def _poll(places: list[int], answers: Sequence[str | None], gate: float) -> _Poll:
    from podsrl.core.votes import largest_share, majority, majority_rewards, numbered

    votes_1N = numbered([[answers[place] for place in places]])
    rewards_N = majority_rewards(votes_1N, gate=gate)[0]
    has_reward = not bool(rewards_N.isnan().any())
    winner = int(majority(votes_1N))
    return _Poll(
        rewards=rewards_N.tolist() if has_reward else [None] * len(places),
        share=float(largest_share(votes_1N)),
        first=None if winner < 0 else places[winner],
        row=places[0],
    )


def _vote(answer: str | None) -> str | None:
    return None if answer is None else normalise(answer) or None


def _log_agreement(log: Log, polls: Sequence[_Poll]) -> None:
    log("majority/mean_share", sum(poll.share for poll in polls) / len(polls))
    log("majority/frac_unanimous", sum(poll.share == 1 for poll in polls) / len(polls))


def _log_rightness(
    log: Log,
    polls: Sequence[_Poll],
    score: Score,
    texts: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Log how often the commonest answer is right; nothing where no right answer is known."""
    known = [poll for poll in polls if rows[poll.row].get("answer") is not None]
    if not known:
        return
    asked = [poll.first for poll in known if poll.first is not None]
    scores = score([texts[i] for i in asked], [rows[i] for i in asked])
    right = {i for i, value in zip(asked, scores, strict=True) if value is not None and value >= 1}
    misled = [poll for poll in known if poll.rewards[0] is not None and poll.first not in right]
    log("majority/frac_right", len(right) / len(known))
    log("majority/frac_misled", len(misled) / len(known))
