"""One finished run of the tiny model that tests copy and damage."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_runs import flags, write_questions
from podsrl.cli.train import main


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("sums") / "sums.jsonl")


@pytest.fixture(scope="session")
def finished(tiny_folder: str, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, checkpoints after 2 and 4, model, two evaluations, a result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(flags(tiny_folder, sums, folder)) == 0
    return folder


@pytest.fixture()
def half(finished: Path, tmp_path: Path) -> Path:
    """The run as it was after step 2: killed in its third."""
    folder = tmp_path / "half"
    shutil.copytree(finished, folder)
    for name in ("checkpoint-4", "model", "after"):
        shutil.rmtree(folder / name)
    (folder / "result.json").unlink()
    return folder


@pytest.fixture()
def resume(tiny_folder: str, sums: Path) -> Callable[..., int]:
    """Go on with the run of a folder."""

    def go_on(folder: Path, *words: str, **more: Any) -> int:
        return main([*flags(tiny_folder, sums, folder, **more), "--resume", *words])

    return go_on
