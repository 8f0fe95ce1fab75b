"""podsrl compare: run the arms of a comparison at equal wall-clock."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from podsrl.cli.parser import VerbParser, errors_in_one_line, names
from podsrl.cli.questions import add_question_flags, given

if TYPE_CHECKING:
    from podsrl.compare.comparison import Comparison, PlannedRun

DESCRIPTION = """Train every arm of a comparison with every seed for the same seconds of training or
the same optimizer steps, and evaluate all of them on the same held-out questions on the way."""
EXAMPLES = """A comparison is a YAML file:

  recipe: recipes/arithmetic-smollm2.yaml     # or a mapping: what all arms have in common
  arms:
    grpo: {}                                  # preset: n = m
    grpo-ga: {}                               # preset: trains on all n, by gradient accumulation
    pods: {}                                  # the recipe as it is: keeps m of n
    pods-random: {selection_rule: random}     # any setting of podsrl train
  seeds: 4                                    # 0 to 3; or a list
  training_seconds: 120                       # per run: sampling, rewards, selection, update
  evaluate_every_seconds: 30
  output_dir: runs/arithmetic-comparison

or, in place of the seconds, steps, which repeat to the bit whatever else the machine does:

  budget: steps
  max_steps: 200                              # per run
  evaluate_every_steps: 20

examples:
  podsrl compare recipes/compare-arithmetic.yaml --dry_run    the list of runs, and how long
  podsrl compare recipes/compare-arithmetic.yaml
  podsrl compare recipes/compare-arithmetic.yaml --arms pods --seeds 0,1
  podsrl compare by-steps.yaml --time_steps                   seconds per step, measured alone
  podsrl compare recipes/compare-arithmetic.yaml --devices 0,1,2,3    one run per GPU

Runs go seed by seed, each in a process of its own, into OUTPUT/ARM/seed-S. Finished runs are never
repeated: start the same command again to go on after Ctrl-C or a crash, or start it several times,
also on other hosts that share the folder: each run is taken by one of them. Flags of what is asked
win over the recipe that all arms have in common; what an arm says itself wins over them.
docs/compare.md has the rest."""


@errors_in_one_line("compare")
def main(argv: list[str] | None) -> int:
    """Run what is left; 0 when all is done, 1 with failed runs, 2 bad input, 130 for Ctrl-C."""
    options = _parser().parse_args(argv)
    _check_names(Path(options.file))
    from podsrl.cli.train import quieten
    from podsrl.compare.comparison import load_comparison, write_comparison

    quieten()
    comparison = load_comparison(Path(options.file), given(options))
    runs = comparison.runs(options.arms, options.seeds)
    from rich.console import Console

    console = Console(highlight=False)
    if options.time_steps:
        return _time_steps(comparison, runs, console)
    if not options.dry_run:
        write_comparison(comparison)
    if options.dry_run:
        _print_plan(comparison, runs, console)
        return 0
    from podsrl.compare.screen import work_on

    return work_on(
        comparison,
        runs,
        devices=options.devices,
        retry_failed=options.retry_failed,
        console=console,
    )


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("compare", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("file", metavar="FILE.yaml", help="the comparison")
    add("--arms", type=names, metavar="A,B", help="only these arms")
    add("--seeds", type=_numbers, metavar="S,T", help="only these seeds")
    add("--devices", type=names, metavar="0,1", help="one run at a time on each of these GPUs")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry_run", action="store_true", help="print the list of runs and start nothing"
    )
    instead.add_argument(
        "--time_steps",
        action="store_true",
        help="by steps: measure seconds per step, the arms in turn, into seconds_per_step.json",
    )
    add("--retry_failed", action="store_true", help="run once more what has failed")
    add_question_flags(parser)
    return parser


def _numbers(text: str) -> list[int]:
    return [int(name) for name in names(text)]


def _check_names(path: Path) -> None:
    """Refuse names that no run has before what knows all else of them, and takes seconds, loads."""
    from podsrl.cli.flags import check_recipe
    from podsrl.runs.checks import read_yaml

    content = read_yaml(path) if path.is_file() else {}
    arms = content.get("arms")
    parts = {"recipe": content.get("recipe")} | (arms if isinstance(arms, dict) else {})
    for name, settings in parts.items():
        if isinstance(settings, dict):
            if name != "recipe":  # which names no preset: those are of arms
                settings = {key: value for key, value in settings.items() if key != "preset"}
            check_recipe(settings, where=name if name == "recipe" else f"arm {name}")


def _time_steps(comparison: "Comparison", runs: "list[PlannedRun]", console) -> int:  # type: ignore[no-untyped-def]
    from podsrl.compare.step_times import time_steps

    try:
        time_steps(comparison, runs, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing was written")
        return 130
    return 0


def _print_plan(comparison: "Comparison", runs: "list[PlannedRun]", console) -> None:  # type: ignore[no-untyped-def]
    from podsrl.compare.queue import state_of
    from podsrl.compare.screen import print_arms

    print_arms(comparison, console)
    states = [state_of(run) for run in runs]
    for run, state in zip(runs, states, strict=True):
        console.print(f"  {run.folder}  {state}", soft_wrap=True)
    left = sum(state in ("to do", "half done") for state in states)
    total = f"{left * comparison.budget.end:g} optimizer steps"
    if comparison.budget.unit == "seconds":
        total = f"{left * comparison.budget.end / 60:.1f} minutes of training on one device"
    console.print(
        f"{left} of {len(runs)} runs to do: {total}, evaluating and loading not counted",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
