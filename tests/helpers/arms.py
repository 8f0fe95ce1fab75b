"""Small comparisons with known numbers for the tests of curves, speed-up and report."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from podsrl.report.curves import Curve

PHASES = {"sampling": 1.0, "rewards": 0.1, "selection": 0.1, "update": 0.8}
ROWS = {
    # Accuracy at 0, 60, 120, 180 s of training; each arm and seed.
    "grpo": {0: [0.2, 0.3, 0.5, 0.6], 1: [0.2, 0.4, 0.5, 0.62], 2: [0.2, 0.35, 0.5, 0.58]},
    "pods": {0: [0.2, 0.5, 0.7, 0.8], 1: [0.2, 0.6, 0.7, 0.82], 2: [0.2, 0.55, 0.7, 0.78]},
}
SETTINGS = {
    "grpo": {"num_rollouts": 4, "num_generations": 4, "selection_rule": "max_variance"},
    "pods": {"num_rollouts": 16, "num_generations": 4, "selection_rule": "max_variance"},
}


def curve(
    values: list[list[float]], *, every: float = 1.0, seeds: list[str] | None = None
) -> Curve:
    """A curve measured at 0, every, 2 every, ...; one list per run."""
    values_SK = np.array(values)
    return Curve(
        at_K=every * np.arange(values_SK.shape[1]),
        values_SK=values_SK,
        seeds=seeds or [str(seed) for seed in range(len(values))],
    )


def write_comparison(folder: Path, rows: dict[str, dict[int, list[float]]] = ROWS) -> Path:
    """Write a finished comparison folder with the accuracies of `rows`, evaluated every 60 s."""
    content = {
        "arms": {arm: SETTINGS.get(arm, {}) for arm in rows},
        "seeds": sorted({seed for runs in rows.values() for seed in runs}),
        "training_seconds": 180.0,
        "evaluate_every_seconds": 60.0,
        "baseline": "grpo",
        "task": "arithmetic",
        "model": "tiny",
        "versions": {"python": "3.11.0", "device": "cpu, 2 threads"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(content))
    for arm, runs in rows.items():
        for seed, accuracies in runs.items():
            write_run(folder / arm / f"seed-{seed}", accuracies)
    return folder


def write_run(folder: Path, accuracies: list[float], *, finished: bool = True) -> Path:
    """Write one run: 30 steps of 2 s between evaluations, format rate 0.9 throughout."""
    folder.mkdir(parents=True)
    write_lines(
        folder / "curve.jsonl",
        [
            {
                "mark_seconds": 60.0 * index,
                "training_seconds": 60.0 * index,
                "step": 30 * index,
                "accuracy": accuracy,
                "format_rate": 0.9,
                "both_rate": 0.9 * accuracy,
                "mean_length": 10.0 + index,
                "frac_cut_off": 0.0,
                "reward": accuracy if index else None,
                "kept_reward": 0.5 if index else None,
                "wall_seconds": 70.0 * index,
            }
            for index, accuracy in enumerate(accuracies)
        ],
    )
    last = 30 * (len(accuracies) - 1)
    phases = {f"time/{phase}_seconds": seconds for phase, seconds in PHASES.items()}
    write_lines(folder / "metrics.jsonl", [{"step": s, **phases} for s in range(10, last + 1, 10)])
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
