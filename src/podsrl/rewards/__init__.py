"""Verifiable rewards: is the answer right, and does the text keep the format."""

from podsrl.rewards.answers import has_format, last_number, tag_share, tagged_answer
from podsrl.rewards.functions import (
    correctness_reward,
    format_reward,
    match_answers,
    tag_count_reward,
    unless_failed,
)
from podsrl.rewards.grader import Grader, shared_grader
from podsrl.rewards.graders import GRADERS

__all__ = [
    "GRADERS",
    "Grader",
    "correctness_reward",
    "format_reward",
    "has_format",
    "last_number",
    "match_answers",
    "shared_grader",
    "tag_count_reward",
    "tag_share",
    "tagged_answer",
    "unless_failed",
]
