"""Several processes: one that fails ends them all, and the same number goes on to the same bits."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from helpers.commands import TESTS, in_processes
from helpers.forked import run_together
from helpers.tiny_runs import flags, learned, same_model
from podsrl.runs.checkpoints import newest_whole, num_processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def train(how: str, words: list[str], logs: Path) -> tuple[int, str, float]:
    """Status, what was printed, and seconds from the checkpoint of the second step to the end."""
    script = [TESTS / "helpers" / "train_processes.py", how, *words]
    status, shown = run_together(script, 2, logs, timeout_seconds=300)
    folder = Path(words[len(words) - 1 - words[::-1].index("--output_dir") + 1])
    saved = folder / "checkpoint-2" / "trainer_state.json"
    return status, shown, time.time() - saved.stat().st_mtime


def test_torchrun_ends_with_the_one_that_fails(words: list[str], tmp_path: Path) -> None:
    """As from a shell: what the others do without torchrun is the other tests' matter."""
    command, environment = in_processes("train_processes.py", 2)
    words = [*command, "raise", *words, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "the judge is down" in done.stdout + done.stderr
    checkpoint, _ = newest_whole(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"


@pytest.fixture(scope="module")
def words(tiny_folder: str, sums: Path) -> list[str]:
    more = {"per_device_train_batch_size": 4, "evaluate_limit": 0, "reward_timeout_seconds": 3}
    return flags(tiny_folder, sums, Path("run"), **more)


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "run"
    status, shown, _ = train("none", [*words, "--output_dir", str(folder)], folder.parent / "logs")
    assert status == 0, shown
    return folder


@pytest.mark.parametrize("how", ["hang", "kill", "raise"])
def test_one_that_fails_ends_all_and_the_run_goes_on(
    how: str, words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second process of two fails in step 3, after the checkpoint of step 2."""
    own = [*words, "--output_dir", str(tmp_path / "run")]
    status, shown, seconds = train(how, own, tmp_path / "logs")
    assert status != 0 and seconds < 60, shown
    checkpoint, _ = newest_whole(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-2", shown
    assert num_processes_of(checkpoint) == 2
    if how == "hang":
        assert "took over 3 seconds" in shown
    if how != "raise":
        return
    status, shown, _ = train("none", [*own, "--resume"], tmp_path / "resumed")
    assert status == 0, shown
    assert same_model(tmp_path / "run" / "model", whole / "model")
    assert learned(tmp_path / "run") == learned(whole)


def test_a_hang_of_one_ends_the_run_within_a_minute_at_the_default_limit(
    words: list[str], tmp_path: Path
) -> None:
    """64 rollouts a process have 94 seconds; the other process was done after a moment."""
    own = [*words, "--output_dir", str(tmp_path / "run"), "--num_rollouts", "64"]
    place = own.index("--reward_timeout_seconds")
    del own[place : place + 2]
    status, shown, seconds = train("hang", own, tmp_path / "logs")
    assert status != 0 and seconds < 60, shown
    checkpoint, _ = newest_whole(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-2", shown
    told = [line for line in shown.splitlines() if line.startswith("podsrl train: step 3 failed")]
    (late,) = [line for line in told if "reward_timeout_seconds" in line]
    # 30 seconds beyond the slowest other process, which takes one itself on a busy machine.
    assert re.search("of 64 rollouts, took over 3[0-4] seconds, where all other processes", late)
    assert "saved in checkpoint-2" in late


def test_another_number_of_processes_is_told(
    words: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from podsrl.cli.train import main

    (whole / "result.json").unlink()
    assert main([*words, "--output_dir", str(whole), "--resume"]) == 2
    assert "number of processes 2 -> 1" in capsys.readouterr().err
