"""What a task is: questions with answers in two splits, and how completions are scored."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podsrl.rewards.answers import has_format, last_number, tagged_answer
from podsrl.rewards.functions import (
    RewardFunction,
    Score,
    correctness_reward,
    format_reward,
    score_by_answer,
    tag_count_reward,
    unless_failed,
)

Row = dict[str, Any]
SPLITS = ("train", "test")
TAGS_PROMPT = (
    "Solve the problem. First think it through between <think> and </think>, then give only the "
    "final answer between <answer> and </answer>, like this:\n"
    "<think>\nyour reasoning\n</think>\n<answer>\nyour final answer\n</answer>"
)
FORMATS = ("tags", "number")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions, answers and rewards under one name.

    Example: `load_task("arithmetic").rows("test", 1)[0]["answer"]` is a number as text.
    """

    name: str
    load_split: Callable[[str], Sequence[Row]]
    """"train" or "test" -> rows; see `rows`."""
    extract_answer: Callable[[str], str | None]
    """Completion text -> the final answer in it, None without one; maj@k votes on it."""
    score: Score
    """Completion texts and their rows -> scores, 1 for right, None where grading failed."""
    reward_funcs: Mapping[str, RewardFunction]
    """Reward functions in TRL's signature, by name."""
    reward_weights: Mapping[str, float]
    """Default weight of each reward: on one GPU, those of the paper."""
    reward_bounds: Mapping[str, tuple[float, float]]
    """Lowest and highest value of each reward; a reward without an entry is not bounded."""
    has_format: bool
    """Whether answers are asked for in think and answer tags."""
    max_new_tokens: int
    """Default length limit of a completion, in tokens."""
    measured: tuple[str, ...] = ()
    """Rewards whose means an evaluation reports beside the accuracy: a user's own."""
    environment: Callable[[], Any] | None = None
    """Makes what answers the model between its turns (`turns.py`); None for one turn."""
    max_calls: int | None = None
    """Tools called in turn at most in one rollout; None for one turn."""

    def rows(self, split: str, limit: int | None = None) -> list[Row]:
        """Return the rows of a split, the first `limit` of them.

        Each row has `prompt` (chat messages), `answer` (text) and what else the rewards need. The
        test questions are the same for every seed, and none of them is among the train questions.

        Raises: ValueError for an unknown split or a limit under 1.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: choose train or test")
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}: at least 1 problem is needed")
        return list(self.load_split(split)[:limit])

    def bounds(self, weights: Sequence[float] | None = None) -> tuple[float, float]:
        """Return the lowest and highest weighted sum of rewards.

        `weights`: in the order of `reward_funcs`; default: `reward_weights`. The sums are those of
        the single-precision weights that TRL uses, rounded to single precision once.

        Raises: ValueError when a reward has no bounds.

        Example: bounds (0, 1) three times with weights 1, 0.1 and 0.1 give (0, 1.2).
        """
        import torch

        from podsrl.core.combine import combine

        names = list(self.reward_funcs)
        if unbounded := [name for name in names if name not in self.reward_bounds]:
            raise ValueError(
                f"task {self.name} has no bounds for {', '.join(unbounded)}: set reward_bounds to "
                "the lowest and highest weighted sum of rewards, or leave early_stop out"
            )
        weights = weights or [self.reward_weights[name] for name in names]
        weights_F = torch.tensor(weights, dtype=torch.float32).double()
        ends_F2 = torch.tensor([self.reward_bounds[name] for name in names], dtype=torch.float64)
        low_F, high_F = torch.where(weights_F[:, None] < 0, ends_F2.flip(1), ends_F2).unbind(1)
        low, high = combine(torch.stack([low_F, high_F])[None], weights_F)[0].float().tolist()
        return low, high

    def has_bounds(self) -> bool:
        """Whether `bounds` knows those of every reward."""
        return all(name in self.reward_bounds for name in self.reward_funcs)

    def is_correct(self, completion_text: str, row: Row) -> bool | None:
        """Return whether the completion answers the row's question, None if grading failed."""
        score = self.score([completion_text], [row])[0]
        return None if score is None else score >= 1.0

    def keeps_format(self, completion_text: str) -> bool:
        """Return whether the text is think and answer in tags and nothing else."""
        return has_format(completion_text)


def make_task(
    name: str,
    load_split: Callable[[str], Sequence[Row]],
    *,
    answer_format: str,
    max_new_tokens: int,
    score: Score | None = None,
    score_bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Task:
    """Return a task whose answers stand in tags ("tags") or are the last number ("number").

    With tags the rewards are correctness, format and tag count, weighted 1, 0.1 and 0.1; without,
    correctness alone. `score` takes the place of comparing answers;
    `score_bounds` are its lowest and highest value, None when there are none.

    Raises: ValueError for another format.
    """
    if answer_format not in FORMATS:
        raise ValueError(f"answer_format is {answer_format!r}: choose from {', '.join(FORMATS)}")
    tags = answer_format == "tags"
    extract = tagged_answer if tags else last_number
    score = score or score_by_answer(extract)
    weights = {"correctness": 1.0} | ({"format": 0.1, "tag_count": 0.1} if tags else {})
    bounds = {"format": (0.0, 1.0), "tag_count": (0.0, 1.0)} if tags else {}
    if score_bounds is not None:
        bounds["correctness"] = score_bounds
    return Task(
        name=name,
        load_split=functools.cache(load_split),
        extract_answer=extract,
        score=score,
        reward_funcs=rewards_of(score, tags=tags),
        reward_weights=weights,
        reward_bounds=bounds,
        has_format=tags,
        max_new_tokens=max_new_tokens,
    )


def rewards_of(score: Score, *, tags: bool) -> dict[str, RewardFunction]:
    """Return the score as the reward `correctness`, with tags those of the format after it."""
    correctness = correctness_reward(score)
    if not tags:
        return {"correctness": correctness}
    functions = unless_failed(correctness, format_reward, tag_count_reward)
    return dict(zip(("correctness", "format", "tag_count"), functions, strict=True))


def make_row(question: str, answer: str | None, *, tags: bool, **columns: Any) -> Row:
    """Return a row that asks the question, after the format's system message with tags."""
    system = [{"role": "system", "content": TAGS_PROMPT}] if tags else []
    prompt = [*system, {"role": "user", "content": question}]
    return {"prompt": prompt, "answer": answer, **columns}
