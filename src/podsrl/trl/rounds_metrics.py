"""What sampling in rounds took, of all prompts and by how hard they are.

Shape letters: P prompts of all processes, S rollouts of the first round, F reward functions.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

DIFFICULTIES = ("hard", "middle", "easy")
MIDDLE = (0.25, 0.75)
"""Success shares of prompts that are neither hard nor easy, both ends among them."""


def difficulties(rewards_PSF: Tensor) -> list[str | None]:
    """Return how hard each prompt is by its first round: hard, middle, easy; None without reward.

    By the share of the scored rollouts that are successes, those to which the first reward function
    gives more than 0: below 1/4 is hard, above 3/4 easy. Of the first round alone, because how many
    more rollouts a prompt has is decided by its rewards.

    Example: of 16 rollouts 3 are right: hard; 4: middle; 13: easy.
    """
    rewards_PS = rewards_PSF[..., 0]
    is_scored_PS = ~rewards_PS.isnan()
    shares = ((rewards_PS > 0).sum(1) / is_scored_PS.sum(1)).tolist()
    return [_difficulty(share) for share in shares]


def _difficulty(share: float) -> str | None:
    if share < MIDDLE[0]:
        return "hard"
    if share > MIDDLE[1]:
        return "easy"
    return "middle" if share == share else None  # 0/0: nothing was scored


def count_by_difficulty(
    rewards_PSF: Tensor,
    sizes_P: Sequence[int],
    *,
    settled: Collection[int],
    given_up: Collection[int],
) -> Counter[str]:
    """Return of each difficulty how many groups there are, their rollouts, and how they ended.

    Args:
        rewards_PSF: of the first round.
        sizes_P: rollouts of each group in all rounds.
        settled, given_up: places of the groups that ended so.
    """
    counts: Counter[str] = Counter()
    for group, difficulty in enumerate(difficulties(rewards_PSF)):
        if difficulty is not None:
            counts[f"{difficulty}/groups"] += 1
            counts[f"{difficulty}/rollouts"] += sizes_P[group]
            counts[f"{difficulty}/settled"] += group in settled
            counts[f"{difficulty}/given_up"] += group in given_up
    return counts


def rounds_metrics(counts: Counter[str], like: Tensor) -> dict[str, Tensor]:
    """What the rounds of a batch took, by the names of docs/metrics.md, float64 as `like` lies."""
    numbers = {
        "pods/mean_num_rollouts": counts["rollouts"] / counts["groups"],
        "pods/num_sampling_rounds": counts["rounds"],
        "pods/frac_groups_settled": counts["settled"] / counts["groups"],
        "pods/frac_groups_given_up": counts["given_up"] / counts["groups"],
        "pods/frac_no_reward": counts["failed"] / counts["rollouts"],
    }
    for difficulty in DIFFICULTIES:
        num_groups = counts[f"{difficulty}/groups"]
        numbers[f"rounds/{difficulty}/frac_groups"] = num_groups / counts["groups"]
        if num_groups:  # of no group there is no mean
            for name, of in (
                ("mean_num_rollouts", "rollouts"),
                ("frac_settled", "settled"),
                ("frac_given_up", "given_up"),
            ):
                numbers[f"rounds/{difficulty}/{name}"] = counts[f"{difficulty}/{of}"] / num_groups
    return {
        name: torch.tensor(value, dtype=torch.float64, device=like.device)
        for name, value in numbers.items()
    }
