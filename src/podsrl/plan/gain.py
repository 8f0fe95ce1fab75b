"""How much faster each arm would be than GRPO, predicted from a pilot and the seconds of a step.

Shape letters: P prompts, R rollouts sampled of each in the pilot, G ways in which success rates may
be distributed, the best first, Q success rates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from podsrl.core import logit_normal, theory
from podsrl.core.select import as_mask, select
from podsrl.plan.fit import SHARE_OF_MEMORY, Costs
from podsrl.plan.noise import Noise
from podsrl.plan.pilot import Pilot

NUM_KEPT = (4, 8, 16, 32)
ROLLOUTS_PER_KEPT = (1, 2, 3, 4, 6, 8)
LARGEST_GRPO = 64
EVERY_RHO = (0.0, 0.1, 0.3, 1.0, 3.0, math.inf)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
NUM_DRAWS, NUM_RESAMPLED = 8, 400

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Rates:
    """Success rates, or graded rewards, of the prompts, and how sure they are."""

    moments: Callable[[int, int], theory.Moments]
    """n and m -> moments over prompts, (G,)."""
    interval: Callable[[Tensor], Interval]
    """A figure for each of the G -> its value, low and high."""
    described: dict[str, Any]


@dataclass(frozen=True)
class Gain:
    """One arm against the baseline, GRPO with the recipe's m; intervals are 95 %."""

    arm: str
    num_rollouts: int
    num_kept: int
    frac_dead: Interval
    steps_ratio: Interval
    """Steps of the baseline that one of this arm is worth."""
    seconds: float
    time_ratio: Interval


@dataclass(frozen=True)
class Advice:
    """All arms, the one whose gain is largest at least, and what to say of PODS."""

    gains: list[Gain]
    best: Gain
    pays: bool
    verdict: str


def success_rates(pilot: Pilot) -> Rates:
    """Return what a pilot says of the prompts: a fitted logit-normal, or measured variances.

    0/1 rewards: `logit_normal.fit`, with profile-likelihood intervals. Graded ones: n rollouts are
    drawn anew, with replacement, from the R of each prompt, eight times; intervals are a bootstrap
    over prompts. Drawing from R makes dead groups too frequent where the rarest rewards have not
    been seen, and more so the larger n.
    """
    return _fitted(pilot) if pilot.is_binary else _graded(pilot)


def _fitted(pilot: Pilot) -> Rates:
    p = logit_normal.rates()
    found = logit_normal.fit(pilot.num_right_P, pilot.rewards_PR.shape[1])
    weights_GQ = found.weights()
    below_GQ = weights_GQ.cumsum(1)
    quantiles = {
        f"{q:g}": found.interval(p[(below_GQ < q).sum(1).clamp(max=len(p) - 1)]) for q in QUANTILES
    }
    described = {
        "rewards": "two values",
        "mean_logit": found.interval(found.likely_G2[:, 0]),
        "spread_of_logit": found.interval(found.likely_G2[:, 1]),
        "mean_rate": found.interval(weights_GQ @ p),
        "rate_quantiles": quantiles,
    }
    return Rates(lambda n, m: theory.moments(n, m, p).mean(weights_GQ), found.interval, described)


def _graded(pilot: Pilot) -> Rates:
    rewards_PR = pilot.rewards_PR
    num_prompts = len(rewards_PR)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_prompts, (NUM_RESAMPLED, num_prompts), generator=generator)
    counts_GP = torch.zeros(NUM_RESAMPLED, num_prompts, dtype=torch.float64)
    counts_GP.scatter_add_(1, drawn, torch.ones_like(counts_GP))
    weights_GP = torch.cat([torch.ones(1, num_prompts), counts_GP]).double() / num_prompts

    def moments(num_rollouts: int, num_kept: int) -> theory.Moments:
        shape = (num_prompts * NUM_DRAWS, num_rollouts)
        # The same draws for every arm: what differs between arms is then the arm.
        places = torch.randint(
            rewards_PR.shape[1], shape, generator=torch.Generator().manual_seed(1)
        )
        sampled = rewards_PR.repeat_interleave(NUM_DRAWS, dim=0).gather(1, places)
        kept = as_mask(select(sampled, num_kept), num_rollouts)
        return theory.measured_moments(sampled, kept).mean(
            weights_GP.repeat_interleave(NUM_DRAWS, dim=1) / NUM_DRAWS
        )

    def interval(values_G: Tensor) -> Interval:
        finite = values_G[1:][values_G[1:].isfinite()]
        if not len(finite):
            return math.nan, math.nan, math.nan
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = finite.double().quantile(ends).tolist()
        return float(values_G[0]), low, high

    described = {
        "rewards": "graded",
        "mean_reward": interval(weights_GP @ rewards_PR.mean(1)),
        "deviation_within_prompts": interval(weights_GP @ rewards_PR.std(1)),
    }
    return Rates(moments, interval, described)


def candidates(num_kept: int) -> list[tuple[int, int]]:
    """(n, m) to compare: GRPO of the recipe's m, other GRPO, then n to 8 m for m from 4 to 32.

    Example: m = 8: (8, 8), (4, 4), (16, 16), ..., (64, 64), (8, 4), (12, 4), ..., (256, 32).
    """
    sizes = sorted({*NUM_KEPT, num_kept})
    grpo = [(k, k) for k in sorted({*sizes, LARGEST_GRPO}, key=lambda k: (k != num_kept, k))]
    return grpo + [(r * m, m) for m in sizes for r in ROLLOUTS_PER_KEPT if r > 1]


def advise(
    rates: Rates,
    noise: Noise,
    costs: Costs,
    num_kept: int,
    memory_gib: float,
    *,
    dead_rows_free: bool,
) -> Advice:
    """Compare the arms with GRPO of the recipe's m, at as many prompts a step, and recommend one.

    The time ratio is `theory.time_ratio`; with `dead_rows_free` an update costs c m P(alive). Its
    interval spans the likely success rates and the interval of rho together; the seconds are taken
    as measured. Recommended is the largest lower bound. PODS cannot win when it is not ahead of the
    best GRPO for any likely success rates and any rho of its interval.
    """
    fitting = [
        (n, m)
        for n, m in candidates(num_kept)
        if m == num_kept or costs.memory.at(m) <= SHARE_OF_MEMORY * memory_gib
    ]
    moments = {pair: rates.moments(*pair) for pair in fitting}
    base = moments[num_kept, num_kept]

    def ratio(pair: tuple[int, int], rho: float, *, timed: bool = True) -> Tensor:
        steps = theory.steps_ratio(moments[pair], base, rho, tilt=noise.tilt)
        if not timed:
            return steps
        seconds = [_seconds(costs, of, dead_rows_free) for of in (base, moments[pair])]
        return steps * seconds[0] / seconds[1]

    def spanned(pair: tuple[int, int], *, timed: bool) -> Interval:
        # Monotone in rho, so that its ends give the ends.
        value = float(ratio(pair, noise.value, timed=timed)[0])
        ends = [rates.interval(ratio(pair, x, timed=timed)) for x in (noise.low, noise.high)]
        return value, min(x[1] for x in ends), max(x[2] for x in ends)

    gains = [
        Gain(
            arm=f"{'grpo' if n == m else 'pods'} {n}/{m}",
            num_rollouts=n,
            num_kept=m,
            frac_dead=rates.interval(1 - moments[n, m].frac_alive),
            steps_ratio=spanned((n, m), timed=False),
            seconds=float(_seconds(costs, moments[n, m], dead_rows_free)[0]),
            time_ratio=spanned((n, m), timed=True),
        )
        for n, m in fitting
    ]
    between = [rho for rho in EVERY_RHO if noise.low < rho < noise.high]
    rhos = [noise.low, *between, noise.high]
    most = max(_best_ahead(fitting, ratio, rho, rates)[2] for rho in rhos)
    return _advice(gains, num_kept, most)


def _seconds(costs: Costs, of: theory.Moments, dead_rows_free: bool) -> Tensor:
    a = costs.sampling.intercept + costs.update.intercept
    return theory.step_seconds(
        of, a, costs.sampling.slope, costs.update.slope, dead_rows_free=dead_rows_free
    )


def _best_ahead(
    pairs: Sequence[tuple[int, int]],
    ratio: Callable[..., Tensor],
    rho: float,
    rates: Rates,
) -> Interval:
    """How far the best PODS is ahead of the best GRPO at this rho."""
    pods = torch.stack([ratio(pair, rho) for pair in pairs if pair[0] > pair[1]]).amax(0)
    grpo = torch.stack([ratio(pair, rho) for pair in pairs if pair[0] == pair[1]]).amax(0)
    return rates.interval(pods / grpo)


def _advice(gains: list[Gain], num_kept: int, most: float) -> Advice:
    """Recommend the largest lower bound; `most`: how far PODS may be ahead of GRPO at the most."""
    best = max(gains, key=_least)
    pays = best.num_rollouts > best.num_kept
    grpo = max((g for g in gains if g.num_rollouts == g.num_kept), key=_least)
    instead = f"{grpo.arm} is the better choice"
    if grpo.num_kept != num_kept:
        size = "larger" if grpo.num_kept > num_kept else "smaller"
        instead = f"GRPO with {size} groups is the better choice: {grpo.arm} {_times(grpo)}"
    if pays:
        verdict = f"PODS pays here: {best.arm} {_times(best)}"
    elif most <= 1:
        verdict = f"PODS cannot win here: {instead}"
    else:
        verdict = f"PODS will hardly pay here: {instead}"
    return Advice(gains, best, pays, verdict)


def _least(gain: Gain) -> float:
    """The lower bound of the gain; without one (no group teaches anything) the last choice."""
    return -math.inf if math.isnan(gain.time_ratio[1]) else gain.time_ratio[1]


def _times(gain: Gain) -> str:
    value, low, high = gain.time_ratio
    return f"is predicted to be {value:.2f} times as fast ({low:.2f} to {high:.2f})"
