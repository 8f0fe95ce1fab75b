"""The default recipe on TRL's sampling and update, then on ours: accuracy and training seconds.

    python benchmarks/paths.py            # about 20 minutes on 2 cores

Each side is a process of its own, one after the other. Both train for the recipe's steps with the
same seed; they draw different random numbers while sampling, so their accuracies differ as those
of two seeds do. A side that is run alone replaces its figures and leaves the other's: then compare
accuracies only, and take the ratio of seconds from step.json, whose arms alternate.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from podsrl.experiment.run_folder import read_json, write_json

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "arithmetic-smollm2.yaml"
SIDES = {"trl": ["--fast_sampling", "false", "--packed_update", "false"], "podsrl": []}


def run_side(options: list[str], extra: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        command = [sys.executable, "-m", "podsrl.cli", "train", str(RECIPE)]
        subprocess.run([*command, "--output_dir", str(target), *options, *extra], check=True)
        result = read_json(target / "result.json")
    kept = ("steps", "seed", "seconds", "gain_points", "versions")
    accuracy = {f"accuracy_{when}": result[when]["accuracy_greedy"] for when in ("before", "after")}
    return {key: result[key] for key in kept} | accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--output", type=Path, default=HERE / "paths.json")
    arguments, extra = parser.parse_known_args()
    content = read_json(arguments.output) if arguments.output.exists() else {"sides": {}}
    content["recipe"] = RECIPE.name
    for name in arguments.sides:
        content["sides"][name] = run_side(SIDES[name], extra)
        write_json(arguments.output, content)
        print(name, content["sides"][name]["seconds"])


if __name__ == "__main__":
    main()
