"""What the authors' released accuracy curves say: times to thresholds, and where they settle.

`python benchmarks/theory.py --authors curves.csv` writes it to theory.json. The columns read are
setting, run, hours, step, dataset and ans_acc_mean; run 0 is the untrained model. The file is not
part of this project: it is made from the results in github.com/YixuanEvenXu/pods.
"""

import csv
import math
from pathlib import Path
from typing import Any

import torch

PAIRS = (
    ("gsm8k", "Instruct-GSM8K-512-16-16", "Instruct-GSM8K-512-64-16", (0.79, 0.8, 0.81, 0.815)),
    ("math500", "Instruct-MATH-NF-512-8-8", "Instruct-MATH-NF-512-32-8", (0.44, 0.46, 0.47, 0.48)),
)


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
        arms = [_table(curves[name, dataset]) for name in (grpo, pods)]
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


def _table(runs: dict[str, dict[float, tuple[float, float]]]):
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
