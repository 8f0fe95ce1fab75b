"""podsrl tune: look for the settings that learn most at equal training time, and confirm them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from podsrl.cli.parser import VerbParser, errors_in_one_line, names
from podsrl.extras import need

if TYPE_CHECKING:
    from rich.console import Console

    from podsrl.tune.tuning import Tuning

DESCRIPTION = """Look for the n, m, learning rate and other settings with which a recipe learns most
in the same seconds of training or the same optimizer steps: so many short runs, each chosen by what
the earlier ones scored. Then run the best three and the recipe itself on fresh seeds, and say
whether any of them is better."""
EXAMPLES = """A search is a YAML file:

  recipe: recipes/arithmetic-smollm2.yaml     # or a mapping: what all trials have in common
  space:
    num_rollouts: {low: 8, high: 64, scale: log}      # n, whole numbers
    num_generations: [4, 8, 16]                       # m, any list of values
    learning_rate: {low: 1.0e-6, high: 1.0e-4, scale: log}
    beta: [0, 0.01, 0.1]
  trials: 24                                  # the first is the recipe, the next four at random
  training_seconds: 120                       # of each run; or budget: steps and max_steps
  output_dir: runs/tune-arithmetic
  plan: plan/plan.json                        # optional: what podsrl plan predicted of n and m
  confirm_settings: 3                         # the best three and the recipe,
  confirm_seeds: 4                            # each with so many fresh seeds

examples:
  podsrl tune my.yaml --dry_run           what would run, and how long
  podsrl tune my.yaml                     search and confirm
  podsrl tune my.yaml --devices 0,1,2,3   one trial at a time on each GPU

The score of a trial is its mean accuracy over the evaluations after its start. m above n and a
batch of no whole groups are never tried. Ctrl-C saves; the same command goes on, and several of it
share the work, also on other hosts that see the folder. results.jsonl in it has a line for each
trial, confirmed.json what was confirmed, best.yaml the recipe of the winner if there is one.
`podsrl report OUTPUT/confirm` draws its curves. docs/tune.md has the rest."""


@errors_in_one_line("tune")
def main(argv: list[str] | None) -> int:
    """Search and confirm; 0 when all is done, 1 with failed runs, 2 bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    need("sklearn", "podsrl tune")
    _check_names(Path(options.file))
    from rich.console import Console

    from podsrl.cli.train import quieten
    from podsrl.tune.tuning import load_tuning, write_tuning

    quieten()
    tuning = load_tuning(Path(options.file))
    console = Console(highlight=False)
    if options.dry_run:
        _print_plan(tuning, console)
        return 0
    write_tuning(tuning)
    from podsrl.tune.screen import work_on_search

    return work_on_search(
        tuning, devices=options.devices, retry_failed=options.retry_failed, console=console
    )


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("tune", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("file", metavar="FILE.yaml", help="the search")
    add("--devices", type=names, metavar="0,1", help="one run at a time on each of these GPUs")
    add("--dry_run", action="store_true", help="print what would run and start nothing")
    add("--retry_failed", action="store_true", help="run once more what has failed")
    return parser


def _check_names(path: Path) -> None:
    """Refuse names that no run has before what knows all else of them, and takes seconds, loads."""
    from podsrl.cli.flags import check_recipe
    from podsrl.runs.checks import read_yaml

    content = read_yaml(path) if path.is_file() else {}
    for name in ("recipe", "space"):
        settings = content.get(name)
        if isinstance(settings, dict):
            check_recipe(settings, where=name)


def _print_plan(tuning: "Tuning", console: "Console") -> None:
    from podsrl.tune.screen import told

    trials = tuning.trials()
    num_confirm = (tuning.num_confirmed + 1) * tuning.num_confirm_seeds * bool(tuning.num_confirmed)
    console.print(f"recipe: {told(tuning.recipe_values)}", soft_wrap=True)
    for name, dimension in tuning.search.space.dimensions.items():
        console.print(f"  {name}: {dimension}", soft_wrap=True)
    for trial in trials:
        console.print(f"  {trial.name}  {trial.state}  {told(trial.values)}", soft_wrap=True)
    done = sum(trial.state in ("finished", "failed") for trial in trials)
    console.print(
        f"{tuning.num_trials - done} of {tuning.num_trials} trials to do, then {num_confirm} runs "
        f"to confirm, {tuning.budget} each",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
