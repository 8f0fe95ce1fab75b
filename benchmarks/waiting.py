"""How long threads should wait awake, on a quiet machine and beside other work.

    python benchmarks/waiting.py --output benchmarks/waiting.json

Each arm is `podsrl train` of a recipe in a process of its own, because OpenMP reads its policy
once: brief (our default: it looks 3,000 times, then sleeps), passive (it sleeps at once), library
(GNU OpenMP's own: 300,000 times) and active (it spins on). Each is run alone and beside as many
busy processes as there are cores, in turn, `--repeats` times. The first step of a process is not
counted; the JSON holds each step's seconds, by phase, and medians. Run it on a machine that does
nothing else: `--busy 0` leaves the second half out.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from podsrl.cli.waiting import DECIDED, NUM_LOOKS
from podsrl.runs.folder import device_name, read_metrics, versions, write_json

ARMS = {
    "brief": {"GOMP_SPINCOUNT": str(NUM_LOOKS)},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "library": {"GOMP_SPINCOUNT": "300000"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
}
PHASES = ("sampling", "rewards", "selection", "update")
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    options = parser().parse_args()
    steps: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(options.repeats):
        for num_busy in dict.fromkeys((0, options.busy)):
            for arm in options.arms.split(","):
                case = steps.setdefault(f"{num_busy} busy", {}).setdefault(arm, [])
                case += measure(options, ARMS[arm], num_busy)
                print(f"{num_busy} busy, {arm}: {median(case):.2f} s a step", flush=True)
    content: dict[str, Any] = {
        "recipe": options.recipe,
        "flags": options.flags,
        "threads": options.threads,
        "median_seconds": {
            case: {arm: median(rows) for arm, rows in arms.items()} for case, arms in steps.items()
        },
        "steps": steps,
        "versions": versions(device_name(torch.device("cpu"))),
        "load_average_before": os.getloadavg()[2],
    }
    write_json(Path(options.output), content)


def parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    result = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    result.add_argument("--output", default="benchmarks/waiting.json")
    result.add_argument("--recipe", default="recipes/arithmetic-smollm2.yaml")
    result.add_argument("--flags", default="", help="more flags of podsrl train, in one word")
    result.add_argument("--steps", type=int, default=4, help="counted steps of a process")
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--threads", type=int, default=cores)
    result.add_argument("--busy", type=int, default=cores, help="busy processes beside it")
    result.add_argument("--arms", default=",".join(ARMS))
    return result


def measure(
    options: argparse.Namespace, policy: dict[str, str], num_busy: int
) -> list[dict[str, float]]:
    """Seconds per phase of each counted step of one process."""
    kept = {name: value for name, value in os.environ.items() if name not in DECIDED}
    environment = {**kept, **policy, "OMP_NUM_THREADS": str(options.threads)}
    with TemporaryDirectory() as folder:
        flags = {
            "max_steps": options.steps + 1,
            "evaluate_limit": 0,
            "save_model": "false",
            "log_rollouts": "false",
            "output_dir": Path(folder) / "run",
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "podsrl.cli", "train", options.recipe, *words]
        others = [subprocess.Popen(BUSY) for _ in range(num_busy)]
        try:
            subprocess.run(
                [*command, *options.flags.split()],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        finally:
            for other in others:
                other.kill()
                other.wait()
        rows = read_metrics(Path(folder) / "run")[1:]
    return [{phase: row[f"time/{phase}_seconds"] for phase in PHASES} for row in rows]


def median(steps: list[dict[str, float]]) -> float:
    """The median of the steps' sums."""
    return statistics.median(sum(step.values()) for step in steps)


if __name__ == "__main__":
    main()
