"""Signals: at once where nothing is lost, else after the step; a worker's end is one, too."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from transformers import TrainerControl

from podsrl.runs.callbacks import WORKER, StopAndSave
from podsrl.runs.stop import STOP_SIGNALS, Stop, Stopped


def ends(stop: Stop) -> bool:
    control = TrainerControl()
    StopAndSave(stop).on_step_end(None, None, control)  # type: ignore[arg-type]
    assert control.should_save == control.should_training_stop
    return control.should_training_stop


@pytest.fixture()
def stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WORKER, raising=False)
    stop = Stop()
    stop.listen()
    yield stop
    stop.release()


def test_a_run_outlives_its_worker_by_one_step(monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    assert not ends(stop)
    monkeypatch.setenv(WORKER, str(os.getppid()))
    assert not ends(stop)
    monkeypatch.setenv(WORKER, str(os.getppid() + 1))  # as after the worker has gone
    assert ends(stop) and stop.asked


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_signal_ends_the_run_after_its_step(stop: Stop, name: str) -> None:
    number = getattr(signal, name)
    assert signal.getsignal(number) == stop._hear  # or the next line would end the tests
    assert not ends(stop)
    signal.raise_signal(number)
    assert ends(stop)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_every_signal_breaks_off_what_can_be_begun_anew(stop: Stop, number: signal.Signals) -> None:
    with pytest.raises(Stopped), stop.at_once():
        signal.raise_signal(number)
        raise AssertionError("went on")
    with pytest.raises(Stopped), stop.at_once():
        raise AssertionError("began what was to be broken off")


def test_the_second_ctrl_c_ends_it_now_and_a_scheduler_s_second_word_does_not(stop: Stop) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)  # torchrun adds it to the terminal's Ctrl-C
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_released_signals_are_those_from_before() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    stop = Stop()
    stop.listen()
    assert all(signal.getsignal(number) == stop._hear for number in STOP_SIGNALS)
    stop.release()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_run_in_a_thread_hears_nothing() -> None:
    stop = Stop()
    thread = threading.Thread(target=stop.listen)
    thread.start()
    thread.join()
    assert stop._previous == {}


def test_nohup_is_heeded_and_a_hung_up_terminal_answers_no_more() -> None:
    """Under nohup SIGHUP changes nothing; without it what is printed after it goes nowhere."""
    script = """
import os, pty, signal, sys
from podsrl.runs.stop import Stop
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
stop = Stop()
stop.listen()
signal.raise_signal(signal.SIGHUP)
sys.exit(stop.asked)
"""
    told = [
        subprocess.run([sys.executable, "-c", script, how], timeout=60).returncode
        for how in ("nohup", "plain")
    ]
    assert told == [0, 1]
