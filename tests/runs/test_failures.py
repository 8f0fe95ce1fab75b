"""Whatever ends a run early, what it has trained is kept, and it says how to go on."""

import errno
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import HashStore

from helpers.faulty import at_call
from helpers.tiny_runs import NUM_STEPS, flags, learned, rows_of, same_model
from podsrl.cli.train import main
from podsrl.runs import boundary, callbacks, evaluations, training
from podsrl.runs.boundary import is_disk_full
from podsrl.runs.deadline import Pace, in_time
from podsrl.runs.folder import read_json

Resume = Callable[..., int]


@pytest.fixture()
def train(tiny_folder: str, sums: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """A run that saves nothing before its end."""

    def start(**more: Any) -> tuple[int, Path]:
        folder = tmp_path / "run"
        status = main(flags(tiny_folder, sums, folder, **{"save_strategy": "no", **more}))
        return status, folder

    return start


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def fail(_: list[float]) -> list[float]:
    raise RuntimeError("the judge is down")


def leave(rewards: list[float]) -> list[float]:
    sys.exit(3)


def infinity(rewards: list[float]) -> list[float]:
    return [math.inf, *rewards[1:]]


def hang(_: list[float]) -> list[float]:
    time.sleep(300)
    raise AssertionError


def end(_: list[float]) -> list[float]:
    signal.raise_signal(signal.SIGTERM)
    return _


@pytest.mark.parametrize(
    ("act", "words", "more"),
    [
        (fail, "RuntimeError: the judge is down", {}),
        (infinity, "ValueError: ", {}),
        (leave, "SystemExit: 3", {}),
        (hang, "took over 1 seconds", {"reward_timeout_seconds": 1}),
    ],
    ids=["raises", "infinite", "exits", "hangs"],
)
def test_a_reward_function_that_fails_costs_its_step(
    act: Callable[[list[float]], list[float]],
    words: str,
    more: dict[str, Any],
    train: Callable[..., tuple[int, Path]],
    resume: Resume,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The third step fails; the run goes on after the second, to the bits of one that did not."""
    with monkeypatch.context() as patch:
        at_call(patch, 3, act)
        status, folder = train(**more)
    error = capfd.readouterr().err
    assert status == 1
    last = error.splitlines()[-1]
    assert words in last and "step 3 failed" in last and "saved in checkpoint-2" in last
    assert "To go on: podsrl train" in last and last.endswith("--resume")
    assert checkpoints(folder) == ["checkpoint-2"] and not list(folder.glob("claim-*"))
    assert resume(folder, save_strategy="no", **more) == 0
    assert same_model(folder / "model", finished / "model")
    assert learned(folder) == learned(finished)


def test_a_failure_in_the_first_step_leaves_nothing_behind(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, 1, fail)
        status, folder = train()
    assert status == 1 and not folder.exists()
    assert "No step is saved; to begin again: podsrl train" in capfd.readouterr().err


def test_weights_that_are_no_numbers_are_not_saved(
    train: Callable[..., tuple[int, Path]], capfd: Any
) -> None:
    """Decay by 1e38 x 100 in one step: infinite when the step's checkpoint is due."""
    more = {"save_strategy": "steps", "save_steps": 1}
    status, folder = train(learning_rate="1e38", weight_decay=100, **more)
    last = capfd.readouterr().err.splitlines()[-1]
    assert status == 1
    assert "the weights hold NaN or infinity, which a lower learning_rate may avoid" in last
    assert checkpoints(folder) == [] and not (folder / "model").exists()


def test_an_error_that_such_weights_lead_to_is_told_by_its_cause(
    train: Callable[..., tuple[int, Path]], capfd: Any
) -> None:
    """Nothing is saved before the second step, which cannot sample from them."""
    status, folder = train(learning_rate="1e38", weight_decay=100)
    last = capfd.readouterr().err.splitlines()[-1]
    assert status == 1 and checkpoints(folder) == []
    assert "step 2 failed: the weights hold NaN or infinity" in last


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_called_so_and_costs_a_step(
    train: Callable[..., tuple[int, Path]],
    resume: Resume,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """metrics.jsonl cannot take the line of step 3; a checkpoint of it finds room."""
    append = callbacks.append_lines

    def append_or_fail(path: Path, records: list[dict[str, Any]]) -> bool:
        return full() if records[0]["step"] == 3 else append(path, records)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "append_lines", append_or_fail)
        status, folder = train()
    error = capfd.readouterr().err
    assert status == 1 and "the disk is full (no space left on device)" in error
    assert "Traceback" not in error and "saved in checkpoint-3" in error
    assert resume(folder, save_strategy="no") == 0
    assert same_model(folder / "model", finished / "model")


def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(
    tiny_folder: str, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    save = training.PODSTrainer._save_rng_state

    def save_or_fail(trainer: Any, output: str) -> None:
        return full() if output.endswith("-4") else save(trainer, output)

    monkeypatch.setattr(training.PODSTrainer, "_save_rng_state", save_or_fail)
    assert main(flags(tiny_folder, sums, tmp_path / "run")) == 1
    error = capfd.readouterr().err
    assert "the disk is full" in error and "the newest whole one is checkpoint-2" in error
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]


def test_a_full_disk_is_known_by_whatever_error_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_disk_full(OSError(errno.ENOSPC, ""), tmp_path)
    assert is_disk_full(OSError(errno.EDQUOT, ""), tmp_path)
    safetensors = RuntimeError("I/O error: No space left on device (os error 28)")
    assert is_disk_full(safetensors, tmp_path)
    try:
        try:
            full()
        except OSError as error:
            raise RuntimeError("writing failed") from error
    except RuntimeError as error:
        assert is_disk_full(error, tmp_path)
    torch_s = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 42048")
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"), tmp_path)
    assert not is_disk_full(torch_s, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20 - 1))
    assert is_disk_full(torch_s, tmp_path)


def test_an_error_amid_an_update_saves_no_weights_of_no_step(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    calls: list[int] = []

    def fail_in_third(self: Any, *_: Any, **__: Any) -> None:
        calls.append(1)
        self.in_update = True
        if len(calls) == 3:
            raise RuntimeError("device lost")

    monkeypatch.setattr(boundary.StepBoundary, "on_pre_optimizer_step", fail_in_third)
    status, folder = train()
    assert status == 1 and checkpoints(folder) == []
    assert "in the midst of an update" in capfd.readouterr().err


# Signals -------------------------------------------------------------------------------------


def test_a_signal_in_training_ends_it_after_the_step(
    train: Callable[..., tuple[int, Path]],
    resume: Resume,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, 3, end)
        status, folder = train()
    assert status == 130 and checkpoints(folder) == ["checkpoint-3"]
    assert resume(folder, save_strategy="no") == 0
    assert same_model(folder / "model", finished / "model")
    assert learned(folder) == learned(finished)


def test_a_signal_before_the_first_step_leaves_nothing_behind(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_evaluate", lambda *_: signal.raise_signal(signal.SIGTERM))
    status, folder = train()
    assert status == 130 and not folder.exists()


@pytest.mark.parametrize("moment", ["last step", "saving", "evaluating"])
def test_a_signal_at_the_end_loses_nothing(
    moment: str,
    train: Callable[..., tuple[int, Path]],
    resume: Resume,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    with monkeypatch.context() as patch:
        if moment == "last step":
            at_call(patch, NUM_STEPS, end)
        name = {"saving": "save_trained", "evaluating": "_evaluate"}.get(moment)
        if name is not None:
            run = getattr(training, name)

            def act(*args: Any) -> None:
                if args[-1] != "before":
                    signal.raise_signal(signal.SIGHUP)
                run(*args)

            patch.setattr(training, name, act)
        status, folder = train()
    assert status == 130 and "To go on" in capsys.readouterr().out
    assert checkpoints(folder) == ["checkpoint-4"] and not (folder / "result.json").exists()
    assert resume(folder, save_strategy="no") == 0
    assert read_json(folder / "result.json")["steps"] == NUM_STEPS
    assert same_model(folder / "model", finished / "model")
    assert learned(folder) == learned(finished)
    assert checkpoints(folder) == []  # it was kept for the end alone


def test_the_last_step_is_saved_before_the_last_evaluation_of_a_curve(
    train: Callable[..., tuple[int, Path]], resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal breaks the evaluation after the last step off; --resume makes up for it once."""
    more = {"evaluate_every_seconds": 1000}
    evaluate = evaluations.evaluate
    calls: list[Any] = []

    def break_off(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", break_off)
        status, folder = train(**more)
    assert status == 130 and checkpoints(folder) == ["checkpoint-4"]
    assert [row["step"] for row in rows_of(folder, "curve.jsonl")] == [0]
    assert resume(folder, save_strategy="no", **more) == 0
    rows = rows_of(folder, "curve.jsonl")
    assert [(row["step"], row["mark_seconds"]) for row in rows] == [(0, 0.0), (4, None)]
    assert rows[1]["reward"] is not None
    assert (folder / "after" / "evaluation.json").exists()


def test_an_evaluation_whose_row_is_written_is_not_repeated(
    train: Callable[..., tuple[int, Path]], resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the row of the last evaluation and the result."""
    more = {"evaluate_every_seconds": 0.01, "save_strategy": "steps", "save_steps": 1}

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "result_of", killed)
        status, folder = train(**more)
    assert status == 130
    rows = rows_of(folder, "curve.jsonl")
    assert resume(folder, **more) == 0
    assert rows_of(folder, "curve.jsonl") == rows
    assert {row["step"] for row in rows} == {0, 1, 2, 3, 4}
    assert read_json(folder / "result.json")["after"] is not None


def test_an_evaluation_that_a_signal_breaks_off_is_made_up(
    train: Callable[..., tuple[int, Path]], resume: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step 2 of 4; every mark has its row in the end, measured at the step that passed it."""
    more = {"evaluate_every_seconds": 0.01}
    evaluate = evaluations.evaluate
    calls: list[Any] = []

    def break_off(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", break_off)
        status, folder = train(**more)
    assert status == 130
    assert checkpoints(folder) == ["checkpoint-2"]
    assert resume(folder, save_strategy="no", **more) == 0
    rows = rows_of(folder, "curve.jsonl")
    assert {row["step"] for row in rows} == {0, 1, 2, 3, 4}
    marks = [row["mark_seconds"] for row in rows if row["mark_seconds"] is not None]
    assert marks == pytest.approx([0.01 * k for k in range(len(marks))])


# Time limits ---------------------------------------------------------------------------------


def test_a_reward_function_in_time_is_as_it_was() -> None:
    def double(completions: list[str], **_: Any) -> list[float]:
        return [2.0 * len(text) for text in completions]

    limited = in_time(double, 5.0)
    assert limited.__name__ == "double"
    assert limited(completions=["a", "bb"]) == [2.0, 4.0]
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_the_time_limit_grows_with_the_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(completions: list[str], **_: Any) -> None:
        time.sleep(20)

    monkeypatch.setattr("podsrl.runs.deadline.SECONDS", 0.1)
    monkeypatch.setattr("podsrl.runs.deadline.SECONDS_PER_ROLLOUT", 0.2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"wait, of 2 rollouts, took over 0\.5 seconds"):
        in_time(wait, None)(completions=["a", "b"])
    assert time.monotonic() - start < 10


def pauses(monkeypatch: pytest.MonkeyPatch, behind: float) -> Callable[..., float]:
    """A reward function that takes as long as its first completion says."""
    monkeypatch.setattr("podsrl.runs.deadline.SECONDS_BEHIND", behind)
    monkeypatch.setattr("podsrl.runs.deadline.LOOK_SECONDS", 0.05)

    def pause(completions: list[float], **_: Any) -> float:
        time.sleep(completions[0])
        return completions[0]

    return pause


def test_a_call_is_late_that_the_other_processes_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, done after 0.1 and 0.2 seconds; 0.3 more are allowed, 31 for one rollout."""
    store, function = HashStore(), pauses(monkeypatch, 0.3)
    Pace(store, 0, 3).tell(0.1)
    Pace(store, 2, 3).tell(0.2)
    words = r"1 rollouts, took over 1 sec.*done after 0\.2: .*set reward_timeout_seconds"
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=words):
        in_time(function, None, Pace(store, 1, 3))(completions=[20.0])
    assert 0.5 <= time.monotonic() - start < 10


def test_a_slow_call_is_not_late_where_the_others_are_slow_or_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, function = HashStore(), pauses(monkeypatch, 0.1)
    others = [Pace(store, 0, 3), Pace(store, 2, 3)]
    limited = in_time(function, None, Pace(store, 1, 3))
    for pace in others:
        pace.tell(0.6)
    assert limited(completions=[0.8]) == 0.8  # twice the slowest are 1.2
    others[0].tell(0.0)
    assert limited(completions=[0.5]) == 0.5  # one of them is at its second call, too
    others[1].tell(0.0)
    for pace in others:
        pace.tell(0.0)
    assert limited(completions=[0.0]) == 0.0
    assert float(store.get("2/1")) < 0.1  # told to the others, as call 2 of process 1


def test_a_limit_of_one_s_own_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store, function = HashStore(), pauses(monkeypatch, 0.1)
    Pace(store, 1, 2).tell(0.0)
    assert in_time(function, 5.0, Pace(store, 0, 2))(completions=[0.5]) == 0.5


def test_a_call_that_keeps_python_to_itself_ends_the_process() -> None:
    """A regular expression that backtracks for years; no thread of Python runs meanwhile."""
    script = """
import re
from podsrl.runs import deadline
deadline.GRACE_SECONDS = 0.2
deadline.in_time(lambda completions: re.match("(a+)+$", "a" * 60 + "b"), 0.2)(completions=[])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Timeout (0:00:00.6" in done.stderr
