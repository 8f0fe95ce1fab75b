"""A run that a worker started ends when the worker does."""

import os

import pytest
from rich.console import Console
from transformers import TrainerControl

from podsrl.runs.callbacks import WORKER, StopAndSave


def ends(stop: StopAndSave) -> bool:
    control = TrainerControl()
    stop.on_step_end(None, None, control)  # type: ignore[arg-type]
    assert control.should_save == control.should_training_stop
    return control.should_training_stop


def test_a_run_outlives_its_worker_by_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER, raising=False)
    assert not ends(StopAndSave(Console()))
    monkeypatch.setenv(WORKER, str(os.getppid()))
    stop = StopAndSave(Console())
    assert not ends(stop)
    monkeypatch.setenv(WORKER, str(os.getppid() + 1))  # as after the worker has gone
    assert ends(stop) and stop.stopped
