"""podsrl evaluate --mixture: several models that write one answer, beside each of them alone."""

import argparse
import json
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.switching import cells
from podsrl.models import load_model, load_tokenizer
from podsrl.tasks.base import Task

if TYPE_CHECKING:
    from podsrl.evaluate import Evaluation
    from podsrl.mixture import Mixture

MIXTURES = ("collab",)


def check_mixture(options: argparse.Namespace) -> None:
    """Raise `ValueError` where --mixture, --model, --probe and the others do not go together."""
    num = len(options.model)
    _check_pull(options)
    if options.mixture is None:
        if options.probe:
            raise ValueError(
                "--probe decides between models: add --mixture collab, or leave it out"
            )
        return
    if num < 2:
        raise ValueError(f"--mixture is of several models: give --model {num + 1} times or more")
    if options.switch is not None:
        raise ValueError("--mixture and --switch are two ways to use several models: choose one")
    if options.samples:
        raise ValueError(
            f"--samples is {options.samples}, but a mixture answers greedily: leave it out"
        )
    if len(options.probe) != num:
        raise ValueError(
            f"--mixture needs a head for each of the {num} models, in their order, but --probe is "
            f"given {len(options.probe)} times: podsrl probe fits one"
        )


def _check_pull(options: argparse.Namespace) -> None:
    alpha, reference = options.alpha, options.reference
    if not 0 <= alpha < inf:
        raise ValueError(f"--alpha is {alpha}: give 0 for no pull to a reference, or more")
    if (alpha > 0) != (reference is not None):
        raise ValueError(
            f"--alpha is {alpha} and --reference {reference}: the first says how strongly a "
            "mixture is pulled to the second, give both or neither"
        )
    if reference is not None and options.mixture is None:
        raise ValueError("--alpha pulls a mixture: add --mixture collab, or leave it out")


def evaluate_apart_and_mixed(
    options: argparse.Namespace,
    evaluate_one: Callable[[str, int], "Evaluation"],
    mix: Callable[[], "Mixture"],
    output: Path,
) -> tuple[list["Evaluation"], dict[str, Any]]:
    """Evaluate each model and their mixture, and write the files of each and `mixture.json`.

    Returns the models' evaluations and what `mixture.json` holds.
    """
    from podsrl.mixture import figures_of

    mixture, alone = mix(), []  # the mixture first: models that do not fit are refused there
    mixture.evaluation.save(output / "mixture")
    for number, model in enumerate(options.model, 1):
        alone.append(evaluate_one(model, options.seed))
        alone[-1].save(output / f"model-{number}")
    settings = {"models": options.model, "probes": options.probe, "mixture": options.mixture}
    settings |= {"alpha": options.alpha, "reference": options.reference}
    content = {"settings": alone[0].settings | settings, **figures_of(mixture, alone)}
    del content["settings"]["model"]
    (output / "mixture.json").write_text(json.dumps(content, indent=2) + "\n")
    return alone, content


def mixture_of(
    options: argparse.Namespace, task: Task, place: tuple[str, str], prompts: dict[str, Any]
) -> "Mixture":
    """Answer with all models, which are in memory together.

    place: the device, and the precision of the weights. prompts: settings that say how it is asked.
    """
    from rich.console import Console

    from podsrl.mixture import evaluate_mixture
    from podsrl.probe.head import load_prefix_heads
    from podsrl.progress import progress_bar
    from podsrl.sampling.mixture import Agent, Pull

    device, dtype = place
    references = [] if options.reference is None else [options.reference]
    tokenizers = [load_tokenizer(name) for name in [*options.model, *references]]
    agents, pull = [], None
    for name in references:
        reference: Any = load_model(name, dtype=dtype)
        pull = Pull(reference.to(device), options.alpha)
    for name, head in zip(options.model, load_prefix_heads(options.probe), strict=True):
        model: Any = load_model(name, dtype=dtype).to(device)
        head.check(model)
        agents.append(Agent(model, head.about.layer, head.to(device).score))
    with progress_bar(Console(), "answers") as report:
        mixture = evaluate_mixture(
            agents,
            tokenizers,
            task,
            split=options.split,
            limit=options.limit or None,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            pull=pull,
            progress=report,
        )
    model_names = " + ".join(options.model)
    mixture.evaluation.settings.update(model=model_names, dtype=dtype, device=device, **prompts)
    return mixture


def print_mixture(content: dict[str, Any], output: Path) -> None:
    """Print what the mixture does beside each of its models alone."""
    from rich.console import Console
    from rich.table import Table

    settings, num = content["settings"], len(content["settings"]["models"])
    title = f"{settings['mixture']}, {settings['task']}, {settings['split']} split"
    table = Table(title=title, caption=f"{content['num_problems']} problems, greedy answers")
    names = ("answers of", "tokens read", "right", "95 % interval", "mixture minus it")
    for column in names:
        table.add_column(column, justify="left" if column == names[0] else "right")
    for i in range(num):
        read = f"{content['tokens_read_alone'][i]:.1f}"
        figures = cells(content["alone"][i], content["minus_alone"][i])
        table.add_row(f"model {i + 1}", read, *figures)
    read = f"{sum(content['tokens_read']):.1f}"
    table.add_row("mixture", read, *cells(content["mixture"]))
    console = Console()
    console.print(table)
    console.print(_whose(content) + f"; written to {output}", soft_wrap=True)


def _whose(content: dict[str, Any]) -> str:
    agreed = f"all models agree on {100 * content['share_agreed']:.0f} % of the tokens"
    shares = content["share_chosen"]
    if shares[0] is None:
        return agreed
    each = ", ".join(
        f"model {i} {100 * share:.0f} %" for i, share in enumerate(content["share_chosen"], 1)
    )
    return f"{agreed}; the others are of {each}"
