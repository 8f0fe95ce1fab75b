"""Checkpoints of a run: which of them are whole, and the newest of these.

A checkpoint is whole when its manifest, which is written after all of its files, agrees with every
one of them in size and SHA-256. Where there is no manifest (an older run, or a process that was
killed before it was written) every file must be there and readable to its end.
"""

import hashlib
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from podsrl.runs.folder import read_json, write_json

MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"

# What a training step needs besides the weights, by the names that transformers, FSDP and
# DeepSpeed give it: (what it is, patterns of which one must be there).
NEEDED = (
    ("the weights", ("*.safetensors", "pytorch_model*", "adapter_model*", "global_step*")),
    ("the optimizer's state", ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")),
    ("the scheduler's state", ("scheduler.pt", "global_step*")),
    ("the random state", ("rng_state*.pth",)),
    (STATE, (STATE,)),
)


def write_manifest(checkpoint: Path, **about: Any) -> None:
    """Say of every file how large it is and what it holds; to be written last.

    about: more to keep of the run, such as the fingerprint of its questions.
    """
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in _files(checkpoint)
    }
    write_json(checkpoint / MANIFEST, {"files": files, **about})


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """What `write_manifest` wrote; empty for an older checkpoint."""
    path = checkpoint / MANIFEST
    return read_json(path) if path.is_file() else {}


def fault(checkpoint: Path) -> str | None:
    """Return what keeps a run from going on from this checkpoint; None where it is whole.

    Example: "optimizer.pt has 0 bytes, not 1204".
    """
    for what, patterns in NEEDED:
        if not any(next(checkpoint.glob(pattern), None) for pattern in patterns):
            return f"{what} is missing"
    try:
        files = read_manifest(checkpoint).get("files")
    except ValueError:
        return f"{MANIFEST} cannot be read"
    if files is None:
        return next(filter(None, map(_unreadable, _files(checkpoint))), _missing_shard(checkpoint))
    for name, expected in files.items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, not {expected['bytes']}"
        if _digest(path) != expected["sha256"]:
            return f"{name} is not what was written"
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders of a run, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted((path for path in found if path.is_dir()), key=step_of, reverse=True)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint of a run, and what is wrong with those newer than it."""
    skipped: list[str] = []
    for path in checkpoints(folder):
        wrong = fault(path)
        if wrong is None:
            return path, skipped
        skipped.append(f"{path.name}: {wrong}")
    return None, skipped


def step_of(checkpoint: Path) -> int:
    """The step after which it was saved: 8 of checkpoint-8."""
    return int(checkpoint.name.rpartition("-")[2])


def num_processes_of(checkpoint: Path) -> int:
    """How many processes saved it: each has a random state of its own."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def size_gib(checkpoint: Path) -> float:
    """What its files take on the disk."""
    return sum(path.stat().st_size for path in _files(checkpoint)) / 2**30


def _files(checkpoint: Path) -> list[Path]:
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return [path for path in paths if path.name not in (MANIFEST, f"{MANIFEST}.part")]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path) -> str | None:
    """What is wrong with a file, read to its end by the rules of its format."""
    if path.stat().st_size == 0:
        return f"{path.name} is empty"
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            _read_header(path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:
                if (torn := archive.testzip()) is not None:
                    return f"{path.name} is damaged ({torn})"
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        return f"{path.name} cannot be read ({' '.join(str(error).split())})"
    return None


def _read_header(path: Path) -> None:
    """A safetensors file is a length, a JSON header with the place of each tensor, and these."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.path.getsize(path):
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected, size = 8 + length + max(ends, default=0), os.path.getsize(path)
    if size != expected:
        raise ValueError(f"{size} bytes, not {expected}")


def _missing_shard(checkpoint: Path) -> str | None:
    for index in checkpoint.glob("*.index.json"):
        for shard in sorted(set(read_json(index)["weight_map"].values())):
            if not (checkpoint / shard).is_file():
                return f"{shard} is missing"
    return None
