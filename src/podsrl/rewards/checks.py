"""Checks of how an answer was reached; as rewards they have weight 0 and are only logged.

1 is fine and 0 is not. An objective may choose its pairs by them (docs/methods.md, veripo).
"""

import re
from collections.abc import Sequence
from typing import Any

from podsrl.rewards.answers import last_number, quick_match, tagged_answer
from podsrl.rewards.functions import Completion, RewardFunction, completion_text

NUM_WORDS = 3
REASONING = re.compile(r"<think>(.*?)</think>", re.DOTALL)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def consistency(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Return 1.0 where the final answer is the one that the reasoning ends with, else 0.0.

    The reasoning stands between think tags, the answer between answer tags; the reasoning ends with
    its last boxed expression or, without one, its last number. None where one of the three is
    missing, and where the two could be equal by algebra alone.

    Example: `<think>6 * 3 = 18</think><answer>18</answer>` is 1.0, with 17 as the answer 0.0.
    """
    return [_is_consistent(completion_text(completion)) for completion in completions]


def variety(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """Return the share of a completion's runs of three words that are its first of their kind.

    1.0 where nothing is said twice; under 1/2 most of the text repeats itself. A text of fewer than
    three words has 1.0.

    Example: "so so so so so" has three equal runs: 1/3.
    """
    return [_share_new(completion_text(completion).split()) for completion in completions]


def _is_consistent(text: str) -> float | None:
    answer, reasoning = tagged_answer(text), "".join(REASONING.findall(text)[-1:])
    boxed = BOXED.findall(reasoning)
    reached = boxed[-1] if boxed else last_number(reasoning)
    if answer is None or reached is None:
        return None
    same = quick_match(reached, answer)
    return None if same is None else float(same)


def _share_new(words: Sequence[str]) -> float:
    runs = [tuple(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


CHECKS: dict[str, RewardFunction] = {"consistency": consistency, "variety": variety}
NEEDS_TAGS = ("consistency",)
