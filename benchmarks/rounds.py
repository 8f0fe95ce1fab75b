"""Rollouts that sampling in rounds takes, and the contrast that it keeps, beside n at once.

    python benchmarks/rounds.py

Prints what benchmarks/theory.py writes into theory.json under "rounds".

Right and wrong answers, m = 16 kept, success rates logit-normal with mean .08 and median .02 (the
"hard" task of docs/theory.md). Nothing is simulated: over the numbers of right answers after each
round the probabilities are summed, and what is decided of a group is asked of
`podsrl.core.rounds.decide`. Contrast is k1 k0 / (k1 + k0) of the kept; a live group keeps both
kinds. `fixed_n_of_equal_...` is how many rollouts at once keep as much, between two n by a straight
line. `best` is what no rule can better that also decides every 8 rollouts and gives all groups one
price per rollout, knowing how success rates are distributed: backward induction over (sampled,
right).
"""

import itertools
import json
import math
from typing import Any

import torch
from torch import Tensor

from podsrl.core.logit_normal import rates, weights
from podsrl.core.rounds import contrast, decide, first_round
from podsrl.core.theory import binomial

NUM_KEPT, ROUND = 16, 8
MEAN, MEDIAN = 0.08, 0.02
FIXED = range(16, 137, 8)
# num_rollouts, enough, give_up: the default thresholds first.
SETTINGS = ((64, 4, 32), (64, 8, 32), (64, 4, 64), (96, 4, 32), (96, 6, 32), (128, 5, 32))
PRICES = (0.02, 0.015, 0.0125, 0.01)
LARGEST = 128


def hard() -> tuple[Tensor, float]:
    """Weights of the success rates, and the spread of the logit that gives the mean."""
    centre = torch.tensor(math.log(MEDIAN / (1 - MEDIAN)))
    low, high = 0.1, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        is_low = float(weights(centre, torch.tensor(middle)) @ rates()) < MEAN
        low, high = (middle, high) if is_low else (low, middle)
    return weights(centre, torch.tensor(low)), low


def groups(size: int) -> Tensor:
    """One group for each number of right ones, 0 to `size`, of so many rollouts."""
    return (torch.arange(size) < torch.arange(size + 1).unsqueeze(1)).double()


def contrasts(size: int) -> Tensor:
    return contrast(groups(size), NUM_KEPT)


class Tally:
    """Means over groups, each counted with its probability when its sampling ends."""

    def __init__(self, weights_Q: Tensor) -> None:
        self.weights_Q = weights_Q
        self.sums = dict.fromkeys(("mean_n", "contrast", "frac_live", "root"), 0.0)

    def add(self, size: int, chance_KQ: Tensor) -> None:
        chance_K = chance_KQ @ self.weights_Q
        contrast_K = contrasts(size)
        for name, value_K in (
            ("mean_n", torch.full_like(contrast_K, size)),
            ("contrast", contrast_K),
            ("frac_live", (contrast_K > 0).double()),
            ("root", contrast_K.sqrt()),
        ):
            self.sums[name] += float(chance_K @ value_K)

    def result(self) -> dict[str, float]:
        found = dict(self.sums)
        root = found.pop("root")
        found["contrast_of_live_groups"] = found["contrast"] / found["frac_live"]
        found["information"] = root**2 / found["frac_live"]
        return {name: round(value, 4) for name, value in found.items()}


def fixed(size: int, weights_Q: Tensor) -> dict[str, float]:
    tally = Tally(weights_Q)
    tally.add(size, binomial(size, rates()).T)
    return tally.result()


def walk(num_rollouts: int, weights_Q: Tensor, goes_on: Any) -> dict[str, float]:
    """Sum over rounds; goes_on: of a size, which numbers of right ones are sampled again."""
    tally, size = Tally(weights_Q), first_round(NUM_KEPT, ROUND)
    chance_KQ = binomial(size, rates()).T
    while True:
        again_K1 = (goes_on(size) if size < num_rollouts else torch.zeros(size + 1)).unsqueeze(1)
        tally.add(size, chance_KQ * (1 - again_K1))
        if not bool(again_K1.any()):
            return tally.result()
        more = min(ROUND, num_rollouts - size)
        fresh_JQ = binomial(more, rates()).T
        new_KQ = torch.zeros(size + more + 1, fresh_JQ.shape[1], dtype=torch.float64)
        for extra in range(more + 1):
            new_KQ[extra : extra + size + 1] += chance_KQ * again_K1 * fresh_JQ[extra]
        chance_KQ, size = new_KQ, size + more


def in_rounds(num_rollouts: int, enough: int, give_up: int, weights_Q: Tensor) -> dict[str, Any]:
    def goes_on(size: int) -> Tensor:
        settled_K, given_up_K = decide(groups(size), NUM_KEPT, enough=enough, give_up=give_up)
        return (~(settled_K | given_up_K)).double()

    settings = {"num_rollouts": num_rollouts, "enough": enough, "give_up": give_up}
    return {**settings, **walk(num_rollouts, weights_Q, goes_on)}


def best(price: float, weights_Q: Tensor) -> dict[str, float]:
    """The most contrast less `price` a rollout, up to `LARGEST` rollouts."""
    log_p, log_q = rates().log(), (-rates()).log1p()
    fresh_JQ = binomial(ROUND, rates()).T
    policy: dict[int, Tensor] = {}
    value_K = contrasts(LARGEST) - price * LARGEST
    for size in range(LARGEST - ROUND, NUM_KEPT - 1, -ROUND):
        right_K1 = torch.arange(size + 1, dtype=torch.float64).unsqueeze(1)
        logs_KQ = weights_Q.log() + right_K1 * log_p + (size - right_K1) * log_q
        predicted_KJ = logs_KQ.softmax(1) @ fresh_JQ.T
        ahead_K = (predicted_KJ * value_K.unfold(0, ROUND + 1, 1)).sum(1)
        stop_K = contrasts(size) - price * size
        policy[size], value_K = (ahead_K > stop_K).double(), torch.maximum(ahead_K, stop_K)
    return {"price": price, **walk(LARGEST, weights_Q, policy.__getitem__)}


def equal_fixed(name: str, value: float, table: list[dict[str, float]]) -> float | None:
    """How many rollouts at once give `value`, interpolated; None beyond the table."""
    for less, more in itertools.pairwise(table):
        if less[name] <= value <= more[name]:
            share = (value - less[name]) / (more[name] - less[name])
            return round(less["mean_n"] + share * (more["mean_n"] - less["mean_n"]), 1)
    return None


def compared(found: dict[str, Any], table: list[dict[str, float]]) -> dict[str, Any]:
    """The same with the fixed n of equal contrast, over all and over live groups, and of H."""
    for name in ("contrast", "contrast_of_live_groups", "information"):
        equal = equal_fixed(name, found[name], table)
        found[f"fixed_n_of_equal_{name}"] = equal
        found[f"share_of_it_{name}"] = equal and round(found["mean_n"] / equal, 3)
    return found


def count_rounds() -> dict[str, Any]:
    """All figures of docs/rounds.md."""
    weights_Q, spread = hard()
    table = [fixed(size, weights_Q) for size in FIXED]
    return {
        "num_kept": NUM_KEPT,
        "sampling_rounds": ROUND,
        "success_rate": {"mean": MEAN, "median": MEDIAN, "spread_of_logit": round(spread, 4)},
        "fixed": table,
        "rounds": [compared(in_rounds(*each, weights_Q), table) for each in SETTINGS],
        "best": [compared(best(price, weights_Q), table) for price in PRICES],
    }


if __name__ == "__main__":
    print(json.dumps(count_rounds(), indent=1))
