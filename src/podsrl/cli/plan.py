"""podsrl plan: measure a recipe on this machine and propose n, m and the micro-batch."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.flags import read_recipe
from podsrl.cli.parser import VerbParser, errors_in_one_line
from podsrl.cli.plan_run import check_output, plan_from_run, write_plan
from podsrl.cli.questions import add_question_flags, given
from podsrl.extras import need

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from podsrl.plan.fit import Costs, Point, Proposal
    from podsrl.plan.measure import Layout
    from podsrl.plan.progress import Progress

DESCRIPTION = """Measure what a training step of a recipe costs on this machine: seconds of sampling
for n rollouts per prompt, seconds and memory of the update on m. Sample a pilot of the recipe's
prompts, to know how often the model is right. Predict from both how many times as fast PODS and
GRPO of several sizes would be, say whether PODS pays here, and write a recipe with the n, m and
micro-batch that follow."""
EXAMPLES = """examples:
  podsrl plan recipes/arithmetic-smollm2.yaml                    about three minutes, writes plan/
  podsrl plan recipes/arithmetic-smollm2.yaml --pilot 0          two minutes: seconds alone
  podsrl plan recipes/arithmetic-smollm2.yaml --check            and three pairs (n, m) to test it
  podsrl plan my.yaml --seconds 300 --output plans/my            steadier figures
  podsrl plan runs/mine                                          from a run's files, in no time

Real training steps are run, with a learning rate of 0, at three pairs (n, m) in turn; nothing of
them is kept but the times. plan/plan.json holds points, fit, pilot and proposal, plan/recipe.yaml
is the recipe to train with; flags of what is asked win over the recipe and go into it. docs/plan.md
says how the proposal is made."""

FIGURES = (".png", ".svg", ".pdf")


@errors_in_one_line("plan")
def main(argv: list[str] | None) -> int:
    """Measure, propose, write; 0 done, 2 bad input, 130 stopped by Ctrl-C.

    What had been measured when Ctrl-C came is told and written, if it says anything.
    """
    options = _parser().parse_args(argv)
    _check_pilot(options)
    is_run = Path(options.recipe).is_dir()
    recipe_settings = {} if is_run else read_recipe(Path(options.recipe)) | given(options)
    from rich.console import Console

    from podsrl.cli.train import quieten

    console = Console(highlight=False, soft_wrap=True)
    quieten()
    if is_run:
        return plan_from_run(options, console)
    try:
        recipe, plan, device = _read(recipe_settings, options.pilot)
        check_output(options)
        return _plan(recipe, plan, device, options, console)
    except KeyboardInterrupt:
        console.print("stopped before there was anything to tell; nothing was written")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("plan", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what you would train, or a run")
    parser.add_argument("--output", default="plan", help="folder to write (default: plan)")
    parser.add_argument("--overwrite", action="store_true", help="replace the plan in --output")
    parser.add_argument(
        "--seconds",
        type=float,
        default=90.0,
        help="go on with rounds of measurements for this long (default: 90; one round at least)",
    )
    parser.add_argument(
        "--steps", type=int, default=2, help="counted steps per measurement (default: 2)"
    )
    parser.add_argument(
        "--pilot",
        type=int,
        default=64,
        metavar="PROMPTS",
        help="prompts to sample for the prediction of the gain (default: 64; 0: none)",
    )
    parser.add_argument(
        "--pilot-rollouts", type=int, default=8, help="rollouts of each of them (default: 8)"
    )
    parser.add_argument("--json", metavar="FILE", help="write what plan.json holds here, too")
    parser.add_argument("--figure", metavar="FILE", help="draw the predicted gains (.png, .svg)")
    parser.add_argument(
        "--check", action="store_true", help="measure three other pairs against the prediction"
    )
    add_question_flags(parser)
    return parser


def _check_pilot(options: argparse.Namespace) -> None:
    """Refuse, before minutes are spent, what could not be done with the pilot after them."""
    if options.pilot < 0 or options.pilot_rollouts < 2:
        raise ValueError(
            f"--pilot is {options.pilot} and --pilot-rollouts {options.pilot_rollouts}: give 0 or "
            "more prompts, and 2 or more rollouts"
        )
    if options.figure and not options.pilot:
        raise ValueError("--figure draws the pilot's prediction: leave --pilot 0 out")
    if options.figure:
        need("matplotlib", "--figure")
    if options.figure and Path(options.figure).suffix not in FIGURES:
        raise ValueError(f"--figure is {options.figure}: end it with {', '.join(FIGURES)}")


def _read(
    recipe: dict[str, Any], num_pilot: int
) -> tuple[dict[str, Any], "Layout", "torch.device"]:
    """The recipe's settings, checked as training would check them, its batch and its device."""
    from podsrl.plan.measure import layout
    from podsrl.runs.settings import parse_settings
    from podsrl.runs.training import check_options, load_questions
    from podsrl.tasks.turns import refuse_turns

    arguments, config, model_config = parse_settings(recipe)
    plan = layout(config)
    check_options(arguments, config, model_config)
    task, _ = load_questions(arguments, config.seed)
    if num_pilot:
        refuse_turns(
            task,
            f"--pilot {num_pilot} samples answers of one turn",
            "give --pilot 0, which measures the seconds alone",
        )
    return recipe, plan, config.device


def _plan(
    recipe: dict[str, Any],
    plan: "Layout",
    device: "torch.device",
    options: argparse.Namespace,
    console: "Console",
) -> int:
    from podsrl.plan.fit import as_json, fit, merge, points_to_measure, propose
    from podsrl.plan.measure import memory_gib
    from podsrl.plan.progress import Progress, told
    from podsrl.plan.tell import cost_line, proposal_lines
    from podsrl.runs.folder import device_name, versions

    console.print(f"{plan.num_prompts} prompts per step, on {device_name(device)}")
    progress = Progress(
        console.print,
        num_pilot=options.pilot * options.pilot_rollouts,
        num_prompts=plan.num_prompts,
        num_steps=options.steps,
        at_least_seconds=options.seconds,
    )
    pairs = points_to_measure(plan.num_rollouts, plan.num_kept)
    found, stopped = _measure(recipe, plan, pairs, options, progress)
    points = merge(found)
    costs = fit(points)
    console.print(cost_line(costs))
    memory = memory_gib(device)
    proposal = propose(costs, plan.num_kept, plan.num_prompts, memory)
    predicted: dict[str, Any] = {}
    if options.pilot and not stopped:
        try:
            predicted, proposal = _predict(recipe, plan, costs, memory, options, progress)
            stopped = predicted["pilot"]["stopped"]
        except KeyboardInterrupt:
            stopped = True
    content = as_json(points, costs, proposal) | predicted
    content |= {"versions": versions(device_name(device)), "stopped": stopped}
    for line in proposal_lines(costs, proposal, predicted=bool(predicted)):
        console.print(line)
    if options.check and not stopped:
        content["check"] = _check(recipe, plan, costs, options, progress)
    content["spent"] = progress.spent()
    console.print(told(content["spent"]))
    folder = Path(options.output)
    write_plan(content, options)
    _write_recipe(recipe, proposal, folder / "recipe.yaml")
    console.print(f"{folder / 'plan.json'} and {folder / 'recipe.yaml'} written")
    if stopped:
        console.print("stopped by Ctrl-C: all this is from what had been measured by then")
    return 130 if stopped else 0


def _predict(
    recipe: dict[str, Any],
    plan: "Layout",
    costs: "Costs",
    memory: float,
    options: argparse.Namespace,
    progress: "Progress",
) -> "tuple[dict[str, Any], Proposal]":
    """What a pilot says of each arm, told and for plan.json, and the arm to train with."""
    from podsrl.plan.fit import propose_arm
    from podsrl.plan.gain import advise, success_rates
    from podsrl.plan.measure import skips_dead_rows
    from podsrl.plan.pilot import run_pilot
    from podsrl.plan.tell import as_json, draw, lines, pilot_line

    progress.begin_pilot()
    pilot = run_pilot(recipe, options.pilot, options.pilot_rollouts, report=progress.pilot)
    rates = success_rates(pilot)
    free = skips_dead_rows(recipe)
    advice = advise(rates, pilot.noise, costs, plan.num_kept, memory, dead_rows_free=free)
    for line in (pilot_line(pilot), *lines(pilot, rates, advice)):
        progress.say(line)
    if options.figure:
        draw(advice, Path(options.figure))
    proposal = propose_arm(
        costs,
        advice.best.num_rollouts,
        advice.best.num_kept,
        plan.num_prompts,
        memory,
        pays=advice.pays,
        reasons=(advice.verdict,),
    )
    return as_json(pilot, rates, advice) | {"dead_rows_free": free}, proposal


def _measure(
    recipe: dict[str, Any],
    plan: "Layout",
    pairs: list[tuple[int, int]],
    options: argparse.Namespace,
    progress: "Progress",
) -> "tuple[list[Point], bool]":
    """All points, or those measured before Ctrl-C if a line can be laid through them."""
    from podsrl.plan.measure import measure_rounds

    points = []
    rounds = measure_rounds(
        recipe, plan, pairs, num_steps=options.steps, at_least_seconds=options.seconds
    )
    try:
        for point in rounds:
            progress.say(
                f"n = {point.num_rollouts}, m = {point.num_kept}: sampling "
                f"{point.sampling_seconds:.2f} s, update {point.update_seconds:.2f} s, peak memory "
                f"{point.peak_gib:.2f} GiB"
            )
            points.append(point)
            progress.measured(point, len(pairs))
    except KeyboardInterrupt:
        if {(p.num_rollouts, p.num_kept) for p in points} != set(pairs):
            raise
        return points, True
    return points, False


def _check(
    recipe: dict[str, Any],
    plan: "Layout",
    costs: "Costs",
    options: argparse.Namespace,
    progress: "Progress",
) -> list[dict[str, float]]:
    """Predicted against measured seconds at pairs that were not fitted, told and returned."""
    from podsrl.plan.fit import check, held_out_points, merge

    pairs = held_out_points(plan.num_rollouts, plan.num_kept)
    try:
        points, _ = _measure(recipe, plan, pairs, options, progress)
    except KeyboardInterrupt:  # the plan itself is whole
        return []
    rows = check(costs, merge(points))
    for row in rows:
        progress.say(
            f"n = {row['num_rollouts']}, m = {row['num_kept']}: predicted "
            f"{row['predicted_seconds']:.2f} s, measured {row['measured_seconds']:.2f} s "
            f"({100 * row['relative_error']:+.0f} %)"
        )
    return rows


def _write_recipe(recipe: dict[str, Any], proposal: "Proposal", path: Path) -> None:
    import yaml

    planned = {
        **recipe,
        "num_rollouts": proposal.num_rollouts,
        "num_generations": proposal.num_kept,
        "per_device_train_batch_size": proposal.micro_rows,
        "gradient_accumulation_steps": proposal.num_micro_batches,
    }
    header = "".join(f"# {line}\n" for line in ("Proposed by podsrl plan.", *proposal.reasons))
    path.write_text(header + yaml.safe_dump(planned, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
