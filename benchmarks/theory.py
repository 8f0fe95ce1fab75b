"""Where PODS can win, by podsrl.core.theory: the figure and the tables of docs/theory.md.

    python benchmarks/theory.py [--authors curves.csv] [--output benchmarks]

Writes theory.json and docs/figures/theory.png, in about a minute on one core. With --authors, the
accuracy curves of the authors' released runs (columns setting, run, hours, step, dataset,
ans_acc_mean; run 0 is the untrained model) are read, too: time and steps to thresholds with
bootstrap intervals over runs, and where each curve settles. The file is not part of this project:
it is made from the results in github.com/YixuanEvenXu/pods. Without it those figures of an earlier
theory.json are kept.
"""

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
from rounds import count_rounds

from podsrl.core import logit_normal
from podsrl.core.budget import pooled
from podsrl.core.select import select
from podsrl.core.theory import (
    Moments,
    break_even,
    ceiling,
    information,
    moments,
    signal_to_noise,
    step_seconds,
    step_signal_to_noise,
    steps_ratio,
    time_ratio,
)

FIGURE = Path(__file__).resolve().parents[1] / "docs/figures/theory.png"
RHOS = (0.0, 0.3, 1.0, math.inf)
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Seconds per step, per n and per m. "paper": least squares through the seconds per step of the
# authors' eight GSM8K settings; the others: benchmarks/arms and benchmarks/plan.json, here.
COSTS = {
    "paper": {"a": 4.19, "b": 0.058, "c": 0.139},
    "arms": {"a": 0.15, "b": 0.0033, "c": 0.0085},
    "smollm2": {"a": 5.215, "b": 0.321, "c": 1.348},
}
# Mean and spread (of the logit) of success rates: (mean rate, spread).
MIXTURES = ((0.02, 2.0), (0.05, 2.0), (0.1, 2.0), (0.3, 0.1), (0.3, 2.0), (0.75, 2.0), (0.8, 2.0))
PAIRS = (
    ("gsm8k", "Instruct-GSM8K-512-16-16", "Instruct-GSM8K-512-64-16", (0.79, 0.8, 0.81, 0.815)),
    ("math500", "Instruct-MATH-NF-512-8-8", "Instruct-MATH-NF-512-32-8", (0.44, 0.46, 0.47, 0.48)),
)
# Times sooner to 80 % on GSM8K than GRPO 16/16, read in the authors' released logs.
AUTHORS_SWEEP = {
    "random 64/16": 0.74,
    "32/16": 1.51,
    "128/16": 1.65,
    "256/16": 1.02,
    "64/8": 1.73,
    "64/4": 1.73,
    "64/2": 0.89,
}


def mixture(mean_rate: float, spread: float) -> torch.Tensor:
    """Weights of the nodes for success rates of this mean whose logits have this spread."""
    means = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    weights = logit_normal.weights(means, torch.full_like(means, spread))
    return weights[int(((weights @ logit_normal.rates()) - mean_rate).abs().argmin())]


def over_prompts(num_rollouts: int, num_kept: int, weights: torch.Tensor) -> Moments:
    return moments(num_rollouts, num_kept, logit_normal.rates()).mean(weights)


def by_rate() -> list[dict[str, float]]:
    """64/16 against 16/16 at one success rate: signal, information, and the limit rho = inf."""
    p = torch.tensor(RATES, dtype=torch.float64)
    pods, grpo = moments(64, 16, p), moments(16, 16, p)
    columns = {
        "p": p,
        "dead_grpo": 1 - grpo.frac_alive,
        "dead_pods": 1 - pods.frac_alive,
        "signal_ratio": pods.signal / grpo.signal,
        "information_ratio": information(pods) / information(grpo),
        **{f"steps_ratio_rho_{rho:g}": steps_ratio(pods, grpo, rho) for rho in RHOS},
    }
    return [{name: float(x[i]) for name, x in columns.items()} for i in range(len(p))]


def best_speed(
    p: torch.Tensor, cost_ratio: float, rho: float, *, free: bool, pods: bool, overhead: float = 0.0
) -> torch.Tensor:
    """Largest progress per second over n and m, or over n = m; `overhead` is per prompt, in b."""
    speeds = []
    for n in SIZES:
        for m in [m for m in SIZES if m < n] if pods else [n]:
            of = moments(n, m, p)
            progress = information(of) if rho == 0 else signal_to_noise(of, rho)
            seconds = step_seconds(of, overhead, 1.0, cost_ratio, dead_rows_free=free)
            speeds.append(progress / seconds)
    return torch.stack(speeds).amax(0)


def best_gain(
    p: torch.Tensor, cost_ratio: float, rho: float, *, free: bool, overhead: float = 0.0
) -> torch.Tensor:
    """The best n and m against the best group size of GRPO."""
    ours = best_speed(p, cost_ratio, rho, free=free, pods=True, overhead=overhead)
    return ours / best_speed(p, cost_ratio, rho, free=free, pods=False, overhead=overhead)


def fair_baseline() -> list[dict[str, Any]]:
    """Gain of the best n and m, dead rows paid for or free, with and without costs per prompt."""
    p = torch.tensor([0.005, *RATES], dtype=torch.float64)
    rows = []
    for cost_ratio in (1.0, 2.4, 8.0):
        for overhead in (0.0, 16.0, 72.0):
            for rho in RHOS:
                for free in (False, True):
                    gain = best_gain(p, cost_ratio, rho, free=free, overhead=overhead)
                    row = {"cost_ratio": cost_ratio, "overhead": overhead, "rho": rho}
                    row["dead_rows_free"] = free
                    rows.append(row | {f"p={x:g}": float(g) for x, g in zip(p, gain, strict=True)})
    return rows


def choosing() -> list[dict[str, Any]]:
    """Time ratios to grpo 16/16 with as many prompts a step, over mixtures, costs and rho."""
    arms = ((32, 16), (64, 16), (128, 16), (64, 8), (32, 32), (64, 64))
    rows = []
    for (mean_rate, spread), (name, costs) in ((x, y) for x in MIXTURES for y in COSTS.items()):
        weights = mixture(mean_rate, spread)
        for free in (False, True):
            for rho in RHOS:
                row = {"mean_rate": mean_rate, "spread": spread, "costs": name, "rho": rho}
                row["dead_rows_free"] = free
                grpo = over_prompts(16, 16, weights)
                for n, m in arms:
                    ours = over_prompts(n, m, weights)
                    gain = time_ratio(ours, grpo, rho, **costs, dead_rows_free=free)
                    row[f"{n}/{m}"] = float(gain)
                rows.append(row)
    return rows


def sweeps() -> list[dict[str, Any]]:
    """The authors' sweeps of n and m on GSM8K against theory at their costs, dead rows paid for."""
    weights, rows = mixture(0.75, 2.0), []
    grpo = over_prompts(16, 16, weights)
    for arm, seen in AUTHORS_SWEEP.items():
        n, m = map(int, arm.split()[-1].split("/"))
        # Random rollouts are GRPO of m, whose sampling of n is paid for.
        ours = over_prompts(m if "random" in arm else n, m, weights)
        longer = float(
            (COSTS["paper"]["a"] + COSTS["paper"]["b"] * n + COSTS["paper"]["c"] * m)
            / step_seconds(grpo, **COSTS["paper"], dead_rows_free=False)
        )
        theory = {f"rho={rho:g}": float(steps_ratio(ours, grpo, rho)) / longer for rho in RHOS}
        rows.append({"arm": arm, "seen": seen} | theory)
    return rows


def budgets(num_steps: int = 300) -> list[dict[str, Any]]:
    """A pooled budget against m of each prompt: squared signal over noise of the step, mean ratio.

    Four prompts, n = 16, m = 4, and 32 prompts; success rates from a beta distribution.
    """
    rows = []
    torch.manual_seed(0)
    for num_prompts in (4, 32):
        for alpha, beta in ((0.5, 0.5), (0.3, 1.0), (2.0, 2.0)):
            rates = torch.distributions.Beta(alpha, beta).sample((num_steps, num_prompts, 1))
            rewards = torch.bernoulli(rates.expand(-1, -1, 16))
            totals = {rho: [0.0, 0.0] for rho in (0.01, *RHOS[1:])}
            for seed, rewards_PN in enumerate(rewards):
                even_P = torch.full((num_prompts,), 4)
                for i, counts in enumerate(
                    (even_P, pooled(rewards_PN, 4 * num_prompts, seed=seed))
                ):
                    right = torch.tensor(
                        [
                            float(r[select(r, k)].sum()) if k else 0.0
                            for r, k in zip(rewards_PN, counts.tolist(), strict=True)
                        ]
                    )
                    for rho, total in totals.items():
                        total[i] += float(step_signal_to_noise(right, counts - right, rho))
            ratios = {f"rho={rho:g}": y / x for rho, (x, y) in totals.items()}
            rows.append({"num_prompts": num_prompts, "beta": [alpha, beta]} | ratios)
    return rows


def draw(path: Path) -> None:
    """Time ratio over p' and c/b, where dead rows are trained on and where they cost nothing."""
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    p = torch.logspace(math.log10(0.005), math.log10(0.5), 61, dtype=torch.float64)
    cost_ratios = torch.logspace(math.log10(0.25), math.log10(32), 43, dtype=torch.float64)
    paid = torch.stack([ceiling(p, float(k)) for k in cost_ratios])
    free = torch.stack([best_gain(p, float(k), 0.0, free=True) for k in cost_ratios])
    levels = [0.95, 1.12, 1.25, 1.5, 2.0, 3.0, 5.0, 20.0]
    figure = Figure(figsize=(9.8, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = (
        "GRPO that trains on dead groups, too",
        "GRPO whose dead groups cost nothing,\nat its best group size",
    )
    for axes, gain, title in zip(panels, (paid, free), titles, strict=True):
        drawn = axes.contourf(
            p, cost_ratios, gain, levels=levels, cmap="YlGnBu", norm=BoundaryNorm(levels, 256)
        )
        axes.set(xscale="log", yscale="log", facecolor="#e9e6de")
        axes.set_title(title, fontsize=10.5)
        axes.minorticks_off()
        axes.set_xticks([0.005, 0.02, 0.05, 0.1, 0.2, 0.5], ["0.5", "2", "5", "10", "20", "50"])
        axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16, 32], [*"¼½1248", "16", "32"])
    left, right = panels
    figure.supxlabel("rarer outcome of a prompt's rollouts, %: p' = min(p, 1 - p)", fontsize=10)
    left.set_ylabel("training on a rollout / sampling it, c/b")
    edge = [break_even(float(k)) for k in cost_ratios]
    left.plot(edge, cost_ratios, color="#8c3b1c", linewidth=1.6)
    left.text(0.48, 0.28, "PODS\ncannot\nwin", ha="right", fontsize=8.5, color="#8c3b1c")
    left.text(0.0065, 12, "PODS wins", fontsize=13, weight="bold", color="white")
    for name, k in (("authors' GSM8K runs", 2.4), ("packaged model on a CPU", 4.2)):
        left.plot([0.005, 0.5], [k, k], color="#555", linewidth=0.7, linestyle=":")
        left.text(0.0055, k * 1.05, name, fontsize=7.5, color="#fff")
    most = f"nothing to win:\nat most {float(free.max()):.2f} times as fast"
    right.text(0.05, 2.8, most, ha="center", fontsize=11, color="#333")
    bar = figure.colorbar(drawn, ax=panels, ticks=levels)
    bar.ax.set_yticklabels(["same", *(f"{x:g}x" for x in levels[1:-1]), ""])
    bar.set_label("best PODS against best GRPO: times as fast")
    figure.savefig(path, dpi=160)


def written(value: Any) -> Any:
    """The same to five digits, and without infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: written(x) for name, x in value.items()}
    if isinstance(value, list):
        return [written(x) for x in value]
    if not isinstance(value, float):
        return value
    return "inf" if math.isinf(value) else float(f"{value:.5g}")


def read_authors(path: Path) -> list[dict[str, Any]]:
    """Times and steps to thresholds, and plateaus, of the authors' two pairs of curves."""
    curves: dict[tuple[str, str], dict[str, dict[float, tuple[float, float]]]] = {}
    for row in csv.DictReader(path.open(encoding="utf-8")):
        runs = curves.setdefault((row["setting"], row["dataset"]), {})
        accuracy, step = float(row["ans_acc_mean"]), float(row["step"])
        runs.setdefault(row["run"], {})[float(row["hours"])] = (accuracy, step)
    found = []
    for dataset, grpo, pods, thresholds in PAIRS:
        start = curves["base-qwen", dataset]["0"][0.0][0]
        arms = [_curves_of(curves[name, dataset]) for name in (grpo, pods)]
        hours = torch.tensor(arms[0][0])
        accuracies = [torch.tensor(a) for _, a, _ in arms]
        per_hour = [s for _, _, s in arms]
        found.append(
            {
                "dataset": dataset,
                "arms": [grpo, pods],
                "step_costs_ratio": per_hour[0] / per_hour[1],
                "to_threshold": [
                    _to_threshold(hours, accuracies, start, x, per_hour) for x in thresholds
                ],
                "settles": [_settles(hours, x, start) for x in accuracies],
            }
        )
    return found


def _curves_of(runs: dict[str, dict[float, tuple[float, float]]]):
    """Hours, accuracy (runs, hours), and steps per hour of one setting."""
    hours = sorted(set.intersection(*(set(run) for run in runs.values())))
    accuracy = [[run[h][0] for h in hours] for run in runs.values()]
    last = hours[-1]
    return hours, accuracy, sum(run[last][1] for run in runs.values()) / len(runs) / last


def _resampled(values: torch.Tensor, num: int, seed: int) -> torch.Tensor:
    """Mean curves of runs drawn with replacement, (num, hours); the first is of all runs."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (num, len(values)), generator=generator)
    return torch.cat([values.mean(0)[None], values[drawn].mean(1)])


def _reached(hours: torch.Tensor, curve: torch.Tensor, start: float, threshold: float) -> float:
    """Hours at which the curve first reaches the threshold, by straight lines; inf if never."""
    xs, ys = [0.0, *hours.tolist()], [start, *curve.tolist()]
    for i in range(1, len(ys)):
        if ys[i] >= threshold:
            share = (threshold - ys[i - 1]) / (ys[i] - ys[i - 1])
            return xs[i - 1] + share * (xs[i] - xs[i - 1])
    return math.inf


def _to_threshold(hours, accuracies, start, threshold, per_hour) -> dict[str, Any]:
    """Ratio of times to the threshold with a 95 % bootstrap interval over runs."""
    times = [
        torch.tensor([_reached(hours, c, start, threshold) for c in _resampled(x, 2000, seed)])
        for seed, x in enumerate(accuracies)
    ]
    # Both never: no ratio. Counted as 1, so that the interval is not narrowed by leaving it out.
    ratio = (times[0] / times[1]).nan_to_num(nan=1.0, posinf=1e9)
    low, high = ratio[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return {
        "threshold": threshold,
        "time_ratio": float(ratio[0]),
        "low": low,
        "high": high if high < 1e6 else None,
        "steps_ratio": float(ratio[0]) * per_hour[0] / per_hour[1],
    }


def _settles(hours: torch.Tensor, accuracy: torch.Tensor, start: float) -> dict[str, Any]:
    """Least squares of A - (A - start) exp(-t / tau): where it settles and how fast."""
    taus = torch.logspace(-2, 1, 241)
    decay_TH = (-hours / taus[:, None]).exp()
    fits = []
    for curve in _resampled(accuracy, 500, 7):
        rest_TH = 1 - decay_TH
        level_T = ((curve - start * decay_TH) * rest_TH).sum(1) / rest_TH.square().sum(1)
        error_T = (curve - start * decay_TH - level_T[:, None] * rest_TH).square().sum(1)
        best = int(error_T.argmin())
        fits.append([float(level_T[best]), float(taus[best])])
    ends = torch.tensor(fits)
    low, high = ends[1:].quantile(torch.tensor([0.025, 0.975]), dim=0).tolist()
    return {
        name: {"value": float(ends[0, i]), "low": low[i], "high": high[i]}
        for i, name in enumerate(("plateau", "hours"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--authors", type=Path, help="curves.csv of the authors' released runs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    path = options.output / "theory.json"
    if options.authors:
        authors = read_authors(options.authors)
    else:
        authors = json.loads(path.read_text())["authors_curves"] if path.exists() else None
    content = {
        "costs": COSTS,
        "64/16_against_16/16": by_rate(),
        "best_pods_against_best_grpo": fair_baseline(),
        "choosing_n_and_m": choosing(),
        "authors_sweeps_to_80_percent": sweeps(),
        "authors_curves": authors,
        "pooled_against_per_prompt": budgets(),
        "rounds": count_rounds(),
    }
    tables = [
        f" {json.dumps(name)}: "
        + (
            "[\n  " + ",\n  ".join(json.dumps(row) for row in table) + "\n ]"
            if isinstance(table, list)
            else json.dumps(table)
        )
        for name, table in written(content).items()
    ]
    path.write_text("{\n" + ",\n".join(tables) + "\n}\n", encoding="utf-8")
    draw(FIGURE)


if __name__ == "__main__":
    main()
