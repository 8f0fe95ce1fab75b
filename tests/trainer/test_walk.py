"""The walk of benchmarks/walk.py: what a move, a file and a room are, and a real step's."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.harness import build

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "walk.py"


def load_script() -> ModuleType:
    """benchmarks/ is no package, so that its scripts are loaded by their path."""
    spec = importlib.util.spec_from_file_location("walk", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["walk"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


walk = load_script()


def function_in(file: str, *callees: Callable[[], Any]) -> Callable[[], Any]:
    """A function that calls the others in turn, as if it stood in that file of the package."""
    names: dict[str, Any] = {"callees": callees}
    path = walk.HOST_FILE if file == walk.HOST else str(walk.PACKAGE / file)
    source = "def function():\n for callee in callees:\n  callee()"
    exec(compile(source, path, "exec"), names)
    return names["function"]


def walked(function: Callable[[], Any], *, by_room: bool) -> list[str]:
    trace = walk.Walk(by_room)
    sys.setprofile(trace)
    try:
        function()
    finally:
        sys.setprofile(None)
    return trace.entered


def test_calls_and_returns_are_moves_and_calls_within_a_file_are_none() -> None:
    config = function_in("trl/config.py")
    own = function_in("trl/trainer.py", config)
    step = function_in("TRL", function_in("trl/trainer.py", own, own), config)
    # Down to the trainer and, twice, to config and back; up to TRL, down to config, up.
    expected = ["TRL", "trl/trainer.py", *["trl/config.py", "trl/trainer.py"] * 2]
    expected += ["TRL", "trl/config.py", "TRL"]
    assert walked(step, by_room=False) == expected
    assert walked(step, by_room=True) == expected


def test_a_room_is_entered_and_left_as_a_whole() -> None:
    attention = function_in("packing/attention.py")
    sample = function_in("sampling/sample.py", function_in("sampling/cache.py"), attention)
    choose = function_in("core/select.py", function_in("core/rules.py"))
    step = function_in("trl/trainer.py", sample, choose, function_in("packing/pack.py", attention))
    trainer = "trl/trainer.py"
    assert walked(step, by_room=True) == [
        trainer, "sampling/sample.py", trainer, "core/select+rules+order", trainer, "packing/",
        trainer,
    ]  # fmt: skip
    # Raw: two more moves for each of the four calls inside rooms, but two files are the same room.
    assert len(walked(step, by_room=False)) == 7 + 2 * 4


def test_what_a_room_calls_outside_of_rooms_is_walked() -> None:
    monitor = function_in("trl/early_stop.py", function_in("core/rules.py"))
    step = function_in("trl/sampling.py", function_in("sampling/sample.py", monitor))
    stop = "trl/early_stop.py"
    assert walked(step, by_room=True) == [
        "trl/sampling.py", "sampling/sample.py", stop, "core/select+rules+order", stop,
        "sampling/sample.py", "trl/sampling.py",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def step_by_room(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = build(tiny_folder, tmp_path_factory.mktemp("walk"), max_steps=1)
    return walk.walk_one_step(trainer, by_room=True)


def test_a_step_passes_through_all_its_rooms(step_by_room: Any) -> None:
    """Else the trace would have missed part of the step, and any bound would be met."""
    files = set(step_by_room.entered)
    assert {"TRL", "trl/trainer.py", "packing/", "core/select+rules+order"} <= files
    assert any(file.startswith("sampling/") for file in files)
    assert step_by_room.num_files == len(files) < step_by_room.num_moves


def test_a_default_step_is_a_short_walk(step_by_room: Any) -> None:
    """73 moves, one for the norm of the gradient; 60 before tools and environments."""
    assert step_by_room.num_moves <= 73, " > ".join(step_by_room.entered)
    assert step_by_room.num_files <= 15
