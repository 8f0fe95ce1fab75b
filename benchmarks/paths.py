"""The default recipe on TRL's sampling and update, then on ours: accuracy and training seconds.

    python benchmarks/paths.py            # about 20 minutes on 2 cores

Each side is a process of its own, one after the other on the otherwise idle machine. Both train
for the recipe's steps with the same seed; they draw different random numbers while sampling, so
their accuracies differ as those of two seeds do.
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
    parser.add_argument("--output", type=Path, default=HERE / "paths.json")
    arguments, extra = parser.parse_known_args()
    sides = {name: run_side(options, extra) for name, options in SIDES.items()}
    seconds = {name: side["seconds"]["training"] for name, side in sides.items()}
    content = {
        "recipe": RECIPE.name,
        "sides": sides,
        "frac_training_seconds": seconds["podsrl"] / seconds["trl"],
    }
    write_json(arguments.output, content)
    print(f"training seconds: {seconds}, share {content['frac_training_seconds']:.2f}")


if __name__ == "__main__":
    main()
