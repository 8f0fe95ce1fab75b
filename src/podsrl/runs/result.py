"""What a finished run leaves: result.json and the learning curve."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from podsrl.extras import is_installed, remedy
from podsrl.runs.clock import TrainingClock
from podsrl.runs.folder import phase_seconds, read_json, read_metrics
from podsrl.runs.plot import plot_curve
from podsrl.trl.config import PODSConfig


def describe(interval: dict[str, float]) -> str:
    """A share with its 95 % interval in words: 30.1 % (24.8 to 36.0)."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def result_of(
    folder: Path, config: PODSConfig, steps: int, clock: TrainingClock, *, task: str, model: str
) -> dict[str, Any]:
    """What result.json holds: what was run, how long it took, how good it was before and after."""
    result: dict[str, Any] = {
        "task": task,
        "model": model,
        "num_rollouts": config.num_rollouts,
        "num_generations": config.num_generations,
        "selection_rule": config.selection_rule,
        "advantage_from": config.advantage_from,
        "seed": config.seed,
        "steps": steps,
        "seconds": {
            **phase_seconds(read_metrics(folder)),
            **clock.seconds,
            "wall": clock.wall_seconds(),
        },
        "versions": read_json(folder / "versions.json"),
    }
    evaluations = {
        when: read_json(folder / when / "evaluation.json")
        for when in ("before", "after")
        if (folder / when / "evaluation.json").exists()
    }
    result |= evaluations
    if len(evaluations) == 2:
        before, after = (evaluations[when]["accuracy_greedy"] for when in ("before", "after"))
        result["gain_points"] = 100 * (after["value"] - before["value"])
        result["intervals_overlap"] = before["high"] >= after["low"]
    return result


def plot_run(folder: Path, steps: int, say: Callable[..., Any]) -> None:
    """Draw metrics.jsonl and the two evaluations into curve.png, where matplotlib is installed.

    say: prints, as a console of rich does, what is told where it is not.
    """
    if not is_installed("matplotlib"):
        told = f"curve.png is left out, as matplotlib draws it: {remedy('matplotlib')}"
        say(told, markup=False, highlight=False, soft_wrap=True)
        return
    accuracies = {}
    for step, when in ((0, "before"), (steps, "after")):
        path = folder / when / "evaluation.json"
        if path.exists():
            accuracies[step] = read_json(path)["accuracy_greedy"]
    plot_curve(read_metrics(folder), accuracies, folder / "curve.png")
