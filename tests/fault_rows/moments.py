"""Named moments in a run, at which its child can be killed or signalled.

A moment is a change to the run folder (a file opened for writing, renamed or removed, a folder
made), the begin or end of a tensor file's writing, or of an evaluation. The hook sits in the child
and sees each before it happens.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link",
    "shutil.rmtree", "shutil.move",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OnMoment = Callable[[int, str], None]


def watch(folder: Path, on_moment: OnMoment) -> None:
    """Call `on_moment(number, name)` at each moment of this process; numbers count from 0."""
    # The run may take another name near the one it was given, and write beside it before.
    prefix, parent = folder.name, str(folder.parent)
    count = 0
    busy = False

    def happened(name: str) -> None:
        nonlocal count, busy
        if busy:
            return
        busy = True
        try:
            number, count = count, count + 1
            on_moment(number, name)
        finally:
            busy = False

    def relative(path: Any) -> str | None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | os.PathLike):
            return None
        text = os.path.abspath(os.fspath(path))
        if not text.startswith(f"{parent}/"):
            return None
        rest = text[len(parent) + 1 :]
        return rest if rest.lstrip(".").startswith(prefix) else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = relative(arguments[0])
        if path is not None:
            happened(f"{event} {path}")

    sys.addaudithook(hook)
    _announce_tensor_files(lambda word, path: happened(f"{word} {relative(path) or path}"))
    _announce_evaluations(happened)


def list_moments(folder: Path, listing: Path) -> Callable[[], None]:
    """A setup that writes the name of each moment to a file, one JSON text per line."""

    def setup() -> None:
        file = os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        watch(folder, lambda _, name: os.write(file, (json.dumps(name) + "\n").encode()) and None)

    return setup


def read_moments(listing: Path) -> list[str]:
    """The names that `list_moments` wrote."""
    return [json.loads(line) for line in listing.read_text("utf-8").splitlines()]


def at_moment(
    folder: Path, matches: Callable[[int, str], bool], act: Callable[[], None]
) -> Callable[[], None]:
    """A setup that calls `act` in the child, once, at the first moment that matches."""

    def setup() -> None:
        done = False

        def on_moment(number: int, name: str) -> None:
            nonlocal done
            if not done and matches(number, name):
                done = True
                act()

        watch(folder, on_moment)

    return setup


def nth(pattern: str, which: int = 1) -> Callable[[int, str], bool]:
    """Matches the which-th moment whose name the pattern is found in; counts in its child."""
    seen = 0

    def matches(_: int, name: str) -> bool:
        nonlocal seen
        seen += re.search(pattern, name) is not None
        return seen == which

    return matches


def kind_of(name: str) -> str:
    """checkpoint, model, evaluation, or other: what the run was doing."""
    if name.startswith("evaluation"):
        return "evaluation"
    parts = name.split(" ", 1)[1].split("/")[1:] if " " in name else []
    first = parts[0].lstrip(".") if parts else ""
    for kind, prefixes in {
        "checkpoint": ("checkpoint", "tmp-checkpoint"),
        "model": ("model",),
        "evaluation": ("before", "after"),
    }.items():
        if first.startswith(prefixes):
            return kind
    return "other"


def _announce_tensor_files(happened: Callable[[str, Any], None]) -> None:
    """torch and safetensors write past Python, unseen by its audit hooks."""
    import safetensors.torch
    import torch

    def announced(function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path = args[place] if len(args) > place else None
            happened("before", path)
            result = function(*args, **kwargs)
            happened("behind", path)
            return result

        return call

    torch.save = announced(torch.save, 1)
    safetensors.torch.serialize_file = announced(safetensors.torch.serialize_file, 1)


def _announce_evaluations(happened: Callable[[str], None]) -> None:
    import podsrl.sampling.complete as room

    complete = room.complete

    def announced(*args: Any, **kwargs: Any) -> Any:
        happened("evaluation begins")
        result = complete(*args, **kwargs)
        happened("evaluation ends")
        return result

    room.complete = announced  # type: ignore[assignment]
