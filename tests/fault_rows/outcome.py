"""What a run left behind, compared with what the uninterrupted run left."""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_rows.server import Ended

# Measured anew in every run; everything else must be the same to the last bit.
MEASURED = ("time/", "memory/", "step_time", "train_", "epoch_seconds")


@dataclass(frozen=True)
class Left:
    """The results of a finished run."""

    weights: str
    metrics: tuple[str, ...]
    rollouts: tuple[str, ...]
    accuracies: str
    steps: int


def left_by(folder: Path) -> Left:
    """Read what a finished run left; OSError or ValueError where it is not whole."""
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return Left(
        weights=hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest(),
        metrics=tuple(map(_without_measured, metrics_of(folder))),
        rollouts=tuple(
            gzip.decompress((folder / "rollouts.jsonl.gz").read_bytes()).split(b"\n")[1:]
        ),  # type: ignore[arg-type]
        accuracies=json.dumps([_accuracy(result, when) for when in ("before", "after")]),
        steps=result["steps"],
    )


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; none where the file is missing."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def differences(folder: Path, expected: Left) -> str | None:
    """Name what differs from the uninterrupted run; None where nothing does."""
    try:
        found = left_by(folder)
    except (OSError, ValueError, KeyError) as error:
        return f"not finished: {type(error).__name__}: {error}"[:200]
    parts = [name for name in vars(expected) if getattr(found, name) != getattr(expected, name)]
    return f"other {', '.join(parts)}" if parts else None


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoint folders there, whole or not."""
    names = [path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if name.isdigit())


def refused_in_one_line(ended: Ended) -> str | None:
    """None for status 2 and a message of one line; else what is wrong with the refusal."""
    if ended.timed_out:
        return "hung"
    if ended.has_traceback:
        return f"traceback: {last_line(ended)}"
    if ended.status != 2:
        return f"not refused: status {ended.status}"
    lines = [line for line in ended.text.splitlines() if line.startswith("podsrl")]
    return None if lines else f"no message: {last_line(ended)}"


def last_line(ended: Ended) -> str:
    """The last line that the command printed, shortened."""
    lines = [line for line in ended.text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "(nothing printed)"


def _without_measured(row: dict[str, Any]) -> str:
    kept = {key: value for key, value in row.items() if not key.startswith(MEASURED)}
    return json.dumps(kept, sort_keys=True)


def _accuracy(result: dict[str, Any], when: str) -> Any:
    return {k: v for k, v in result.get(when, {}).items() if k != "seconds"}
