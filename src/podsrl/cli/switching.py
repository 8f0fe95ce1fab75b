"""podsrl evaluate with several models: each one's figures, and those of switching between them."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podsrl.evaluate import Evaluation


def check_models(options: argparse.Namespace) -> None:
    """Raise `ValueError` where --model, --samples and --switch do not go together."""
    several = len(options.model) > 1
    if several and options.switch is None and options.mixture is None:
        raise ValueError(
            f"--model is given {len(options.model)} times: add --switch 1.0 (the next model is "
            "asked where the samples of one do not all agree) or --mixture collab, or evaluate "
            "them one by one"
        )
    if options.switch is not None and options.samples < 1:
        raise ValueError("--switch compares samples, but --samples is 0: give --samples 8, say")
    if options.switch is not None and not options.switch >= 0:
        raise ValueError(
            f"--switch is {options.switch}: give a share of agreeing samples, 0 to 1, or more than "
            "1 to ask every model always"
        )


def evaluate_all(
    options: argparse.Namespace, evaluate_one: Callable[[str, int], "Evaluation"], output: Path
) -> tuple[list["Evaluation"], dict[str, Any]]:
    """Evaluate one model after the other, and write each one's files and `switch.json`.

    evaluate_one: takes a model and the seed of its draws, which is another for each: the same
        model twice is to answer twice.

    Returns the evaluations and what `switch.json` holds.
    """
    from podsrl.switch import switched

    evaluations = []
    for number, model in enumerate(options.model):
        evaluations.append(evaluate_one(model, options.seed + number))
        evaluations[-1].save(output / f"model-{number + 1}")
    figures = switched(
        [_of_samples(each, _answer) for each in evaluations],
        [_of_samples(each, lambda sample: bool(sample["correct"])) for each in evaluations],
        threshold=options.switch,
    )
    settings = {"models": options.model, "num_samples": options.samples, "switch": options.switch}
    content = {"settings": evaluations[0].settings | settings, **figures}
    del content["settings"]["model"]
    (output / "switch.json").write_text(json.dumps(content, indent=2) + "\n")
    return evaluations, content


def _of_samples(evaluation: "Evaluation", of: Callable[[dict[str, Any]], Any]) -> list[list[Any]]:
    return [[of(sample) for sample in each["samples"]] for each in evaluation.problems]


def _answer(sample: dict[str, Any]) -> str | None:
    from podsrl.rewards.answers import normalise

    return None if sample["answer"] is None else normalise(sample["answer"])


def print_switch(content: dict[str, Any], output: Path) -> None:
    """Print what switching does, beside every model alone and all together."""
    from rich.console import Console
    from rich.table import Table

    settings, num = content["settings"], content["settings"]["num_samples"]
    title = f"switch at {settings['switch']:g}, {settings['task']}, {settings['split']} split"
    table = Table(title=title, caption=f"{content['num_problems']} problems, the same draws")
    for column in ("vote", "samples", "right", "95 % interval", "switch minus it"):
        table.add_column(column, justify="left" if column == "vote" else "right")
    for number in range(len(settings["models"])):
        of = content["majority"][number], content["minus_majority"][number]
        table.add_row(f"maj@{num} of model {number + 1}", str(num), *cells(*of))
    most = str(content["most_samples"])
    table.add_row("all, plain", most, *cells(content["all"]))
    table.add_row(
        "all, weighted", most, *cells(content["all_weighted"], content["minus_all_weighted"])
    )
    samples = f"{content['mean_samples']['value']:.1f}"
    table.add_row("switch", samples, *cells(content["switch"]))
    console = Console()
    console.print(table)
    shares = ", ".join(f"{100 * share:.0f} %" for share in content["settled_by"])
    console.print(f"settled by the models in turn: {shares}; written to {output}", soft_wrap=True)


def cells(figure: dict[str, Any], difference: dict[str, Any] | None = None) -> Sequence[str]:
    """A share, its interval, and how much another is above it, as a table shows them."""
    low, high = (f"{100 * figure[end]:.1f} %" for end in ("low", "high"))
    cells = [f"{100 * figure['value']:.1f} %", f"{low} to {high}"]
    if difference is None:
        return [*cells, ""]
    if difference["low"] is None:
        return [*cells, f"{100 * difference['value']:+.1f}"]
    ends = " to ".join(f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
    return [*cells, f"{100 * difference['value']:+.1f} ({ends})"]
