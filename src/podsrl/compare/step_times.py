"""Seconds per optimizer step of a comparison's arms, measured alone, the arms in turn.

They turn the steps that `budget: steps` compares into time: seconds_per_step.json of its folder.
"""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import yaml
from rich.console import Console

from podsrl.compare.comparison import Comparison, PlannedRun
from podsrl.compare.queue import state_of
from podsrl.phases import PHASES
from podsrl.runs.folder import device_name, read_metrics, versions, write_json
from podsrl.runs.settings import parse_settings
from podsrl.runs.step_times import STEP_TIMES, step_time

NUM_REPEATS = 3
NUM_STEPS = 12
NUM_UNCOUNTED = 2
"""The first steps of a process fill caches and compile what they use."""
MEASURING = {
    "max_steps": NUM_STEPS,
    "evaluate_limit": 0,
    "logging_steps": 1,
    "save_model": False,
    "save_strategy": "no",
    "log_rollouts": "false",
    "report_to": "none",
}
QUIET_LOAD = 0.5


def time_steps(comparison: Comparison, runs: list[PlannedRun], console: Console) -> Path:
    """Measure the arms of these runs in turn, three times over; return the file of the seconds.

    Each time an arm takes 12 steps in a process of its own, with the comparison's settings and
    without evaluations; its first two are not counted. Each repeat has another seed of the
    comparison, the same for all arms. Existing measurements are replaced.

    Raises `ValueError` where the comparison is by seconds, while one of its runs is trained, and
    where steps fail, with the last line that they printed.
    """
    if comparison.budget.unit != "steps":
        raise ValueError(
            "--time_steps turns steps into time, but the comparison's budget is seconds: leave it "
            "out"
        )
    if running := [run.name for run in comparison.runs() if state_of(run) == "running"]:
        raise ValueError(f"{running[0]} is being trained: steps are timed alone, wait for its end")
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        console.print(f"load average {load:.1f}: these seconds hold what else the machine does")
    arms = list(dict.fromkeys(run.arm for run in runs))
    seconds_of: dict[str, list[list[float]]] = defaultdict(list)
    for repeat in range(NUM_REPEATS):
        seed = comparison.seeds[repeat % len(comparison.seeds)]
        for run in comparison.runs(arms, [seed]):
            seconds = _seconds_of_steps(run)
            seconds_of[run.arm].append(seconds)
            mean = sum(seconds) / len(seconds)
            console.print(f"{run.name}: {mean:.3f} s a step, mean of {len(seconds)}")
    return _write(comparison, {arm: seconds_of[arm] for arm in arms}, load, console)


def _seconds_of_steps(run: PlannedRun) -> list[float]:
    """The training seconds of each step that counts."""
    ends = ("evaluate_every_steps", "resume")
    settings = {key: value for key, value in run.settings.items() if key not in ends} | MEASURING
    with tempfile.TemporaryDirectory() as name:
        folder, recipe = Path(name) / "run", Path(name) / "recipe.yaml"
        settings["output_dir"] = str(folder)
        recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "podsrl.cli", "train", str(recipe)]
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if ended.returncode:
            last = (ended.stdout.strip().splitlines() or ["nothing was printed"])[-1]
            raise ValueError(f"{run.name}: its steps failed: {last}")
        rows = read_metrics(folder)
    return [
        sum(row[f"time/{phase}_seconds"] for phase in PHASES)
        for row in rows
        if row["step"] > NUM_UNCOUNTED
    ]


def _write(
    comparison: Comparison, seconds_of: dict[str, list[list[float]]], load: float, console: Console
) -> Path:
    _, config, _ = parse_settings(comparison.runs()[0].settings)
    found = {arm: step_time(seconds) for arm, seconds in seconds_of.items()}
    path = comparison.output_dir / STEP_TIMES
    content = {
        "seconds_per_step": {
            arm: {**each, "repeats": [[round(s, 6) for s in steps] for steps in seconds_of[arm]]}
            for arm, each in found.items()
        },
        "num_uncounted": NUM_UNCOUNTED,
        "load_average": load,
        "versions": versions(device_name(config.device)),
    }
    write_json(path, content)
    for arm, each in found.items():
        bounds = f"95 % interval {each['low']:.3f} to {each['high']:.3f}"
        console.print(f"{arm}: {each['value']:.3f} s a step ({bounds})", soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True)
    return path
