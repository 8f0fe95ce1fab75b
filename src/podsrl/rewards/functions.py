"""Rewards in TRL's signature: completions of a batch -> one number each, None where none exists."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podsrl.rewards.answers import has_format, last_number, quick_match, tag_share, tagged_answer
from podsrl.rewards.grader import Grader, shared_grader

Completion = str | list[dict[str, Any]]
Row = Mapping[str, Any]
# Completion texts and their rows -> scores; 1 is right, None means that grading failed.
Score = Callable[[Sequence[str], Sequence[Row]], list[float | None]]
RewardFunction = Callable[..., list[float | None]]
FAILURES = "rewards/num_grading_failures"
EXTRACTORS = {"tags": tagged_answer, "number": last_number}


def completion_text(completion: Completion) -> str:
    """Return the text of a completion, be it a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def match_answers(
    golds: Sequence[str], answers: Sequence[str | None], *, grader: Grader | None = None
) -> list[float | None]:
    r"""Return 1.0 where the answer equals the gold one, 0.0 where not, None if grading failed.

    Plain comparison first (`quick_match`); what it leaves open goes to math-verify in a worker
    process with a time limit. No answer is wrong.

    Example: `match_answers(["\\frac{1}{2}", "x+1"], ["0.5", None]) == [1.0, 0.0]`.
    """
    verdicts = [
        False if answer is None else quick_match(gold, answer)
        for gold, answer in zip(golds, answers, strict=True)
    ]
    left_open = [row for row, verdict in enumerate(verdicts) if verdict is None]
    scores: list[float | None] = [float(bool(verdict)) for verdict in verdicts]
    if left_open:
        jobs = [{"grader": "math", "gold": golds[i], "answer": answers[i]} for i in left_open]
        graded = (grader or shared_grader()).grade(jobs)
        for row, score in zip(left_open, graded, strict=True):
            scores[row] = score
    return scores


def score_by_answer(extract: Callable[[str], str | None]) -> Score:
    """Return the scorer that compares what `extract` finds in a text with the row's `answer`."""

    def score(texts: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        return match_answers([str(row["answer"]) for row in rows], [extract(t) for t in texts])

    return score


def as_rows(num: int, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of which these are columns; what is no list of `num` values is no column.

    Example: 2 and {"answer": ["7", "8"], "trainer_state": state} give {"answer": "7"} and
    {"answer": "8"}.
    """
    lists = {
        name: values
        for name, values in columns.items()
        if isinstance(values, list) and len(values) == num
    }
    return [{name: values[i] for name, values in lists.items()} for i in range(num)]


def correctness_reward(score: Score) -> RewardFunction:
    """Return the reward that is the score of each completion, usually 1 or 0.

    Failed gradings are None, which TRL reads as NaN; their number is logged as
    `rewards/num_grading_failures` when TRL passes `log_metric`.
    """

    def correctness(
        completions: Sequence[Completion], answer: Sequence[str], **columns: Any
    ) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        scores = score(texts, as_rows(len(texts), {"answer": list(answer), **columns}))
        if columns.get("log_metric") is not None:
            columns["log_metric"](FAILURES, float(scores.count(None)))
        return scores

    return correctness


def format_reward(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Return 1.0 for a completion that is think and answer in tags and nothing else, else 0.0."""
    return [float(has_format(completion_text(completion))) for completion in completions]


def tag_count_reward(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Return 0.25 for each of the four tags that stands exactly once in the completion."""
    return [tag_share(completion_text(completion)) for completion in completions]


def unless_failed(leader: RewardFunction, *others: RewardFunction) -> list[RewardFunction]:
    """Return the functions so that where the leader gives None, the others give None as well.

    TRL adds up what the functions give and leaves out None. Without this, a rollout whose grading
    failed would keep its format reward and pass for a wrong answer; so it has no reward at all.
    The leader must be called first on each batch, as TRL calls functions in their order.
    """
    failed: set[int] = set()

    @functools.wraps(leader)
    def leading(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        scores = leader(completions=completions, **columns)
        failed.clear()
        failed.update(i for i, score in enumerate(scores) if score is None)
        return scores

    def following(other: RewardFunction) -> RewardFunction:
        @functools.wraps(other)
        def follow(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
            scores = other(completions=completions, **columns)
            return [None if i in failed else score for i, score in enumerate(scores)]

        return follow

    return [leading, *map(following, others)]
