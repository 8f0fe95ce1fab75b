"""Three simulations: PODS and GRPO on small policies at equal cost and by steps, `podsrl tune`.

    python benchmarks/simulations.py [--parts fair_baseline,laws,tune] [--output FILE.json]

fair_baseline, some minutes on one core: softmax policies of four tokens out of five, all from one
matrix, so that prompts share what they learn; 0/1 rewards; every arm samples 64 rollouts a step,
over as many prompts as its n allows. Cost of a step: 1 per rollout sampled and 2.4 per rollout
trained on, all kept ones ("paid") or those of groups that are not dead ("free"). Adam; each arm at
the learning rate at which the first half of the seeds is fastest, judged on the second half.

laws, half a minute: the same policies, four prompts a step whatever n is. h of the gradients at the
start, what the formula makes of their signal and noise, and the steps of GRPO 16/16 that one step
was worth in training, at several learning rates, one for all arms.

tune, 25 minutes on one core, gone on with where it was broken off: surfaces of the mean accuracy
over the marks, from the formulas of docs/theory.md: how fast n and m learn at drawn success rates,
costs and rho, times how well a learning rate serves, times a pull to the reference. A score has the
noise of our own runs: of benchmarks/arms what is left of a run's mean accuracy over the marks when
the means of its arm and of its seed are taken out, since all trials of a search have one seed.
Searches of 24 trials by `podsrl.tune` and at random; then the best three on fresh noise, four seeds
each.

Shape letters: R replicas (learning rates x seeds), S seeds, X prompts, B prompts of a step, T
tokens, V words, D features, N sampled, M kept, A arms.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from podsrl.core import logit_normal, theory
from podsrl.core.advantage import grpo
from podsrl.core.rules import max_variance
from podsrl.intervals import mean_interval, share_interval
from podsrl.tune.prior import Prior
from podsrl.tune.space import Choices, Range, Space, Values
from podsrl.tune.suggest import Search, propose, recommend

NUM_TOKENS, NUM_WORDS, NUM_FEATURES = 4, 5, 12
NUM_TRAIN, NUM_TEST, NUM_SEEDS = 256, 128, 32
ROLLOUTS_PER_STEP, COST_RATIO = 64, 2.4
LEARNING_RATES = (0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
ARMS = ((4, 4), (8, 8), (16, 16), (64, 64), (8, 4), (16, 4), (32, 8), (64, 16))
# Mean success rate at the start, the one to reach, and the cost at which an arm gives up.
SETTINGS = ((0.05, 0.3, 60_000),)
NUM_RESAMPLED = 400

LAW_ARMS = ((16, 16), (32, 32), (64, 64), (32, 16), (64, 16))
LAW_RATES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
LAW_PROMPTS, LAW_STEPS, LAW_START, LAW_SHARE = 4, 60, 0.05, 0.95

RUNS = Path(__file__).parent / "arms" / "runs.jsonl"
NUM_TRIALS, NUM_CONFIRMED, NUM_CONFIRM_SEEDS = 24, 3, 4
CLOSE = 0.005
PAIRS = [(n, m) for n in (8, 12, 16, 24, 32, 48, 64, 96, 128) for m in (4, 8, 16, 32) if m <= n]
PLAN_ERROR = 0.25
SIZES = {
    "num_rollouts": Choices(tuple(dict.fromkeys(n for n, _ in PAIRS))),
    "num_generations": Choices(tuple(dict.fromkeys(m for _, m in PAIRS))),
}
SPACES = {
    "n, m": Space(dict(SIZES)),
    "n, m, learning rate": Space(
        SIZES | {"learning_rate": Range(low=1e-6, high=1e-4, is_log=True, is_whole=False)}
    ),
    "n, m, learning rate, beta": Space(
        SIZES
        | {
            "learning_rate": Range(low=1e-6, high=1e-4, is_log=True, is_whole=False),
            "beta": Choices((0.0, 0.01, 0.03, 0.1)),
        }
    ),
}


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
    optimizer, generator = Adam(weights, rates), torch.Generator().manual_seed(1)
    paid, free = torch.zeros(len(weights)), torch.zeros(len(weights))
    curve, step = [], 0
    while float(free.min()) < budget:
        step += 1
        gradient, num_alive = drawn_update(
            weights, features, target, n, m, num_prompts, step, generator
        )
        weights = optimizer.step(weights, gradient, step)
        paid += ROLLOUTS_PER_STEP + COST_RATIO * m * num_prompts
        free += ROLLOUTS_PER_STEP + COST_RATIO * m * num_alive
        if step % 5 == 0:
            rate = success(weights, features[:, NUM_TRAIN:], target[:, NUM_TRAIN:])
            curve.append([x.view(repeats, NUM_SEEDS).clone() for x in (rate, paid, free)])
    rate, paid, free = (torch.stack(values) for values in zip(*curve, strict=True))
    return rate, paid, free


class Adam:
    """Ascent with a rate for each replica; betas of .9 and .99."""

    def __init__(self, weights: Tensor, rates: Tensor) -> None:
        self.rates = rates
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, weights: Tensor, gradient: Tensor, number: int) -> Tensor:
        """The weights after step `number`, from 1."""
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.99 * self.second + 0.01 * gradient.square()
        scale = (self.second / (1 - 0.99**number)).sqrt() + 1e-8
        return weights + self.rates * self.first / (1 - 0.9**number) / scale


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


def laws() -> list[dict[str, Any]]:
    """Each arm's h over that of GRPO 16/16, by its gradients and by formula; and its steps."""
    features, target, weights = draw_tasks(LAW_START)
    train_features, train_target = features[:, :NUM_TRAIN], target[:, :NUM_TRAIN]
    rho, p = rho_and_rates(weights, train_features, train_target)
    h = {pair: h_of_gradients(weights, features, target, *pair) for pair in LAW_ARMS}
    curves = {pair: train_steps(*pair) for pair in LAW_ARMS}
    moments = {
        pair: theory.moments(*pair, p).mean(torch.ones_like(p) / len(p)) for pair in LAW_ARMS
    }
    base, rows = LAW_ARMS[0], []
    for pair in LAW_ARMS:
        steps = {}
        for i, rate in enumerate(LAW_RATES):
            start, end = LAW_START, float(curves[base][-1, i])
            goal = start + LAW_SHARE * (end - start)
            theirs, ours = (steps_to(curves[each][:, i], goal) for each in (base, pair))
            steps[f"{rate:g}"] = round(theirs / ours, 3)
        row = {"start": LAW_START, "arm": f"{pair[0]}/{pair[1]}", "rho": round(rho, 3)}
        row |= {"h_of_gradients": round(h[pair] / h[base], 3)}
        for name, tilt in (("h_by_formula", 0.0), ("h_with_tilt_1", 1.0)):
            ratio = theory.steps_ratio(moments[pair], moments[base], rho, tilt=tilt)
            row[name] = round(float(ratio), 3)
        rows.append(row | {"steps_ratio_by_learning_rate": steps})
    return rows


def rho_and_rates(
    weights_RTVD: Tensor, features_RXD: Tensor, target_RXT: Tensor
) -> tuple[float, Tensor]:
    """rho of a step, exact over the prompts, sigma^2 the mean of both kinds; their success rates.

    There is one right answer, so that right rollouts do not scatter: sigma_1 = 0.
    """
    chances = torch.einsum("rtvd,rxd->rxtv", weights_RTVD, features_RXD).softmax(-1)
    right = torch.nn.functional.one_hot(target_RXT, NUM_WORDS) - chances  # mean of g, right
    p = chances.gather(-1, target_RXT[..., None]).squeeze(-1).prod(-1)
    lengths = features_RXD.square().sum(-1)
    wrong = -(p / (1 - p))[..., None, None] * right  # as p of the one and 1 - p of the other are 0
    signal = (right - wrong).square().sum((-1, -2)) * lengths
    total = (chances * (1 - chances)).sum((-1, -2)) * lengths
    squared = [each.square().sum((-1, -2)) * lengths for each in (right, wrong)]
    noise = ((total - p * squared[0]) / (1 - p) - squared[1]) / 2
    sums = torch.einsum("rxtv,rxd->rtvd", right - wrong, features_RXD).square().sum((1, 2, 3))
    num = signal.shape[1]
    common = ((sums - signal.sum(1)) / (num * (num - 1))).mean()
    rho = (signal.mean() + (LAW_PROMPTS - 1) * common) / noise.mean()
    return float(rho), p.flatten().double()


def drawn_update(
    weights: Tensor,
    features: Tensor,
    target: Tensor,
    n: int,
    m: int,
    num_prompts: int,
    seed: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`update` on drawn prompts, the same for all learning rates."""
    x = torch.randint(NUM_TRAIN, (NUM_SEEDS, num_prompts, 1), generator=generator)
    x = x.repeat(len(weights) // NUM_SEEDS, 1, 1)
    drawn = [
        of.gather(1, x.expand(-1, -1, size))
        for of, size in ((features, NUM_FEATURES), (target, NUM_TOKENS))
    ]
    return update(weights, *drawn, n, m, seed=seed, generator=generator)


def h_of_gradients(weights: Tensor, features: Tensor, target: Tensor, n: int, m: int) -> float:
    """Squared mean of 60 steps' gradients at the start, without bias, over their mean square."""
    generator = torch.Generator().manual_seed(3)
    total, squares = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(LAW_STEPS):
        gradient, _ = drawn_update(weights, features, target, n, m, LAW_PROMPTS, step, generator)
        total, squares = total + gradient, squares + gradient.square()
    pairs = (total.square() - squares).sum((1, 2, 3)) / (LAW_STEPS * (LAW_STEPS - 1))
    return float(pairs.mean() / (squares.sum((1, 2, 3)) / LAW_STEPS).mean())


def train_steps(n: int, m: int) -> Tensor:
    """Held-out success after every fifth of 60 steps, mean over seeds, (marks, learning rates)."""
    features, target, weights = draw_tasks(LAW_START)
    repeats = len(LAW_RATES)
    features, target = features.repeat(repeats, 1, 1), target.repeat(repeats, 1, 1)
    weights = weights.repeat(repeats, 1, 1, 1)
    rates = torch.tensor(LAW_RATES).repeat_interleave(NUM_SEEDS)[:, None, None, None]
    optimizer = Adam(weights, rates)
    generator, curve = torch.Generator().manual_seed(1), []
    for step in range(1, LAW_STEPS + 1):
        gradient, _ = drawn_update(weights, features, target, n, m, LAW_PROMPTS, step, generator)
        weights = optimizer.step(weights, gradient, step)
        if step % 5 == 0:
            rate = success(weights, features[:, NUM_TRAIN:], target[:, NUM_TRAIN:])
            curve.append(rate.view(repeats, NUM_SEEDS).mean(1))
    return torch.stack(curve)


def steps_to(curve: Tensor, goal: float) -> float:
    """Steps after which the mean first reaches the goal, along straight lines between marks."""
    before = LAW_START
    for mark, value in enumerate(curve.tolist()):
        if value >= goal:
            return 5 * (mark + (goal - before) / (value - before))
        before = value
    return math.inf


@dataclass(frozen=True)
class Surface:
    """A drawn world: what a setting would score without noise."""

    speed: dict[tuple[int, int], float]
    """Learning per second of each (n, m), the fastest 1."""
    gain: float
    rate: float
    """How far a run gets in its time: 1 - exp(-rate) of the gain, at best."""
    best_log_rate: float
    widths: tuple[float, float]
    """Decades below and above the best learning rate by which it serves exp(-1/2) as well."""
    shift: float
    """Decades by which the best learning rate grows with ten times the m."""
    pull: float

    def score(self, values: Values) -> float:
        """Mean accuracy over nine marks, the learning rate and beta at their best if not given."""
        pair = values["num_rollouts"], values["num_generations"]
        served = 1.0
        if "learning_rate" in values:
            best = self.best_log_rate + self.shift * math.log10(pair[1] / 16)
            off = math.log10(values["learning_rate"]) - best
            served = math.exp(-((off / self.widths[off > 0]) ** 2) / 2)
        pulled = math.exp(-self.pull * values.get("beta", 0.0))
        at = np.arange(1, 10) / 9
        reached = 1 - np.exp(-self.rate * self.speed[pair] * served * pulled * at)
        return 0.25 + self.gain * float(reached.mean())


def draw_surface(rng: np.random.Generator) -> Surface:
    """Success rates, costs and rho as wide as docs/theory.md has them; our runs' gains."""
    mean, spread = (torch.tensor(x) for x in (rng.uniform(-3.5, 0), rng.uniform(0.5, 2.5)))
    weights, p = logit_normal.weights(mean, spread), logit_normal.rates()
    rho, update, fixed = (10 ** rng.uniform(*ends) for ends in ((-1, 0.5), (0, 0.8), (0, 1.7)))
    free = bool(rng.random() < 0.5)
    moments = {pair: theory.moments(*pair, p).mean(weights) for pair in PAIRS}
    base = moments[16, 16]
    speed = {
        pair: float(
            theory.steps_ratio(of, base, rho)
            / theory.step_seconds(of, fixed, 1.0, update, dead_rows_free=free)
        )
        for pair, of in moments.items()
    }
    return Surface(
        speed={pair: value / max(speed.values()) for pair, value in speed.items()},
        gain=rng.uniform(0.15, 0.35),
        rate=rng.uniform(0.6, 1.6),
        best_log_rate=rng.uniform(-5.6, -4.4),
        widths=(rng.uniform(0.35, 0.7), rng.uniform(0.2, 0.45)),
        shift=rng.uniform(0, 0.5),
        pull=rng.uniform(1, 6),
    )


def noise_of_our_runs() -> dict[str, float]:
    """Standard deviations of a run's mean accuracy over the marks: seed's, and what is left."""
    rows = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["seed"]] = float(np.mean(row["curve"]["accuracy"][1:]))
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    scores_AS = np.array([[by_seed[seed] for seed in seeds] for by_seed in found.values()])
    num_arms, num_seeds = scores_AS.shape
    rest_AS = scores_AS - scores_AS.mean(0) - scores_AS.mean(1, keepdims=True) + scores_AS.mean()
    rest = float((rest_AS**2).sum()) / ((num_arms - 1) * (num_seeds - 1))
    between = float(scores_AS.mean(0).var(ddof=1)) - rest / num_arms
    return {
        "arms": num_arms,
        "seeds": num_seeds,
        "rest": round(rest**0.5, 5),
        "seed": round(max(0.0, between) ** 0.5, 5),
    }


def search(
    space: Space, surface: Surface, method: str, noise: float, seed: int
) -> dict[str, float]:
    """Points that a search of 24 trials stays below the best of the space, by what is taken."""
    rng = np.random.default_rng([seed, 7])
    predicted = {
        pair: value * math.exp(PLAN_ERROR * rng.normal()) for pair, value in surface.speed.items()
    }

    def sizes(values: Values) -> tuple[int, int]:
        return values["num_rollouts"], values["num_generations"]

    look = Search(
        space,
        lambda values: sizes(values) in surface.speed,
        sizes,
        Prior(predicted) if method == "tune with a plan" else None,
    )
    tried: list[Values] = []
    scores: list[float] = []
    for number in range(NUM_TRIALS):
        known = [] if method == "random" else scores
        proposal = propose(look, tried, known, seed=1000 * seed + number)
        assert proposal is not None  # 33 pairs are more than 24 trials
        tried.append(proposal.values)
        scores.append(surface.score(proposal.values) + noise * float(rng.normal()))
    true = np.array([surface.score(values) for values in tried])
    order = list(np.argsort(-np.array(scores)))
    if method != "random":
        order = recommend(look, tried, scores, seed=seed)
    first = order[:NUM_CONFIRMED]
    again = true[first] + noise / NUM_CONFIRM_SEEDS**0.5 * rng.normal(size=len(first))
    best = best_of(space, surface)
    taken = {
        "recommended": true[order[0]],
        "confirmed": true[first[int(again.argmax())]],
        "tried": true.max(),
    }
    return {name: float(best - value) for name, value in taken.items()} | {
        "promised": float(max(scores) - true[int(np.argmax(scores))])
    }


def best_of(space: Space, surface: Surface) -> float:
    """The largest score in the space, on a grid of 400 learning rates; beta is best at its least.

    Example: a space of n and m alone has its fastest pair.
    """
    rates = (
        [{}]
        if "learning_rate" not in space.dimensions
        else [{"learning_rate": rate} for rate in np.logspace(-6, -4, 400)]
    )
    pairs = [{"num_rollouts": n, "num_generations": m} for n, m in PAIRS]
    return max(surface.score(pair | rate) for pair in pairs for rate in rates)


def tune(num_repeats: int, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each way of searching finds in each space, and the noise that it had to live with.

    Given after each of them, with those before. known: what was given earlier, of which rows of as
    many repeats are not made again.
    """
    noise = noise_of_our_runs()
    made = {(row["space"], row["method"], row["repeats"]): row for row in known.get("searches", ())}
    rows: list[dict[str, Any]] = []
    for name, space in SPACES.items():
        for method in ("random", "tune", "tune with a plan"):
            row = made.get((name, method, num_repeats))
            if row is None or known.get("noise") != noise:
                below = [
                    search(
                        space, draw_surface(np.random.default_rng([k])), method, noise["rest"], k
                    )
                    for k in range(num_repeats)
                ]
                row = {"space": name, "method": method, **found_by(below)}
            rows.append(row)
            print(json.dumps(row), flush=True)
            yield {"noise": noise, "trials": NUM_TRIALS, "searches": rows}


def found_by(below: list[dict[str, float]]) -> dict[str, Any]:
    """Shares of repeats within half a point of the best, and points below it, with intervals."""
    row: dict[str, Any] = {"repeats": len(below)}
    for taken in ("recommended", "confirmed", "tried"):
        points = [100 * each[taken] for each in below]
        close = share_interval([float(x <= 100 * CLOSE + 1e-9) for x in points])
        row[f"{taken}_points_below"] = bounds(mean_interval(points))
        row[f"{taken}_within_half_a_point"] = bounds(close)
    promised = [100 * each["promised"] for each in below]
    return row | {"best_score_above_its_truth": bounds(mean_interval(promised))}


def bounds(interval: Any) -> list[float]:
    """Value, low and high, rounded."""
    return [round(interval[key], 3) for key in ("value", "low", "high")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="fair_baseline,laws,tune")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    if "fair_baseline" in options.parts.split(","):
        found["fair_baseline"] = [row for setting in SETTINGS for row in compare(*setting)]
    if "laws" in options.parts.split(","):
        found["laws"] = laws()
    if "tune" in options.parts.split(","):
        for tuned in tune(options.repeats, found.get("tune", {})):
            options.output.write_text(in_lines(found | {"tune": tuned}), encoding="utf-8")
        found["tune"] = tuned
    options.output.write_text(in_lines(found), encoding="utf-8")


def in_lines(found: dict[str, Any]) -> str:
    """JSON with a line for each row of a list."""
    text = json.dumps(found)
    return text.replace("[{", "[\n {").replace("}, {", "},\n {").replace("}]", "}\n]") + "\n"


if __name__ == "__main__":
    main()
