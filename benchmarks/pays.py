"""Where PODS wins and where it loses: what was predicted of each arm, beside what was measured.

    python benchmarks/pays.py

Draws docs/figures/pays.png of the collected comparisons benchmarks/pays-*; benchmarks/readme.py
writes their tables. Time ratios were predicted in each comparison's own file, steps ratios and the
pilot that both come from are in pays.json, both from before the first run.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from theory import mixture, over_prompts

from podsrl.core.theory import Moments, steps_ratio
from podsrl.report.read import read_comparisons
from podsrl.report.summary import summarise

BENCHMARKS = Path(__file__).resolve().parent
FIGURE = BENCHMARKS.parent / "docs/figures/pays.png"
SHARE = 0.95
TASKS = {"hard": "right on 1 answer of 10", "easy": "right on 1 answer of 4"}
"""Those of the README's table, 0.8 M parameters; docs/theory.md has the others, too."""
DRAWN = {"packaged": "135 M, right on 1 answer of 20", **TASKS}
"""The rows of the figure."""
OTHERS = ("hard-long", "packaged")
BY_PLAN = ("grpo-32", "grpo-ga", "pods-32", "pods")
AS_MANY = "pods : grpo-ga"
NAMES = {
    "grpo-32": "grpo 32/32",
    "grpo-ga": "grpo 64/64",
    "pods-32": "PODS 32/16",
    "pods": "PODS 64/16",
    AS_MANY: "PODS 64/16 : grpo 64/64",
}
"""The rows of the README's table; the last is against GRPO that trains on all that PODS samples."""
RHOS = torch.logspace(-2, 2, 201, dtype=torch.float64).tolist()
LIMITS = (0.2, 4.5)

Interval = tuple[float, float, float]


@cache
def summary_of(task: str) -> dict[str, Any]:
    """What `podsrl report benchmarks/pays-TASK --share .95` finds."""
    folder = BENCHMARKS / f"pays-{task}"
    (comparison,) = read_comparisons([folder], share=SHARE)
    return summarise(comparison)


def collected(tasks: Iterable[str]) -> list[str]:
    """Those of the tasks whose runs are there."""
    return [task for task in tasks if (BENCHMARKS / f"pays-{task}" / "runs.jsonl").is_file()]


def predicted(task: str) -> dict[str, dict[str, Interval]]:
    """steps and time -> arm -> value, low and high."""
    of_time = json.loads((BENCHMARKS / f"pays-{task}/comparison.json").read_text())["predictions"]
    return {
        "steps": {arm: tuple(x) for arm, x in beforehand()[task]["steps"].items()},
        "time": {arm: (x["value"], x["low"], x["high"]) for arm, x in of_time["arms"].items()},
    }


def beforehand() -> dict[str, Any]:
    """pays.json: of each task the pilot, and the steps ratios that were predicted from it."""
    content: dict[str, Any] = json.loads((BENCHMARKS / "pays.json").read_text())
    return content


def measured(task: str, other: str | None = None) -> dict[str, dict[str, Interval | None]]:
    """steps and time -> arm -> ratio and its 95 % interval; None with one run. 0 is never.

    other: an arm to compare with in the baseline's place.
    """
    found: dict[str, dict[str, Interval | None]] = {"steps": {}, "time": {}}
    summary = summary_of(task)
    arms = summary["against_others"][other] if other else summary["against_baseline"]
    for arm, against in arms.items():
        best = next(iter(against["speed_up"].values()))["interpolated"]
        for kind, key in (("steps", "ratio"), ("time", "time_ratio")):
            numbers = [best.get(f"{key}{end}") for end in ("", "_low", "_high")]
            found[kind][arm] = None if None in numbers else tuple(map(_number, numbers))
    return found


def _number(ratio: float | str) -> float:
    return math.inf if ratio == "at once" else float(ratio)


def before(task: str, kind: str) -> dict[str, Interval]:
    """What was predicted, AS_MANY among it: the ratio of two predictions, without an interval."""
    found = predicted(task)[kind]
    if "grpo-ga" not in found:
        return found
    ratio = found["pods"][0] / found["grpo-ga"][0]
    return found | {AS_MANY: (ratio, ratio, ratio)}


def after(task: str, kind: str) -> dict[str, Interval | None]:
    """What was measured, AS_MANY among it."""
    found = measured(task)[kind]
    if "grpo-ga" not in found:
        return found
    return found | {AS_MANY: measured(task, "grpo-ga")[kind]["pods"]}


def inside(task: str, kind: str) -> dict[str, bool]:
    """Whether what was predicted lies in the measured interval, of each arm of which both are."""
    seen = measured(task)[kind]
    return {
        arm: seen[arm][1] <= value <= seen[arm][2]
        for arm, (value, _, _) in predicted(task)[kind].items()
        if seen.get(arm)
    }


def by_plan(task: str) -> list[str]:
    """The arms of which plan, not a hand, predicted, and whose steps ratio was measured."""
    seen = measured(task)["steps"]
    return [arm for arm in BY_PLAN if arm in beforehand()[task]["steps"] and seen.get(arm)]


def size_of(task: str, arm: str) -> tuple[int, int]:
    """n and m."""
    of = summary_of(task)["arms"][arm]
    return of["num_rollouts"], of["num_generations"]


@cache
def moments_of(task: str, arm: str) -> Moments:
    """Of the arm's groups at the pilot's mean success rate and spread."""
    pilot = beforehand()[task]["pilot"]
    weights = mixture(pilot["mean_rate"][0], pilot["spread_of_logit"][0])
    return over_prompts(*size_of(task, arm), weights)


def by_rho(task: str, kind: str, rho: float) -> dict[str, float]:
    """The ratios of plan's arms at the pilot's success rates, if rho had been this."""
    seconds = {
        arm: each["seconds_per_step_alone"]["value"]
        for arm, each in summary_of(task)["arms"].items()
        if each["seconds_per_step_alone"]
    }
    ratios = {}
    for arm in by_plan(task):
        ours, theirs = (moments_of(task, name) for name in (arm, "grpo"))
        longer = seconds[arm] / seconds["grpo"] if kind == "time" else 1.0
        ratios[arm] = float(steps_ratio(ours, theirs, rho)) / longer
    return ratios


def fitting_rhos(task: str, kind: str) -> tuple[int, float, float]:
    """How many of plan's arms lie inside at once at the most; least and largest rho for that."""
    seen = measured(task)[kind]
    counts = [
        sum(
            seen[arm][1] <= x <= seen[arm][2]
            for arm, x in by_rho(task, kind, rho).items()
            if seen.get(arm)
        )
        for rho in RHOS
    ]
    fitting = [rho for rho, count in zip(RHOS, counts, strict=True) if count == max(counts)]
    return max(counts), fitting[0], fitting[-1]


def draw(path: Path) -> None:
    """Ratios to GRPO m/m per step and in time, a row for each task; predicted and measured."""
    from matplotlib.figure import Figure

    tasks = collected(DRAWN)
    names = [_names(task) for task in tasks]
    heights = [1 + len(each) for each in names]
    figure = Figure(figsize=(9.8, 1.2 + 0.38 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, sharex=True, squeeze=False, height_ratios=heights)
    for row, task, each in zip(panels, tasks, names, strict=True):
        for axes, kind in zip(row, ("steps", "time"), strict=True):
            _draw_ratios(axes, task, kind, each)
        row[1].set_yticklabels([])
        baseline = "GRPO {}/{}".format(*size_of(task, "grpo"))
        row[0].set_ylabel(f"{task}\n{DRAWN[task]}\nagainst {baseline}", fontsize=9)
    panels[0][0].set_title("one step is worth so many of GRPO's", fontsize=10.5)
    panels[0][1].set_title("one second is worth so many of GRPO's", fontsize=10.5)
    for axes in panels[-1]:
        axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    panels[-1][0].legend(loc="lower left", fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


def _names(task: str) -> dict[str, str]:
    """Arm -> what it is called: those of the README, or all that were predicted."""
    if task in TASKS:
        return NAMES
    called = {}
    for arm in predicted(task)["time"]:
        rounds = " in rounds" if arm.endswith("rounds") else ""
        method = "PODS" if arm.startswith("pods") else "grpo"
        called[arm] = "{} {}/{}{}".format(method, *size_of(task, arm), rounds)
    return called


def _draw_ratios(axes: Any, task: str, kind: str, names: dict[str, str]) -> None:
    axes.set(xscale="log", xlim=LIMITS, ylim=(len(names) - 0.4, -0.95))
    axes.minorticks_off()
    axes.axvspan(LIMITS[0], 1, color="#f3ece8", zorder=0)
    axes.axvline(1, color="#5d646e", linewidth=0.8)
    axes.set_yticks(range(len(names)), names.values())
    predictions, found = before(task, kind), after(task, kind)
    for place, arm in enumerate(names):
        color = "#c2481a" if arm.startswith("pods") else "#1f66c1"
        first = place == 0
        if arm in predictions:
            value, low, high = predictions[arm]
            axes.plot([low, high], [place - 0.16] * 2, color=color, alpha=0.3, linewidth=6)
            label = "predicted" if first else None
            axes.plot(value, place - 0.16, "|", color=color, markersize=8, label=label)
        if found.get(arm):
            value, low, high = (min(max(x, LIMITS[0]), LIMITS[1]) for x in found[arm])
            axes.plot([low, high], [place + 0.16] * 2, color=color, linewidth=1.6)
            label = "measured, 95 %" if first else None
            axes.plot(value, place + 0.16, "o", color=color, markersize=5, label=label)
    for x, words, side in ((0.93, "slower", "right"), (1.07, "faster", "left")):
        axes.text(x, -0.85, words, ha=side, va="top", fontsize=8, color="#5d646e")


def told(ratio: float) -> str:
    """A ratio; 0 is an arm that never gets there, infinity one that is there before it begins."""
    words = {0.0: "never", math.inf: "at once"}
    return words.get(ratio) or f"{ratio:.2f}".removeprefix("0")


def interval(found: Interval | None) -> str:
    """A ratio and its interval, where it has one; nothing where it is not known."""
    if not found or found[1] == found[2]:
        return told(found[0]) if found else ""
    return f"{told(found[0])} ({told(found[1])} to {told(found[2])})"


def readme_table() -> str:
    """Times as fast as grpo 16/16, and PODS against GRPO on all that it samples; task by task."""
    head = ["times as fast as grpo 16/16"]
    for task in collected(TASKS):
        head += [f"{task}: predicted", "measured"]
    rows = []
    for arm, name in NAMES.items():
        row = [name]
        for task in collected(TASKS):
            row += [interval(of(task, "time").get(arm)) for of in (before, after)]
        rows.append(row)
    return table(head, rows)


def theory_table() -> str:
    """Every arm of every task, predicted beside measured, and how many lie inside."""
    head = (
        "task",
        "arm",
        "seeds",
        "at the end",
        "minus grpo's, over all steps",
        "steps: predicted",
        "measured",
        "s a step",
        "times as fast: predicted",
        "measured",
    )
    tasks = collected((*TASKS, *OTHERS))
    rows = [row for task in tasks for row in _rows_of(task)]
    return f"{table(head, rows)}\n\n" + "\n".join(f"- {summed_up(task)}" for task in tasks)


def _rows_of(task: str) -> list[list[str]]:
    summary, predictions, found = summary_of(task), predicted(task), measured(task)
    rows = []
    for arm, each in summary["arms"].items():
        against = summary["against_baseline"].get(arm)
        if arm != "grpo" and not found["steps"].get(arm):
            continue  # one run
        seconds = each["seconds_per_step_alone"]
        is_whole = len(each["seeds"]) == len(summary["arms"]["grpo"]["seeds"])
        final = each["measures"]["accuracy"]["final"]["value"]
        window = against["differences"]["accuracy"]["window"] if against else None
        rows.append(
            [
                task,
                "{} {}/{}".format(arm, *size_of(task, arm)),
                str(len(each["seeds"])),
                f"{100 * final:.1f} %" if is_whole else "",
                "{:+.1f} ({:+.1f} to {:+.1f})".format(
                    *(100 * window[key] for key in ("value", "low", "high"))
                )
                if window
                else "",
                interval(predictions["steps"].get(arm)),
                interval(found["steps"].get(arm)) if against else "1",
                interval((seconds["value"], seconds["low"], seconds["high"])) if seconds else "",
                interval(predictions["time"].get(arm)),
                interval(found["time"].get(arm)) if against else "1",
            ]
        )
    return rows


def summed_up(task: str) -> str:
    """How many predictions lie inside, and which rho would have put them there."""
    counts = []
    kinds = [kind for kind in ("steps", "time") if any(measured(task)[kind].values())]
    for kind in kinds:
        found = inside(task, kind)
        of_plan = [is_so for arm, is_so in found.items() if arm in by_plan(task)]
        count = f"{kind} {sum(found.values())} of {len(found)}"
        counts.append(f"{count} (of plan's own {sum(of_plan)} of {len(of_plan)})")
    value, low, high = beforehand()[task]["pilot"]["rho"]
    rhos = []
    for kind in kinds:
        most, least, largest = fitting_rhos(task, kind)
        rhos.append(f"{most} of {len(by_plan(task))} {kind} ratios {_between(least, largest)}")
    return (
        f"{task}: inside the measured interval are {', '.join(counts)}. The pilot's rho was "
        f"{value:g} ({low:g} to {high:g}); its success rates put inside {' and '.join(rhos)}."
    )


def _between(least: float, largest: float) -> str:
    """A range of rho, which may go to the ends of what was tried."""
    if least == RHOS[0]:
        return "at any rho" if largest == RHOS[-1] else f"at rho below {largest:.2g}"
    return f"at rho above {least:.2g}" + f", to {largest:.2g}" * (largest < RHOS[-1])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    draw(FIGURE)
