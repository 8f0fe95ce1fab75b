"""Which checkpoints are whole: with a manifest byte for byte, without one file by file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from podsrl.runs.checkpoints import (
    MANIFEST,
    checkpoints,
    fault,
    newest_whole,
    num_processes_of,
    read_manifest,
    step_of,
    write_manifest,
)

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "config.json",
    "training_args.bin",
)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One bit in the middle, as a failing disk does it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def zero(path: Path) -> None:
    """As long as it was, without content: what a lost power leaves."""
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.fixture()
def checkpoint(half: Path) -> Path:
    return half / "checkpoint-2"


@pytest.mark.parametrize("has_manifest", [True, False])
def test_what_training_has_saved_is_whole(checkpoint: Path, has_manifest: bool) -> None:
    if not has_manifest:
        (checkpoint / MANIFEST).unlink()
    assert fault(checkpoint) is None
    assert newest_whole(checkpoint.parent) == (checkpoint, [])
    assert step_of(checkpoint) == 2 and num_processes_of(checkpoint) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, empty, flip, zero, Path.unlink], ids=lambda f: f.__name__)
def test_with_a_manifest_every_damage_shows(
    checkpoint: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint / name)
    assert fault(checkpoint) is not None
    assert newest_whole(checkpoint.parent)[0] is None


# Without a manifest nothing names config.json and training_args.bin, and no step needs them: that
# they are removed cannot be seen.
UNSEEN = {(Path.unlink, "config.json"), (Path.unlink, "training_args.bin")}


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        pytest.param(damage, name, id=f"{damage.__name__}-{name}")
        for damage in (cut, empty, zero, Path.unlink)
        for name in FILES
        if (damage, name) not in UNSEEN
    ],
)
def test_without_one_every_file_must_be_there_and_readable(
    checkpoint: Path, name: str, damage: Callable[[Path], None]
) -> None:
    (checkpoint / MANIFEST).unlink()
    damage(checkpoint / name)
    # Tensors of zeros are tensors, and only a manifest tells them from those that were written.
    if damage is zero and name == "model.safetensors":
        assert "model.safetensors" in str(fault(checkpoint))  # its header is zero, too
    assert fault(checkpoint) is not None


def test_a_missing_shard_shows(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fault(checkpoint) == "model-2.safetensors is missing"


def test_the_newest_whole_one_is_taken_by_number_and_the_others_are_named(half: Path) -> None:
    for step in (9, 10):
        shutil.copytree(half / "checkpoint-2", half / f"checkpoint-{step}")
    (half / "checkpoint-final").mkdir()  # not ours
    (half / "checkpoint-10" / "optimizer.pt").unlink()
    assert [path.name for path in checkpoints(half)] == [
        "checkpoint-10",
        "checkpoint-9",
        "checkpoint-2",
    ]
    newest, skipped = newest_whole(half)
    assert newest == half / "checkpoint-9"
    assert skipped == ["checkpoint-10: the optimizer's state is missing"]


def test_a_manifest_keeps_what_it_is_told(checkpoint: Path) -> None:
    write_manifest(checkpoint, questions="abc")
    content = read_manifest(checkpoint)
    assert content["questions"] == "abc" and MANIFEST not in content["files"]
    assert content["files"]["optimizer.pt"]["bytes"] == (checkpoint / "optimizer.pt").stat().st_size
    assert fault(checkpoint) is None


def test_a_damaged_manifest_is_damage(checkpoint: Path) -> None:
    cut(checkpoint / MANIFEST)
    assert fault(checkpoint) == "manifest.json cannot be read"


def test_random_states_tell_the_number_of_processes(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert num_processes_of(checkpoint) == 2
