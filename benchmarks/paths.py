"""The default recipe on TRL's sampling and update and on ours: accuracy and training seconds.

    python benchmarks/paths.py            # 20 to 25 minutes a seed on 2 cores
    python benchmarks/paths.py --before CHECKOUT --output versions.json

    python benchmarks/paths.py --before CHECKOUT --in_turn --output turns.json

With `--before`, the sides are another checkout of this project and this one, each on its own paths.

Every run is a process of its own, one after the other, and the side that goes first changes from
seed to seed; with `--in_turn` both train at once, each waiting while the other makes a step, so
that what slows the machine meets both. Both sides train for the recipe's steps with the same seed;
they draw different random numbers while sampling, so their accuracies differ as those of two seeds
do. The JSON grows by one run at a time; runs that it holds already are not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from podsrl.intervals import mean_interval
from podsrl.runs.folder import read_json, write_json

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "arithmetic-smollm2.yaml"
LENGTH = "completions/mean_length"
EACH_STEP = {
    "length": LENGTH,
    "sampling_seconds": "time/sampling_seconds",
    "update_seconds": "time/update_seconds",
}
ON_TRL_PATHS = ["--fast_sampling", "false", "--packed_update", "false"]


def run_side(
    checkout: Path, seed: int, extra: list[str], turns: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One training run of the recipe, evaluated before and after, in a folder that is discarded.

    turns: the folder in which two runs take turns, this one's name and the other's.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        start = [str(HERE / "in_turn.py"), *turns] if turns else ["-m", "podsrl.cli"]
        command = [sys.executable, *start, "train", str(RECIPE), "--seed", str(seed)]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        command += ["--output_dir", str(target), *extra]
        subprocess.run(command, check=True, env=environment)
        result = read_json(target / "result.json")
        lines = (target / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if LENGTH in row]
    kept = {key: result[key] for key in ("steps", "seconds", "gain_points", "versions")}
    accuracy = {f"accuracy_{when}": result[when]["accuracy_greedy"] for when in ("before", "after")}
    steps = {short: [row[name] for row in rows] for short, name in EACH_STEP.items()}
    return kept | accuracy | {"each_step": steps}


def run_in_turn(
    sides_run: dict[str, tuple[Path, list[str]]], seed: int, extra: list[str]
) -> dict[str, dict[str, Any]]:
    """Both sides at once, step by step in turn."""
    names = list(sides_run)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        (Path(folder) / "turn").write_text(names[seed % 2])
        runs = {
            name: pool.submit(run_side, checkout, seed, [*arm, *extra], (folder, name, other))
            for (name, (checkout, arm)), other in zip(sides_run.items(), names[::-1], strict=True)
        }
        return {name: run.result() for name, run in runs.items()}


def seconds_of_steps(side: dict[str, Any]) -> list[float]:
    """Sampling and update of every step, the first not counted."""
    each = side["each_step"]
    pairs = zip(each["sampling_seconds"], each["update_seconds"], strict=True)
    return [sum(pair) for pair in pairs][1:]


def median_step(side: dict[str, Any]) -> float:
    """Seconds of sampling and update of the median step, the first not counted."""
    return statistics.median(seconds_of_steps(side))


def shares_of_steps(ours: dict[str, Any], others: dict[str, Any]) -> dict[str, list[float]]:
    """Ours over the other side's, step by step, the first not counted.

    Sampling takes as long as answers are: the share of the lengths belongs to that of the seconds.
    """
    each, other = ours["each_step"], others["each_step"]
    shares = {
        key: [a / b for a, b in zip(each[key], other[key], strict=True)][1:] for key in EACH_STEP
    }
    steps = zip(seconds_of_steps(ours), seconds_of_steps(others), strict=True)
    return {**shares, "step": [a / b for a, b in steps]}


def medians(seeds: list[dict[str, list[float]]]) -> dict[str, float]:
    """Of each share, over the steps of all these seeds."""
    return {key: statistics.median(x for seed in seeds for x in seed[key]) for key in seeds[0]}


def commit_of(checkout: Path) -> str:
    """The commit that a checkout stands at, in short."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def summary(seeds: dict[str, dict[str, Any]], other: str) -> dict[str, Any]:
    """Our training seconds over the other side's, and accuracies compared, over complete seeds."""
    pairs = [(sides["podsrl"], sides[other]) for sides in seeds.values() if len(sides) == 2]
    if not pairs:
        return {}
    shares = [a["seconds"]["training"] / b["seconds"]["training"] for a, b in pairs]
    steps = [shares_of_steps(a, b) for a, b in pairs]
    differences = [a["accuracy_after"]["value"] - b["accuracy_after"]["value"] for a, b in pairs]
    return {
        "share_of_seconds_median": statistics.median(shares),
        "share_of_seconds_max": max(shares),
        "share_of_median_step": [median_step(a) / median_step(b) for a, b in pairs],
        "median_pairs": [medians([seed]) for seed in steps],
        "median_of_all_pairs": medians(steps),
        "accuracy_difference": mean_interval(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--in_turn", action="store_true", help="both sides at once, by turns")
    parser.add_argument("--output", type=Path, default=HERE / "paths.json")
    arguments, extra = parser.parse_known_args()
    other = "before" if arguments.before else "trl"
    sides_run = {
        other: (arguments.before or HERE.parent, [] if arguments.before else ON_TRL_PATHS),
        "podsrl": (HERE.parent, []),
    }
    about = {"recipe": RECIPE.name}
    if arguments.before:
        about["before"] = commit_of(arguments.before)
    seeds = read_json(arguments.output)["seeds"] if arguments.output.exists() else {}
    for seed in arguments.seeds:
        sides = seeds.setdefault(str(seed), {})
        both = run_in_turn(sides_run, seed, extra) if arguments.in_turn and not sides else {}
        for side in sides_run if seed % 2 else reversed(sides_run):
            if side in sides:
                continue
            checkout, arm = sides_run[side]
            sides[side] = both.get(side) or run_side(checkout, seed, [*arm, *extra])
            content = {**about, "summary": summary(seeds, other), "seeds": seeds}
            write_json(arguments.output, content)
            seconds = sides[side]["seconds"]["training"]
            print(f"seed {seed}, {side}: {seconds:.0f} s of training", flush=True)


if __name__ == "__main__":
    main()
