"""The flags that say what is asked and how, which all verbs share that ask anything."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from podsrl.runs.folder import FROM_PYTHON, read_json
from podsrl.tasks.questions import (
    DATA_SETTINGS,
    NAMES_OF_DATA,
    QuestionArguments,
    is_own_data,
)

NAMES = tuple(each.name for each in fields(QuestionArguments))


def add_question_flags(parser: argparse.ArgumentParser, *but: str) -> None:
    """Add a flag for every field of `QuestionArguments` but these; those not given leave no trace.

    Example: `--system-prompt "Be brief."` becomes `system_prompt` of the options.
    """
    group = parser.add_argument_group("what is asked, and how")
    for each in fields(QuestionArguments):
        if each.name in but:
            continue
        hint = get_type_hints(QuestionArguments)[each.name]
        kind: dict[str, Any] = {"nargs": "+"} if "list[" in str(hint) else {}
        if "float" in str(hint):
            kind["type"] = float
        group.add_argument(
            f"--{each.name.replace('_', '-')}",
            dest=each.name,
            default=argparse.SUPPRESS,
            metavar=each.name.rpartition("_")[2].upper(),
            help=each.metadata["help"].replace("%", "%%"),
            **kind,
        )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_question_flags` that were given, by name of their settings."""
    return {name: value for name, value in vars(options).items() if name in NAMES}


def as_trained(model: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the settings with those of the run whose model this is, and a line that says so.

    A run's model stands in RUN/model, or is the run folder's checkpoint, beside its config.json.
    Of a run the same questions are put in the same way, but for what `settings` say. With other
    data the prompts are still the run's; with another task nothing is, but for a user's own data,
    whether of `jsonl` or `dataset`. A run of a script has only what the script knows.

    Example: for a model of a run with `system_prompt`, `{}` becomes all that its training asked.
    """
    path = Path(model).parent / "config.json"
    if not (Path(model).is_dir() and path.is_file()):
        return dict(settings), None
    config = read_json(path)
    run = {name: config[name] for name in NAMES if config.get(name) is not None}
    before, now = run.get("task"), settings.get("task")
    if now is None and any(name in settings for name in NAMES_OF_DATA):
        now = "dataset"
    if before in (None, FROM_PYTHON) or (now is not None and not _alike(before, now)):
        return dict(settings), None
    if now not in (None, before) or any(name in settings for name in ("data", *NAMES_OF_DATA)):
        run = {name: value for name, value in run.items() if name not in DATA_SETTINGS}
        run["task"] = now or before
    return run | dict(settings), f"questions and prompts as in {path}"


def _alike(one: str, other: str) -> bool:
    """Whether the questions of one task can be put as those of the other are."""
    return one == other or (is_own_data(one) and is_own_data(other))
