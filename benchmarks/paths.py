"""The default recipe on TRL's sampling and update and on ours: accuracy and training seconds.

    python benchmarks/paths.py            # 20 to 25 minutes a seed on 2 cores

Every run is a process of its own, one after the other, and the side that goes first changes from
seed to seed. Both sides train for the recipe's steps with the same seed; they draw different random
numbers while sampling, so their accuracies differ as those of two seeds do. The JSON grows by one
run at a time; runs that it holds already are not repeated.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from podsrl.experiment.run_folder import read_json, write_json
from podsrl.intervals import mean_interval

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "arithmetic-smollm2.yaml"
SIDES = {"trl": ["--fast_sampling", "false", "--packed_update", "false"], "podsrl": []}


def run_side(side: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """One training run of the recipe, evaluated before and after, in a folder that is discarded."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        command = [sys.executable, "-m", "podsrl.cli", "train", str(RECIPE), "--seed", str(seed)]
        subprocess.run([*command, "--output_dir", str(target), *SIDES[side], *extra], check=True)
        result = read_json(target / "result.json")
    kept = {key: result[key] for key in ("seed", "steps", "seconds", "gain_points", "versions")}
    accuracy = {f"accuracy_{when}": result[when]["accuracy_greedy"] for when in ("before", "after")}
    return {"side": side, **kept, **accuracy}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Our training seconds over TRL's, and our accuracy minus TRL's in points, seed by seed."""
    by_side = {side: {r["seed"]: r for r in runs if r["side"] == side} for side in SIDES}
    seeds = [seed for seed in by_side["trl"] if seed in by_side["podsrl"]]
    pairs = [(by_side["podsrl"][seed], by_side["trl"][seed]) for seed in seeds]
    if not pairs:
        return {}
    shares = [a["seconds"]["training"] / b["seconds"]["training"] for a, b in pairs]
    points = [100 * (a["accuracy_after"]["value"] - b["accuracy_after"]["value"]) for a, b in pairs]
    return {
        "num_seeds": len(seeds),
        "share_of_seconds_median": statistics.median(shares),
        "share_of_seconds_max": max(shares),
        "accuracy_difference_points": mean_interval(points),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=HERE / "paths.json")
    arguments, extra = parser.parse_known_args()
    runs = read_json(arguments.output)["runs"] if arguments.output.exists() else []
    done = {(run["side"], run["seed"]) for run in runs}
    for seed in arguments.seeds:
        for side in list(SIDES) if seed % 2 else reversed(SIDES):
            if (side, seed) in done:
                continue
            runs.append(run_side(side, seed, extra))
            write_runs(arguments.output, runs)
            seconds = runs[-1]["seconds"]["training"]
            print(f"seed {seed}, {side}: {seconds:.0f} s of training", flush=True)
    write_runs(arguments.output, runs)


def write_runs(path: Path, runs: list[dict[str, Any]]) -> None:
    write_json(path, {"recipe": RECIPE.name, "summary": summary(runs), "runs": runs})


if __name__ == "__main__":
    main()
