"""Seconds and memory of a step as functions of n and m, and the n and m that follow from them.

A step of P prompts costs a + b n + c m seconds: sampling, rewards and selection grow with the n
rollouts sampled per prompt, the update with the m kept. Memory of the update grows with the rows of
a micro-batch.
"""

from dataclasses import asdict, dataclass
from statistics import linear_regression, mean, median
from typing import Any

ROLLOUTS_PER_KEPT = (4, 3, 2)
LONGEST_STEP = 2.0  # of PODS, in steps of GRPO that samples and trains on m
LEAST_SAVING = 0.2  # of a step that trains on all n, below which PODS is not worth it
SHARE_OF_MEMORY = 0.9


@dataclass(frozen=True)
class Point:
    """Medians over the counted steps with these n and m: seconds, and the peak memory in GiB."""

    num_rollouts: int
    num_kept: int
    sampling_seconds: float
    update_seconds: float
    micro_rows: int
    peak_gib: float

    @property
    def seconds(self) -> float:
        return self.sampling_seconds + self.update_seconds


@dataclass(frozen=True)
class Line:
    """intercept + slope x, both at least 0."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


@dataclass(frozen=True)
class Costs:
    """What was fitted: sampling over n, update over m, peak memory over rows of a micro-batch."""

    sampling: Line
    update: Line
    memory: Line

    def seconds(self, num_rollouts: int, num_kept: int) -> float:
        """Predicted seconds of a step, a + b n + c m.

        Example: lines 1 + 0.5 n and 2 + 0.25 m give 1 + 8 + 2 + 1 = 12 at n = 16, m = 4.
        """
        return self.sampling.at(num_rollouts) + self.update.at(num_kept)


@dataclass(frozen=True)
class Proposal:
    """n, m, and how to lay out the update; `pays` says whether PODS is worth it at all."""

    num_rollouts: int
    num_kept: int
    micro_rows: int
    num_micro_batches: int
    pays: bool
    reasons: tuple[str, ...]


def fit_line(x: list[float], y: list[float]) -> Line:
    """Least squares through the points; a slope or an intercept that comes out below 0 is 0.

    Raises `ValueError` for fewer than two different x.

    Example: (1, 3), (2, 5) give 1 + 2 x. (1, 1), (2, 4) would give -2 + 3 x and give 1.8 x:
    (1*1 + 2*4) / (1 + 4).
    """
    if len(set(x)) < 2:
        raise ValueError(f"all points lie at {x[0]}; measure at two sizes or more")
    slope, intercept = linear_regression(x, y)
    if slope < 0:
        return Line(mean(y), 0.0)
    if intercept < 0:
        slope, intercept = linear_regression(x, y, proportional=True)
    return Line(intercept, slope)


def fit(points: list[Point]) -> Costs:
    """Costs from points that differ in n and in m.

    Raises `ValueError` when all points have the same n, or the same m.
    """
    rows = [float(p.micro_rows) for p in points]
    return Costs(
        fit_line([float(p.num_rollouts) for p in points], [p.sampling_seconds for p in points]),
        fit_line([float(p.num_kept) for p in points], [p.update_seconds for p in points]),
        fit_line(rows, [p.peak_gib for p in points]),
    )


def merge(points: list[Point]) -> list[Point]:
    """One point per (n, m): medians over the rounds in which it was measured."""
    found: dict[tuple[int, int], list[Point]] = {}
    for point in points:
        found.setdefault((point.num_rollouts, point.num_kept), []).append(point)
    return [
        Point(
            *pair,
            median(p.sampling_seconds for p in rounds),
            median(p.update_seconds for p in rounds),
            rounds[0].micro_rows,
            max(p.peak_gib for p in rounds),
        )
        for pair, rounds in found.items()
    ]


def points_to_measure(num_rollouts: int, num_kept: int) -> list[tuple[int, int]]:
    """(n, m) that tell b and c apart: n from m to the recipe's, m from the recipe's to twice it.

    Example: 16, 4 gives (4, 4), (16, 4), (16, 8). With n = m, n is taken as 4 m.
    """
    wide = num_rollouts if num_rollouts > num_kept else ROLLOUTS_PER_KEPT[0] * num_kept
    return [(num_kept, num_kept), (wide, num_kept), (wide, min(wide, 2 * num_kept))]


def held_out_points(num_rollouts: int, num_kept: int) -> list[tuple[int, int]]:
    """Three (n, m) beside the measured ones: between them in n, in both, and beyond them in n.

    Example: 16, 4 gives (10, 4), (12, 6), (24, 4).
    """
    (_, low), (wide, _), _ = measured = points_to_measure(num_rollouts, num_kept)
    between = min(wide, low + (low + 1) // 2)
    wanted = [
        ((low + wide) // 2, low),
        (max(between, (low + 2 * wide) // 3), between),
        (wide + wide // 2, low),
    ]
    # Of small sizes nothing lies between: more rollouts are beside them, too.
    beyond = [(wide + wide * k, low) for k in (1, 2, 3)]
    return [pair for pair in wanted + beyond if pair not in measured][:3]


def propose(costs: Costs, num_kept: int, num_prompts: int, memory_gib: float) -> Proposal:
    """n, m and the micro-batch for P prompts per step on a device with this much memory.

    m stays the recipe's. n is the largest of 4 m, 3 m, 2 m with which a step takes at most twice as
    long as one that samples and trains on m: in the authors' logs most of the gain is there at
    n = 2 m and little is added beyond 4 m. PODS is said to pay when it also saves a fifth or more
    of a step that trains on all n. A micro-batch is the largest number of whole groups that divides
    the step and fits.

    Raises `ValueError` when not even one group of m fits into the memory.
    """
    base = costs.seconds(num_kept, num_kept)
    longest = LONGEST_STEP * base
    ratios = [r for r in ROLLOUTS_PER_KEPT if costs.seconds(r * num_kept, num_kept) <= longest]
    num_rollouts = (ratios[0] if ratios else ROLLOUTS_PER_KEPT[-1]) * num_kept
    ours, all_n = costs.seconds(num_rollouts, num_kept), costs.seconds(num_rollouts, num_rollouts)
    saving = 1 - ours / all_n
    rows = _micro_rows(costs.memory, num_kept, num_prompts, memory_gib)
    reasons: tuple[str, ...] = (
        f"a step of pods {num_rollouts}/{num_kept} takes {ours / base:.2f} times one of grpo "
        f"{num_kept}/{num_kept}: over that arm it pays where {100 * base / ours:.0f} % of its "
        "steps reach as far",
        f"it saves {100 * saving:.0f} % of a step of grpo-ga {num_rollouts}/{num_rollouts}, which "
        "trains on everything it samples",
    )
    if not ratios:
        reasons += (
            f"sampling dominates: even n = 2 m makes a step {ours / base:.1f} times as long, so "
            "PODS will hardly pay; sample faster first (vLLM), or train on all rollouts",
        )
    elif saving < LEAST_SAVING:
        reasons += (
            "the update is a small part of the step: training on all n rollouts costs little more",
        )
    pays = bool(ratios) and saving >= LEAST_SAVING
    return Proposal(
        num_rollouts, num_kept, rows, num_prompts * num_kept // rows, pays, tuple(reasons)
    )


def propose_arm(
    costs: Costs,
    num_rollouts: int,
    num_kept: int,
    num_prompts: int,
    memory_gib: float,
    *,
    pays: bool,
    reasons: tuple[str, ...],
) -> Proposal:
    """This n and m, chosen elsewhere, with the micro-batch that `propose` would give it.

    Raises `ValueError` as `propose` does.
    """
    rows = _micro_rows(costs.memory, num_kept, num_prompts, memory_gib)
    return Proposal(num_rollouts, num_kept, rows, num_prompts * num_kept // rows, pays, reasons)


def _micro_rows(memory: Line, num_kept: int, num_prompts: int, memory_gib: float) -> int:
    limit = SHARE_OF_MEMORY * memory_gib
    whole = [groups for groups in range(num_prompts, 0, -1) if num_prompts % groups == 0]
    for groups in whole:
        if memory.at(groups * num_kept) <= limit:
            return groups * num_kept
    raise ValueError(
        f"one group of {num_kept} kept rollouts needs about {memory.at(num_kept):.1f} GiB, more "
        f"than {SHARE_OF_MEMORY:.0%} of {memory_gib:.1f} GiB: lower num_generations or "
        "max_completion_length, or turn on gradient_checkpointing"
    )


def check(costs: Costs, held_out: list[Point]) -> list[dict[str, float]]:
    """Predicted against measured seconds per step of points that were not fitted."""
    rows = []
    for point in held_out:
        predicted = costs.seconds(point.num_rollouts, point.num_kept)
        rows.append(
            {
                "num_rollouts": point.num_rollouts,
                "num_kept": point.num_kept,
                "measured_seconds": point.seconds,
                "predicted_seconds": predicted,
                "relative_error": predicted / point.seconds - 1,
            }
        )
    return rows


def predictions(costs: Costs, proposal: Proposal) -> dict[str, float]:
    """Seconds per step of the three arms that a comparison would run."""
    n, m = proposal.num_rollouts, proposal.num_kept
    return {
        f"grpo {m}/{m}": costs.seconds(m, m),
        f"grpo-ga {n}/{n}": costs.seconds(n, n),
        f"pods {n}/{m}": costs.seconds(n, m),
    }


def as_json(points: list[Point], costs: Costs, proposal: Proposal) -> dict[str, Any]:
    """Everything a plan knows, for plan.json."""
    return {
        "points": [asdict(point) for point in points],
        "a_b_c": [
            costs.sampling.intercept + costs.update.intercept,
            costs.sampling.slope,
            costs.update.slope,
        ],
        "costs": asdict(costs),
        "proposal": asdict(proposal),
        "predicted_seconds_per_step": predictions(costs, proposal),
    }
