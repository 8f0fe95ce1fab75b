"""podsrl plan RUN_FOLDER: from what a run has measured, with nothing to load."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.questions import given

if TYPE_CHECKING:
    from rich.console import Console


def plan_from_run(options: argparse.Namespace, console: "Console") -> int:
    """Plan from the files of a run; `ValueError` for flags that ask for something to be run."""
    unfit = ["--check"] if options.check else [f"--{name}" for name in given(options)]
    if unfit:
        raise ValueError(
            f"{unfit[0]} needs a recipe, and {options.recipe} is the folder of a run: leave it out"
        )
    check_output(options)
    import torch

    from podsrl.plan.from_run import plan_run
    from podsrl.plan.measure import memory_gib

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figure = Path(options.figure) if options.figure else None
    lines, content = plan_run(
        Path(options.recipe), options.pilot, memory_gib(device), figure=figure
    )
    console.print("\n".join(lines))
    console.print(f"{write_plan(content, options)} written")
    return 0


def check_output(options: argparse.Namespace) -> None:
    """Raise `ValueError` where another plan would be written over."""
    if (Path(options.output) / "plan.json").exists() and not options.overwrite:
        raise ValueError(
            f"{options.output} holds a plan: choose another --output, or pass --overwrite"
        )


def write_plan(content: dict[str, Any], options: argparse.Namespace) -> Path:
    """Write plan.json, and --json where it is asked for; return the former."""
    from podsrl.runs.folder import write_json

    path = Path(options.output) / "plan.json"
    write_json(path, content)
    if options.json:
        write_json(Path(options.json), content)
    return path
