"""The learning curve of a run as a PNG."""

from pathlib import Path
from typing import Any


def plot_curve(
    rows: list[dict[str, Any]], accuracies: dict[int, dict[str, float]], path: Path
) -> None:
    """Draw the sampled reward per step and the held-out accuracy at the steps it was measured.

    `rows` are those of metrics.jsonl; `accuracies` maps a step to value, low and high. The reward
    is the mean over all sampled rollouts, so it describes the policy and not the kept set.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows if row.get("reward") is not None]
    rewards = [row["reward"] for row in rows if row.get("reward") is not None]
    axes.plot(steps, rewards, color="#7a9cc6", label="mean reward, all sampled rollouts")
    points = sorted(accuracies)
    values = [accuracies[step]["value"] for step in points]
    below = [accuracies[step]["value"] - accuracies[step]["low"] for step in points]
    above = [accuracies[step]["high"] - accuracies[step]["value"] for step in points]
    axes.errorbar(
        points,
        values,
        yerr=[below, above],
        fmt="o",
        capsize=3,
        color="#c0504d",
        label="held-out accuracy, greedy, 95 %",
    )
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    figure.savefig(path, dpi=150)
