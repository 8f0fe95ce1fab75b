"""podsrl evaluate --mixture: several models that write one answer, beside each of them alone."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.switching import cells
from podsrl.models import load_model, load_tokenizer
from podsrl.tasks.base import Task

if TYPE_CHECKING:
    from podsrl.evaluate import Evaluation
    from podsrl.mixture import Mixture
    from podsrl.probe.head import Head

MIXTURES = ("collab",)
PREFIX = "prefix"
"""Where a head must have been fitted that values answers as they are written."""


def check_mixture(options: argparse.Namespace) -> None:
    """Raise `ValueError` where --mixture, --model, --probe and the others do not go together."""
    num = len(options.model)
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


def load_heads(paths: Sequence[str]) -> list["Head"]:
    """The heads, each better than chance, also among answers to one question.

    Raises `ValueError` for others, for one that was not fitted to answers as they are written, and
    for heads that predict different things.
    """
    from podsrl.probe.head import load_head

    heads = [load_head(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if head.about.at != PREFIX:
            raise ValueError(
                f"the head {path} was fitted at the {head.about.at} token, but a mixture values "
                f"answers as they are written: fit one to prefixes, podsrl probe --at {PREFIX}"
            )
        if not head.about.tells_within:
            raise ValueError(
                f"the head {path} is not shown to tell right from wrong among answers to one "
                "question, as a mixture must: the interval of its AUROC there begins at "
                f"{head.about.within_low}"
            )
        if head.about.label != heads[0].about.label:
            raise ValueError(
                f"the head {path} predicts {head.about.label!r} and the first "
                f"{heads[0].about.label!r}, which do not compare: fit both to the same"
            )
    return heads


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
    from podsrl.progress import progress_bar
    from podsrl.sampling.mixture import Agent

    device, dtype = place
    agents, tokenizers = [], [load_tokenizer(name) for name in options.model]
    for name, head in zip(options.model, load_heads(options.probe), strict=True):
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
