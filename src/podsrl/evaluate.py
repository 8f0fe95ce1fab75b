"""How good a model is at a task: accuracy, format and length, each with a 95 % interval."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.answering import Answer, PlayedAnswer, Questions, encode, own_rewards
from podsrl.intervals import mean_interval, pass_at_k, share_interval
from podsrl.tasks.base import Row, Task
from podsrl.tasks.questions import with_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one evaluation, and the answers they come from."""

    settings: dict[str, Any]
    summary: dict[str, Any]
    """Each figure is {"value", "low", "high", "num_problems"}; counts and seconds are plain."""
    problems: list[dict[str, Any]]
    """Per problem: index, prompt, answer (gold), greedy (an Answer), samples (Answers)."""

    def to_json(self) -> dict[str, Any]:
        """Return settings and summary, ready for json.dump."""
        return {"settings": self.settings, **self.summary}

    def save(self, folder: str | Path) -> None:
        """Write `evaluation.json` and `answers.jsonl` (one problem per line) into the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
        lines = (json.dumps(problem, ensure_ascii=False) for problem in self.problems)
        (folder / "answers.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    *,
    split: str = "test",
    limit: int | None = 256,
    num_samples: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how well the model answers the first `limit` problems of a split.

    One greedy answer per problem gives `accuracy_greedy`, `format_rate` (tasks with a format),
    `mean_length` (tokens) and `truncated_share`. With num_samples = k > 0, k answers per problem
    at `temperature` give `accuracy_sampled` (their mean), `maj@k` (the commonest final answer is
    right; ties go to the one sampled first), and `pass@j` for j = 2, 4, ... and k (at least one
    of j is right, unbiased). An answer whose grading failed counts as wrong and in
    `num_grading_failures`. Rewards in `task.measured` add `reward_<name>`, their mean over greedy
    answers. Intervals: see `podsrl.intervals`; they speak of the choice of problems, not of
    training seeds.

    A task with turns is played to the end of each dialogue, as training plays it; `mean_calls` then
    counts tools called, `mean_length` what the model wrote, and maj@k, a vote on final answers, is
    left out.

    The result does not depend on `batch_size` beyond rounding in the model's arithmetic (samples
    of a model that `podsrl.sampling` does not serve do). Draws follow `seed`; the global random
    state and the model's mode are left as they were. `progress(done, total)` is called after each
    batch, in completions.

    Raises: ValueError for an option out of range and for prompts too long for the model.

    Example: 77 right of 256 give `summary["accuracy_greedy"]` = {"value": 0.301, "low": 0.248,
    "high": 0.360, "num_problems": 256}.
    """
    from podsrl.progress import counted

    max_new_tokens = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    counts = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    check_options(num_samples=num_samples, temperature=temperature, **counts)
    start = time.perf_counter()
    rows = with_answers(task.rows(split, limit), split)
    asked = Questions(
        model=model,
        tokenizer=tokenizer,
        task=task,
        rows=rows,
        prompts=encode(model, tokenizer, task, rows, max_new_tokens),
        seed=seed,
        report=counted(progress or (lambda done, total: None), len(rows) * (1 + num_samples)),
        **counts,
    )

    def answer(num_repeats: int, temperature: float | None) -> list[list[Answer]]:
        answers = asked.answered(num_repeats, temperature)
        return [answers[i : i + num_repeats] for i in range(0, len(answers), num_repeats)]

    greedy = [answers[0] for answers in answer(1, None)]
    samples = answer(num_samples, temperature) if num_samples else [[] for _ in rows]
    settings = {"task": task.name, "split": split, "num_samples": num_samples}
    settings |= {"temperature": temperature if num_samples else None}
    settings |= {"max_new_tokens": max_new_tokens, "seed": seed}
    summary = summarise(greedy, samples, task, rows) | _own_rewards(task, tokenizer, greedy, rows)
    summary["seconds"] = time.perf_counter() - start
    return Evaluation(
        settings=settings, summary=summary, problems=problems_of(rows, greedy, samples)
    )


def summarise(
    greedy: Sequence[Answer], samples: Sequence[Sequence[Answer]], task: Task, rows: Sequence[Row]
) -> dict[str, Any]:
    """Return the figures of `evaluate` from greedy answers and samples per problem."""
    everything = [*greedy, *(answer for group in samples for answer in group)]
    summary: dict[str, Any] = {
        "num_problems": len(greedy),
        "accuracy_greedy": share_interval([float(bool(a.correct)) for a in greedy]),
        "format_rate": (
            share_interval([float(a.keeps_format) for a in greedy]) if task.has_format else None
        ),
        "mean_length": mean_interval([float(a.num_tokens) for a in greedy]),
        "truncated_share": share_interval([float(a.truncated) for a in greedy]),
        "num_grading_failures": sum(a.correct is None for a in everything),
    }
    if calls := [float(a.num_calls) for a in greedy if isinstance(a, PlayedAnswer)]:
        summary["mean_calls"] = mean_interval(calls)
    num_samples = len(samples[0])
    if not num_samples:
        return summary
    num_right = [sum(bool(a.correct) for a in group) for group in samples]
    summary["accuracy_sampled"] = share_interval(
        [right / num_samples for right in num_right], num_repeats=num_samples
    )
    if task.environment is None:  # which leaves no final answer to vote on
        summary[f"maj@{num_samples}"] = share_interval([_majority_is_right(g) for g in samples])
    for k in _powers_of_two(num_samples):
        summary[f"pass@{k}"] = share_interval(
            [pass_at_k(num_samples, right, k) for right in num_right], num_repeats=num_samples
        )
    return summary


def _own_rewards(
    task: Task, tokenizer: "PreTrainedTokenizerBase", greedy: Sequence[Answer], rows: Sequence[Row]
) -> dict[str, Any]:
    """`reward_<name>`, the mean over greedy answers, of each reward that the task measures."""
    found = {name: own_rewards(name, task, tokenizer, greedy, rows) for name in task.measured}
    return {
        f"reward_{name}": mean_interval(values) if values else None
        for name, values in found.items()
    }


def check_options(
    *, num_samples: int, temperature: float, max_new_tokens: int | None, batch_size: int
) -> None:
    """Raise ValueError for an evaluation option out of range, naming value and bound."""
    if num_samples < 0:
        raise ValueError(f"num_samples is {num_samples}: it must be 0 (greedy only) or more")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}: it must be above 0 (greedy is always run)")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")


def _majority_is_right(answers: Sequence[Answer]) -> float:
    """1.0 when the commonest final answer is right; no final answer at all is wrong."""
    from podsrl.rewards.answers import normalise

    votes = [(normalise(a.answer), a) for a in answers if a.answer is not None]
    if not votes:
        return 0.0
    winner = Counter(vote for vote, _ in votes).most_common(1)[0][0]
    return float(bool(next(a.correct for vote, a in votes if vote == winner)))


def _powers_of_two(largest: int) -> list[int]:
    """2, 4, 8, ... below `largest`, and `largest` itself."""
    powers = [2**i for i in range(1, largest.bit_length()) if 2**i < largest]
    return [*powers, largest]


def problems_of(
    rows: Sequence[Row], greedy: Sequence[Answer], samples: Sequence[Sequence[Answer]]
) -> list[dict[str, Any]]:
    """Return `Evaluation.problems` from rows and their answers."""
    return [
        {
            "index": index,
            "prompt": row["prompt"],
            "answer": row["answer"],
            "greedy": asdict(first),
            "samples": [asdict(answer) for answer in group],
        }
        for index, (row, first, group) in enumerate(zip(rows, greedy, samples, strict=True))
    ]
