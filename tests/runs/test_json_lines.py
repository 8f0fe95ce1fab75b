"""Files of JSON lines after a kill at the worst moment, and cut back for a resumed run."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.sample_rollouts import HEADER, batch, write_log
from podsrl.runs.callbacks import MetricsFile
from podsrl.runs.folder import read_metrics, write_json
from podsrl.runs.json_lines import append_lines, keep_until, read_lines, rewrite_lines
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog, read_rollouts

NAMES = ("metrics.jsonl", "rollouts.jsonl.gz")
ROWS = [{"step": step, "text": "a\u2028b\n"} for step in (1, 2, 3)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_added_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert list(read_lines(path)) == []
    assert append_lines(path, ROWS[:1]) and append_lines(path, ROWS[1:])
    assert list(read_lines(path)) == ROWS


@pytest.mark.parametrize("name", NAMES)
def test_every_torn_end_loses_the_torn_lines_alone(tmp_path: Path, name: str) -> None:
    """Cut at each byte: what is read is a beginning of what was written, and never an error."""
    path = tmp_path / name
    append_lines(path, ROWS[:2])
    whole_before = path.stat().st_size
    append_lines(path, ROWS[2:])
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        rows = list(read_lines(path))
        assert rows == ROWS[: len(rows)]
        assert len(rows) >= (2 if size >= whole_before else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tail", [b"\0" * 64, b"\x1f\x8b\x08\xff\xff", b'{"step": 4'])
def test_what_a_lost_power_leaves_at_the_end_is_left_out(
    tmp_path: Path, name: str, tail: bytes
) -> None:
    path = tmp_path / name
    append_lines(path, ROWS)
    with path.open("ab") as file:
        file.write(tail)
    assert list(read_lines(path)) == ROWS
    keep_until(path, 2)
    append_lines(path, ROWS[2:])
    assert list(read_lines(path)) == ROWS


@pytest.mark.parametrize("name", NAMES)
def test_cut_back_to_a_step(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    append_lines(path, ROWS)
    keep_until(path, 2)
    assert list(read_lines(path)) == ROWS[:2]
    keep_until(path, 0)
    assert not path.exists()


def test_a_whole_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not JSON"):
        list(read_lines(path))


def test_a_limit_is_never_passed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [{"step": 1}])  # 12 bytes
    assert not append_lines(path, [{"step": 2}], limit_bytes=23)
    assert append_lines(path, [{"step": 2}], limit_bytes=24)
    assert path.stat().st_size == 24


def test_a_rewrite_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_lines(path, ROWS)
    with pytest.raises(TypeError):
        rewrite_lines(path, [{"step": 1}, {"step": object()}])
    assert list(read_lines(path)) == ROWS


def test_json_is_written_beside_and_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"steps": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}


def test_a_torn_line_of_metrics_does_not_stop_a_resume(tmp_path: Path) -> None:
    """Steps 1 and 2, a torn third; a run that resumes after 1 goes on with a new 2."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    callback = MetricsFile(tmp_path)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, logging_steps=1)
    args = SimpleNamespace(logging_strategy="steps")
    callback.on_train_begin(args, state, None)  # type: ignore[arg-type]
    state.global_step = 2
    callback.on_log(None, state, None, {"loss": 0.3})  # type: ignore[arg-type]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.3}]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 400, gzip.compress(b'{"form')], ids=["empty", "zeros", "torn"]
)
def test_a_rollout_log_without_a_whole_line_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    RolloutLog(path, HEADER).write(3, batch(3))
    assert [row["step"] for row in read_rollouts(path)[1]] == [3, 3, 3, 3]


def test_a_rollout_log_with_garbage_behind_goes_on(tmp_path: Path) -> None:
    path = write_log(tmp_path, steps=2) / FILE_NAME
    path.write_bytes(path.read_bytes() + b"no member of gzip")
    RolloutLog(path, HEADER).write(2, batch(2))
    assert [row["step"] for row in read_rollouts(path)[1]] == [1] * 4 + [2] * 4
