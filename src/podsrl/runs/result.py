"""What a finished run leaves: result.json and the learning curve."""

from typing import Any

from podsrl.extras import is_installed, remedy
from podsrl.runs.clock import TrainingClock
from podsrl.runs.folder import phase_seconds, read_json, read_metrics
from podsrl.runs.plot import plot_curve
from podsrl.runs.prepare import Run


def describe(interval: dict[str, float]) -> str:
    """A share with its 95 % interval in words: 30.1 % (24.8 to 36.0)."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def result_of(run: Run, steps: int, clock: TrainingClock) -> dict[str, Any]:
    """What result.json holds: what was run, how long it took, how good it was before and after."""
    result: dict[str, Any] = {
        "task": run.task.name,
        "model": run.arguments.model,
        "num_rollouts": run.config.num_rollouts,
        "num_generations": run.config.num_generations,
        "selection_rule": run.config.selection_rule,
        "advantage_from": run.config.advantage_from,
        "seed": run.config.seed,
        "steps": steps,
        "seconds": {
            **phase_seconds(read_metrics(run.folder)),
            **clock.seconds,
            "wall": clock.wall_seconds(),
        },
        "versions": read_json(run.folder / "versions.json"),
    }
    evaluations = {
        when: read_json(run.folder / when / "evaluation.json")
        for when in ("before", "after")
        if (run.folder / when / "evaluation.json").exists()
    }
    result |= evaluations
    if len(evaluations) == 2:
        before, after = (evaluations[when]["accuracy_greedy"] for when in ("before", "after"))
        result["gain_points"] = 100 * (after["value"] - before["value"])
        result["intervals_overlap"] = before["high"] >= after["low"]
    return result


def plot_run(run: Run, steps: int) -> None:
    """Draw metrics.jsonl and the two evaluations into curve.png, where matplotlib is installed."""
    if not is_installed("matplotlib"):
        told = f"curve.png is left out, as matplotlib draws it: {remedy('matplotlib')}"
        run.console.print(told, markup=False, highlight=False, soft_wrap=True)
        return
    accuracies = {}
    for step, when in ((0, "before"), (steps, "after")):
        path = run.folder / when / "evaluation.json"
        if path.exists():
            accuracies[step] = read_json(path)["accuracy_greedy"]
    plot_curve(read_metrics(run.folder), accuracies, run.folder / "curve.png")
