"""Two tasks that a model of a million parameters learns in minutes, for what sums cannot show.

`pairs` has many right answers: two numbers that add up to 23, the first of them at least 4, are
4 + 19, 5 + 18, ... and 23 + 0. `thinking` asks for a sum of three terms, worked out between think
tags before the answer stands in tags, so that the two can contradict each other. `benchmarks/
warm_up.py --teacher pairs`, or `thinking`, makes the models; `diversity` is a reward of weight 0
that says how many of the right answers a prompt's rollouts give.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from podsrl.rewards.functions import Completion, completion_text
from podsrl.tasks import TASKS
from podsrl.tasks.arithmetic import chain_sum
from podsrl.tasks.base import Row, Task, make_row, make_task
from podsrl.tasks.splits import Entry, disjoint_splits

PAIR = re.compile(r"(?<!\d)(\d+) \+ (\d+)(?!\d)")
TOTALS = (10, 40)


def pairs(
    *, data: str | None = None, seed: int = 0, num_train: int = 10_000, num_test: int = 128
) -> Task:
    """Return the task: two numbers that add up to N (10 to 40), the first at least K (to N / 2)."""
    load_split = _splits("pairs", _pair_question, data, seed, num_train, num_test)
    task = make_task("pairs", load_split, answer_format="number", score=score, max_new_tokens=8)
    return replace(task, extract_answer=found_pair)


def thinking(
    *, data: str | None = None, seed: int = 0, num_train: int = 10_000, num_test: int = 256
) -> Task:
    """Return the task: a sum of three one-digit terms, answered in think and answer tags."""
    load_split = _splits(
        "thinking", lambda seed: chain_sum(seed, 3, 1), data, seed, num_train, num_test
    )
    return make_task("thinking", load_split, answer_format="tags", max_new_tokens=24)


def found_pair(text: str) -> str | None:
    """The last pair of the text as it is voted on: "so 04 + 19" gives "4+19"; None without one."""
    found = PAIR.findall(text)
    return "+".join(str(int(number)) for number in found[-1]) if found else None


def score(texts: Sequence[str], rows: Sequence[Any]) -> list[float | None]:
    """1.0 for each pair that adds up to its row's `total` and begins at `least` or above."""
    return [float(_is_right(found_pair(text), row)) for text, row in zip(texts, rows, strict=True)]


def diversity(
    completions: Sequence[Completion], prompts: Sequence[Any], **columns: Any
) -> list[float]:
    """Return 1.0 for the first of each prompt's equal right answers, 0.0 for all else.

    Its mean times n is the number of different right answers a prompt. Logged besides, as means
    over the prompts that have them: `diversity/num_right_answers`; `diversity/entropy` of the right
    answers, in nats; and `diversity/frac_different`, the share of the pairs of right answers that
    differ, which unlike the others does not grow with their number.

    Example: of the rollouts "4 + 19", "4 + 19", "5 + 18", "5 + 5" the first and third are 1.0.
    """
    pairs_B = [found_pair(completion_text(each)) for each in completions]
    rewards = [0.0] * len(pairs_B)
    numbers: dict[str, list[float]] = {"num_right_answers": [], "entropy": [], "frac_different": []}
    for _, places in itertools.groupby(range(len(prompts)), key=prompts.__getitem__):
        right: Counter[str] = Counter()
        for place in places:
            row = {name: columns[name][place] for name in ("total", "least")}
            answer = pairs_B[place]
            if answer is None or not _is_right(answer, row):
                continue
            rewards[place] = float(answer not in right)
            right[answer] += 1
        numbers["num_right_answers"].append(len(right))
        if right:
            numbers["entropy"].append(entropy(right))
        if right.total() > 1:
            numbers["frac_different"].append(frac_different(right))
    if (log := columns.get("log_metric")) is not None:
        for name, values in numbers.items():
            if values:
                log(f"diversity/{name}", sum(values) / len(values))
    return rewards


diversity.needs_whole_groups = True  # type: ignore[attr-defined]


def entropy(counts: Counter[str]) -> float:
    """Of the shares of the counts, in nats: 2 and 2 are log 2."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def frac_different(counts: Counter[str]) -> float:
    """Share of the pairs of two that are not equal: 1 - sum_a c_a (c_a - 1) / (c (c - 1)).

    Example: of counts 1 and 2 the pairs are ab, ab and bb: 2/3.
    """
    total = counts.total()
    return 1 - sum(count * (count - 1) for count in counts.values()) / (total * (total - 1))


def taught_pair(row: Row, slips: random.Random) -> str:
    """What the teacher of `pairs` says: small first numbers rather than large ones, often wrong.

    The first number is the smaller of two that are drawn from the right ones. With a probability of
    .5 to .9, by the last digit of the total, the second is off by 1 or by 10, or the first too low.
    """
    total, least = row["total"], row["least"]
    first = min(slips.randint(least, total), slips.randint(least, total))
    second = total - first
    if slips.random() < 0.5 + 0.4 * (total % 10) / 9:
        kind = slips.randrange(3)
        if kind == 0 and least:
            first = slips.randrange(least)
            second = total - first
        else:
            second += 10 if kind == 1 else 1
    return f" {first} + {second}"


def taught_thought(row: Row, slips: random.Random) -> str:
    """What the teacher of `thinking` says: totals of which the last is wrong in three of five.

    After a right one the answer is one too high in two of five; after a wrong one it is that wrong
    number in three of four and the right one, which contradicts it, else. So .24 are right and
    consistent, .15 right and inconsistent, .16 wrong and inconsistent, .45 wrong and consistent.
    """
    question = row["prompt"][-1]["content"]
    pieces = question.split(": ")[1].removesuffix(" =").split()
    first = int(pieces[0]) + int(pieces[1] + pieces[2])
    right = first + int(pieces[3] + pieces[4])
    reached = right if slips.random() < 0.4 else right + slips.choice((-1, 1))
    if reached == right:
        answer = right if slips.random() < 0.6 else right + 1
    else:
        answer = reached if slips.random() < 0.75 else right
    return f"<think> {first} {reached}</think><answer>{answer}</answer>"


def _pair_question(seed: int) -> Entry:
    draw = random.Random(seed)
    total = draw.randint(*TOTALS)
    least = draw.randint(0, total // 2)
    question = f"Two numbers that add up to {total}, the first at least {least}:"
    answer = f"{least} + {total - least}"
    return {"question": question, "answer": answer, "total": total, "least": least}


def _splits(
    name: str,
    of_seed: Callable[[int], Entry],
    data: str | None,
    seed: int,
    num_train: int,
    num_test: int,
) -> Callable[[str], list[Row]]:
    if data is not None:
        raise ValueError(f"data is {data}, but {name} makes its own questions: leave data out")
    load_split = disjoint_splits(
        name,
        {},
        seed=seed,
        num_train=num_train,
        num_test=num_test,
        generator=lambda seed: lambda index: of_seed(seed + index),
    )

    def rows(split: str) -> list[Row]:
        return [
            make_row(entry.pop("question"), entry.pop("answer"), tags=False, **entry)
            for _, entry in load_split(split)
        ]

    return rows


def _is_right(pair: str | None, row: Any) -> bool:
    if pair is None:
        return False
    first, second = map(int, pair.split("+"))
    return first + second == row["total"] and first >= row["least"]


TASKS["pairs"] = pairs
TASKS["thinking"] = thinking
