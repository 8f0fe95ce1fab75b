"""Which weights the runs of a comparison start from, so that runs of other ones do not join them.

A script that trains a small model makes another one on another processor, under the same name.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin")


def digests_of_weights(models: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the weights of each model that is a local folder, hexadecimal.

    Over the names and contents of its *.safetensors and *.bin files in alphabetical order. Models
    of a hub, and the packaged one, are known by their names and left out; so is a folder without
    such a file.

    Example: {"runs/adder": "9f86d081884c7d65..."}.
    """
    found = {}
    for name in dict.fromkeys(models):
        folder = Path(name).expanduser()
        paths = sorted(path for kind in WEIGHTS for path in folder.glob(kind))
        if paths:
            digest = hashlib.sha256()
            for path in paths:
                with path.open("rb") as file:
                    digest.update(f"{path.name} {path.stat().st_size}\n".encode())
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            found[name] = digest.hexdigest()
    return found


def check_weights(old: dict[str, str], new: dict[str, str], path: Path) -> None:
    """Raise `ValueError` where a model has other weights than `path` was begun with."""
    for model in sorted(set(old) & set(new)):
        if old[model] != new[model]:
            raise ValueError(
                f"model {model} has other weights (SHA-256 {new[model][:8]}...) than {path} was "
                f"begun with ({old[model][:8]}...): bring the old ones back, or name another "
                "output_dir"
            )
