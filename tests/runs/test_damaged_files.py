"""Files of a run other than checkpoints, damaged before --resume: mended, said or refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_runs import learned, same_model
from podsrl.runs.folder import is_json, read_json
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog, read_rollouts

Resume = Callable[..., int]


def test_a_torn_evaluation_is_made_anew(half: Path, finished: Path, resume: Resume) -> None:
    path = half / "before" / "evaluation.json"
    path.write_bytes(path.read_bytes()[:300])
    assert not is_json(path) and not is_json(half / "none.json")
    assert resume(half) == 0
    before = [read_json(folder / "before/evaluation.json") for folder in (half, finished)]
    assert before[0]["accuracy_greedy"] == before[1]["accuracy_greedy"]
    assert same_model(half / "model", finished / "model") and learned(half) == learned(finished)


@pytest.mark.parametrize("name", ["metrics.jsonl", FILE_NAME])
def test_what_is_lost_for_good_is_said(
    name: str, half: Path, finished: Path, resume: Resume, caplog: pytest.LogCaptureFixture
) -> None:
    (half / name).write_bytes(bytes(400))
    with caplog.at_level(logging.WARNING, logger="podsrl"):
        assert resume(half) == 0
    assert f"{name} " in caplog.text and "steps 1 to 2: it was damaged" in caplog.text
    assert same_model(half / "model", finished / "model")


def test_a_whole_run_says_nothing(
    half: Path, resume: Resume, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="podsrl"):
        assert resume(half) == 0
    assert "it was damaged" not in caplog.text


def test_a_bad_line_is_refused_before_anything_is_trained(
    half: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    path = half / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "lo\n' + path.read_bytes())
    content = path.read_bytes()
    assert resume(half) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl, line 1 is not JSON" in error and error.count("\n") == 1
    assert path.read_bytes() == content


def test_batches_of_several_steps_leave_no_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One batch for steps 1 and 2, the next begins at 3: nothing is missing; at 5 there is."""
    group: dict[str, Any] = {"rewards": [0.0], "kept": [1]}
    path = tmp_path / FILE_NAME
    RolloutLog(path, every=2).write(1, [group])
    RolloutLog(path, every=2).write(3, [group])
    assert not caplog.text
    path.unlink()
    RolloutLog(path, every=2).write(5, [group])
    assert "holds no rollouts of steps 1 to 4" in caplog.text
    assert [record["step"] for record in read_rollouts(path)[1]] == [5]
