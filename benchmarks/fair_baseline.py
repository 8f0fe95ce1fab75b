"""PODS and GRPO of several group sizes on small policies, at equal cost: who gets there first.

    python benchmarks/fair_baseline.py [--output benchmarks/fair_baseline.json]

Softmax policies of four tokens out of five, all from one matrix, so that prompts share what they
learn; 0/1 rewards; every arm samples 64 rollouts a step, over as many prompts as its n allows. Cost
of a step: 1 per rollout sampled and 2.4 per rollout trained on, all kept ones ("paid") or those of
groups that are not dead ("free"). Adam; each arm at the learning rate at which the first half of
the seeds is fastest, judged on the second half. Some minutes on one core.

Shape letters: R replicas (learning rates x seeds), S seeds, X prompts, B prompts of a step, T
tokens, V words, D features, N sampled, M kept.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from podsrl.core.advantage import grpo
from podsrl.core.rules import max_variance

NUM_TOKENS, NUM_WORDS, NUM_FEATURES = 4, 5, 12
NUM_TRAIN, NUM_TEST, NUM_SEEDS = 256, 128, 32
ROLLOUTS_PER_STEP, COST_RATIO = 64, 2.4
LEARNING_RATES = (0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
ARMS = ((4, 4), (8, 8), (16, 16), (64, 64), (8, 4), (16, 4), (32, 8), (64, 16))
# Mean success rate at the start, the one to reach, and the cost at which an arm gives up.
SETTINGS = ((0.05, 0.3, 60_000),)
NUM_RESAMPLED = 400


def success(weights_RTVD: Tensor, features_RXD: Tensor, target_RXT: Tensor) -> Tensor:
    """Mean probability of the right answer over prompts, exact, (R,)."""
    logits = torch.einsum("rtvd,rxd->rxtv", weights_RTVD, features_RXD)
    right = logits.log_softmax(-1).gather(-1, target_RXT[..., None]).squeeze(-1)
    return right.sum(-1).exp().mean(-1)


def draw_tasks(mean_rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets and start weights per seed, so that the mean success rate is as given."""
    generator = torch.Generator().manual_seed(0)
    num_prompts = NUM_TRAIN + NUM_TEST
    shape = (NUM_SEEDS, NUM_TOKENS, NUM_WORDS, NUM_FEATURES)
    features = torch.randn(NUM_SEEDS, num_prompts, NUM_FEATURES, generator=generator)
    features /= math.sqrt(NUM_FEATURES)
    teacher = torch.randn(shape, generator=generator)
    target = torch.einsum("stvd,sxd->sxtv", teacher, features).argmax(-1)
    noise = 1.5 * torch.randn(shape, generator=generator)
    low, high = torch.zeros(NUM_SEEDS), torch.full((NUM_SEEDS,), 20.0)
    for _ in range(40):
        middle = (low + high) / 2
        start = middle[:, None, None, None] * teacher + noise
        is_low = success(start, features[:, NUM_TRAIN:], target[:, NUM_TRAIN:]) < mean_rate
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return features, target, start


def train(n: int, m: int, mean_rate: float, budget: float) -> tuple[Tensor, Tensor, Tensor]:
    """Held-out success, paid and free cost, each (evaluations, learning rates, seeds)."""
    num_prompts = ROLLOUTS_PER_STEP // n
    features, target, weights = draw_tasks(mean_rate)
    repeats = len(LEARNING_RATES)
    features, target = features.repeat(repeats, 1, 1), target.repeat(repeats, 1, 1)
    weights = weights.repeat(repeats, 1, 1, 1)
    rates = torch.tensor(LEARNING_RATES).repeat_interleave(NUM_SEEDS)[:, None, None, None]
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(1)
    paid, free = torch.zeros(len(weights)), torch.zeros(len(weights))
    curve, step = [], 0
    while float(free.min()) < budget:
        step += 1
        x = torch.randint(NUM_TRAIN, (NUM_SEEDS, num_prompts, 1), generator=generator)
        x = x.repeat(repeats, 1, 1)
        gradient, num_alive = update(
            weights,
            features.gather(1, x.expand(-1, -1, NUM_FEATURES)),
            target.gather(1, x.expand(-1, -1, NUM_TOKENS)),
            n,
            m,
            seed=step,
            generator=generator,
        )
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        scale = (second / (1 - 0.99**step)).sqrt() + 1e-8
        weights = weights + rates * first / (1 - 0.9**step) / scale
        paid += ROLLOUTS_PER_STEP + COST_RATIO * m * num_prompts
        free += ROLLOUTS_PER_STEP + COST_RATIO * m * num_alive
        if step % 5 == 0:
            rate = success(weights, features[:, NUM_TRAIN:], target[:, NUM_TRAIN:])
            curve.append([x.view(repeats, NUM_SEEDS).clone() for x in (rate, paid, free)])
    rate, paid, free = (torch.stack(values) for values in zip(*curve, strict=True))
    return rate, paid, free


def update(
    weights_RTVD: Tensor,
    features_RBD: Tensor,
    target_RBT: Tensor,
    n: int,
    m: int,
    *,
    seed: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The mean of A grad log pi over kept rollouts, and each replica's groups that are not dead."""
    num_replicas, num_prompts, _ = features_RBD.shape
    chances = torch.einsum("rtvd,rbd->rbtv", weights_RTVD, features_RBD).softmax(-1)
    words = torch.multinomial(chances.reshape(-1, NUM_WORDS), n, True, generator=generator)
    words_RBTN = words.view(num_replicas, num_prompts, NUM_TOKENS, n)
    rewards_PN = (words_RBTN == target_RBT[..., None]).all(2).float().flatten(0, 1)
    kept_PM = max_variance(rewards_PN, m, seed=seed)
    kept_rewards_PM = rewards_PN.gather(1, kept_PM)
    advantage_PM = grpo(kept_rewards_PM, torch.ones_like(kept_PM, dtype=torch.bool))
    is_alive_P = kept_rewards_PM.amax(1) > kept_rewards_PM.amin(1)
    kept_words_PTM = words_RBTN.flatten(0, 1).gather(2, kept_PM[:, None].expand(-1, NUM_TOKENS, -1))
    # Advantages of a group add up to 0, so of grad = (one-hot - p) features the p falls out.
    sums_PTV = torch.zeros(len(kept_PM), NUM_TOKENS, NUM_WORDS)
    sums_PTV.scatter_add_(2, kept_words_PTM, advantage_PM[:, None].repeat(1, NUM_TOKENS, 1))
    sums_RBTV = sums_PTV.unflatten(0, (num_replicas, num_prompts)) / (m * num_prompts)
    gradient = torch.einsum("rbtv,rbd->rtvd", sums_RBTV, features_RBD)
    return gradient, is_alive_P.view(num_replicas, num_prompts).sum(1).float()


def cost_to(rates: Tensor, costs: Tensor, threshold: float) -> float:
    """Cost at which the mean over seeds first reaches the threshold; inf if it does not."""
    rate, cost = rates.mean(1), costs.mean(1)
    above = (rate >= threshold).nonzero().flatten().tolist()
    if not above:
        return math.inf
    i = above[0]
    if i == 0:
        return float(cost[0])
    share = (threshold - rate[i - 1]) / (rate[i] - rate[i - 1])
    return float(cost[i - 1] + share * (cost[i] - cost[i - 1]))


def compare(mean_rate: float, threshold: float, budget: float) -> list[dict[str, Any]]:
    """Each arm's cost to the threshold, as times as fast as GRPO 16/16 and as the best GRPO."""
    curves = {pair: train(*pair, mean_rate, budget) for pair in ARMS}
    half, rows = NUM_SEEDS // 2, []
    generator = torch.Generator().manual_seed(2)
    drawn = half + torch.randint(half, (NUM_RESAMPLED, half), generator=generator)
    drawn = torch.cat([torch.arange(half, NUM_SEEDS)[None], drawn])
    for kind in ("paid", "free"):
        costs: dict[tuple[int, int], Tensor] = {}
        chosen: dict[tuple[int, int], float] = {}
        for pair, (rate, paid, free) in curves.items():
            cost = paid if kind == "paid" else free
            tuning = [
                cost_to(rate[:, i, :half], cost[:, i, :half], threshold)
                for i in range(len(LEARNING_RATES))
            ]
            best = tuning.index(min(tuning))
            chosen[pair] = LEARNING_RATES[best]
            costs[pair] = torch.tensor(
                [cost_to(rate[:, best, s], cost[:, best, s], threshold) for s in drawn]
            )
        grpo_best = min((p for p in ARMS if p[0] == p[1]), key=lambda p: float(costs[p][0]))
        for pair in ARMS:
            row = {"start": mean_rate, "reached": threshold, "dead_rows": kind}
            row |= {"arm": f"{pair[0]}/{pair[1]}", "learning_rate": chosen[pair]}
            row["best_grpo"] = f"{grpo_best[0]}/{grpo_best[1]}"
            row["times_as_fast_as_16/16"] = interval(costs[16, 16] / costs[pair])
            row["times_as_fast_as_best_grpo"] = interval(costs[grpo_best] / costs[pair])
            rows.append(row)
    return rows


def interval(ratios: Tensor) -> list[float]:
    """The ratio, and its 95 % bootstrap interval over seeds."""
    ends = ratios[1:].nan_to_num(nan=1.0, posinf=1e6).quantile(torch.tensor([0.025, 0.975]))
    return [round(float(x), 3) for x in (ratios[0], *ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        rows += compare(*setting)
        lines = ",\n ".join(json.dumps(row) for row in rows)
        options.output.write_text(f"[\n {lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
