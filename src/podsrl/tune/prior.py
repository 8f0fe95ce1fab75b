"""What `podsrl plan` predicted of n and m, for a search that begins with nothing measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podsrl.runs.folder import read_json

Pair = tuple[int, int]


@dataclass(frozen=True)
class Prior:
    """How many times as fast as GRPO of the recipe's m each predicted pair (n, m) is."""

    time_ratios: dict[Pair, float]

    def log_ratio(self, num_rollouts: int, num_kept: int) -> float:
        """Return the log of the predicted time ratio, between predicted pairs their mean.

        Weights are 1 / d^2 over the three nearest pairs, d the distance in (log2 n, log2 m). A
        prediction for GRPO says little of PODS at nearly the same n, so that pairs with n = m
        speak for n = m, and the others for n > m, as long as there are any.

        Example: predicted 2 at (16, 4) and 1/2 at (64, 4) give 0 at (32, 4).
        """
        selects = num_rollouts > num_kept
        same = {pair: r for pair, r in self.time_ratios.items() if (pair[0] > pair[1]) == selects}
        ratios = same or self.time_ratios

        def distance(pair: Pair) -> float:
            return math.hypot(math.log2(pair[0] / num_rollouts), math.log2(pair[1] / num_kept))

        near = sorted(ratios, key=distance)[:3]
        if distance(near[0]) == 0:
            return math.log(ratios[near[0]])
        weights = [1 / distance(pair) ** 2 for pair in near]
        logs = [math.log(ratios[pair]) for pair in near]
        return sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)


def read_prior(path: Path) -> Prior:
    """Return the prediction in a plan.json.

    Raises `ValueError` for a file that is none, and for a plan without a pilot, which predicts
    seconds alone.
    """
    if not path.is_file():
        raise ValueError(f"plan {path} does not exist: give the plan.json that podsrl plan wrote")
    content: Any = read_json(path)
    gains = content.get("gains") if isinstance(content, Mapping) else None
    if not gains:
        raise ValueError(
            f"plan {path} predicts no arm: make it anew with podsrl plan, and without --pilot 0"
        )
    found = {
        (gain["num_rollouts"], gain["num_kept"]): gain["time_ratio"][0]
        for gain in gains
        if gain["time_ratio"][0]
    }
    if not found:
        raise ValueError(f"plan {path} found no arm that learns: see the notes in it")
    return Prior(found)
