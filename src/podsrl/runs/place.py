"""The folder that a run writes into: nobody else's, and the same on all of its processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from podsrl.runs.callbacks import is_of_worker
from podsrl.runs.claims import Claim, forget_claims, try_claim
from podsrl.runs.folder import RUN_FILES

Answer = TypeVar("Answer")


def new_folder(wanted: Path) -> tuple[Path, Claim | None]:
    """Return the wanted folder, or the first of NAME-2, NAME-3, ... that is nobody's, claimed.

    Without a claim where a comparison's worker started this process: the claim is then its own.

    Example: where runs/sums holds a run it is runs/sums-2.
    """
    folder, number = wanted, 1
    while True:
        if not holds_run(folder):
            if is_of_worker():
                return folder, None
            claim = try_claim(folder)
            # Another run may have begun and ended in it between the look and the claim.
            if claim is not None and not holds_run(folder):
                return folder, claim
            if claim is not None:
                forget_claims(folder)
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in the folder."""
    return any((folder / name).exists() for name in RUN_FILES)


def from_main_process(choose: Callable[[], Answer]) -> Answer:
    """Return on all processes what the main one chooses; its error is one on all, and none waits.

    Raises: ValueError for the ValueError or OSError of the main process, where there are several.
    """
    if PartialState().num_processes == 1:
        return choose()
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = choose()
        except (ValueError, OSError) as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise ValueError(answer[1])
    chosen: Answer = answer[0]
    return chosen
