"""--resume: from the newest whole checkpoint to the same bits, or a line that says why not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.tiny_runs import NUM_STEPS, flags, learned, rows_of, same_model, write_questions
from podsrl.cli.train import main
from podsrl.report.read import read_comparisons
from podsrl.runs.changes import changed_settings, fingerprint, told
from podsrl.runs.claims import forget_claims, try_claim
from podsrl.runs.folder import read_json, write_json
from podsrl.runs.settings import SettingsParser
from podsrl.runs.training import prepare_run

Resume = Callable[..., int]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_killed_run_comes_to_the_same_bits(half: Path, finished: Path, resume: Resume) -> None:
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert resume(half) == 0
    assert same_model(half / "model", finished / "model")
    assert learned(half) == learned(finished)
    assert read_json(half / "result.json")["steps"] == NUM_STEPS


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "manifest.json"])
def test_a_damaged_newest_checkpoint_costs_steps_and_no_bits(
    name: str, half: Path, finished: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kill came while checkpoint 3 was written; its file is missing, or empty."""
    shutil.copytree(half / "checkpoint-2", half / "checkpoint-3")
    path = half / "checkpoint-3" / name
    if name == "manifest.json":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert resume(half) == 0
    shown = capsys.readouterr().out
    assert "checkpoint-3: " in shown and "going on from checkpoint-2" in shown
    assert same_model(half / "model", finished / "model")
    assert learned(half) == learned(finished)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer.pt", "the optimizer's state is missing"),
        ("scheduler.pt", "the scheduler's state is missing"),
        ("rng_state.pth", "the random state is missing"),
        ("trainer_state.json", "trainer_state.json is missing"),
    ],
)
def test_without_a_whole_checkpoint_the_fault_and_the_remedy_are_told(
    name: str, words: str, half: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    (half / "checkpoint-2" / name).unlink()
    before = files_of(half)
    assert resume(half) == 2
    error = capsys.readouterr().err
    assert words in error and "leave --resume out to start anew" in error
    assert error.count("\n") == 1
    assert files_of(half) == before


def test_a_finished_run_is_left_alone(
    finished: Path, tmp_path: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = files_of(folder)
    assert resume(folder) == 0
    assert "is finished, nothing is left to do" in capsys.readouterr().out
    assert files_of(folder) == before


@pytest.mark.parametrize("lost", [("result.json",), ("result.json", "model", "after")])
def test_at_max_steps_the_end_is_made_up_and_no_step_is_trained(
    lost: tuple[str, ...], finished: Path, tmp_path: Path, resume: Resume
) -> None:
    """The kill came while the model was saved, or evaluated, after the last step."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert resume(folder) == 0
    result, former = read_json(folder / "result.json"), read_json(finished / "result.json")
    assert (result["steps"], result["after"]["accuracy_greedy"]) == (
        NUM_STEPS,
        former["after"]["accuracy_greedy"],
    )
    assert learned(folder) == learned(finished)
    assert same_model(folder / "model", finished / "model")


def test_a_run_can_be_prolonged_and_keeps_its_former_result(
    finished: Path, tmp_path: Path, resume: Resume
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert resume(folder, max_steps=NUM_STEPS + 1) == 0
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4, 5]
    assert read_json(folder / "result.json")["steps"] == 5
    assert read_json(folder / "result-4.json") == read_json(finished / "result.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_generations": 8, "num_rollouts": 16}, "num_generations 4 -> 8"),
        ({"num_rollouts": 16}, "num_rollouts 8 -> 16"),
        ({"selection_rule": "random"}, "selection_rule 'max_variance' -> 'random'"),
        ({"seed": 7}, "seed 42 -> 7"),
        ({"learning_rate": "3e-3"}, "learning_rate 0.01 -> 0.003"),
        ({"advantage": "rloo"}, "advantage 'grpo' -> 'rloo'"),
        ({"train_limit": 8}, "train_limit None -> 8"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type 'constant' -> 'linear'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_setting_is_refused_and_named(
    change: dict[str, Any],
    words: str,
    half: Path,
    resume: Resume,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files_of(half)
    assert resume(half, **change) == 2
    error = capsys.readouterr().err
    assert words in error and "--resume_with_changes" in error and error.count("\n") == 1
    assert files_of(half) == before


def test_other_questions_under_the_same_name_are_refused(
    half: Path, tiny_folder: str, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = sums.read_text()
    try:
        write_questions(sums, 50)
        assert main([*flags(tiny_folder, sums, half), "--resume"]) == 2
    finally:
        sums.write_text(kept)
    assert "questions (SHA-256)" in capsys.readouterr().err


def test_a_change_that_is_meant_takes_effect_and_is_recorded(half: Path, resume: Resume) -> None:
    assert resume(half, "--resume_with_changes", learning_rate="3e-3") == 0
    config = read_json(half / "config.json")
    assert config["learning_rate"] == 3e-3
    assert config["changes"] == [{"step": 2, "settings": {"learning_rate": [0.01, 0.003]}}]
    rates = [row["learning_rate"] for row in rows_of(half)]
    assert rates == [0.01, 0.01, 0.003, 0.003]


def test_what_was_changed_stays_on_record(half: Path, resume: Resume) -> None:
    write_json(half / "config.json", read_json(half / "config.json") | {"changes": [{"step": 1}]})
    assert resume(half, "--resume_with_changes", weight_decay=0.25) == 0
    changes = read_json(half / "config.json")["changes"]
    assert changes == [{"step": 1}, {"step": 2, "settings": {"weight_decay": [0.5, 0.25]}}]


def test_another_model_is_refused_whatever_is_said(
    half: Path, tmp_path: Path, tiny_folder: str, resume: Resume, capsys: Any
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    assert resume(half, "--resume_with_changes", model=tmp_path / "model") == 2
    assert "the checkpoints of" in capsys.readouterr().err


def test_settings_that_train_alike_may_change() -> None:
    old = {"seed": 0, "evaluate_limit": 4, "save_steps": 2, "lr_scheduler_type": "constant"}
    new = {**old, "evaluate_limit": 8, "save_steps": 1, "output_dir": "x", "not_known_then": 3}
    assert changed_settings(old, new) == {}
    assert told(changed_settings(old, {**new, "seed": 1})) == "seed 0 -> 1"


def test_runs_of_qrpo_from_before_its_ties_were_a_setting_had_the_upper_ones() -> None:
    old = {"objective": "qrpo", "seed": 0}
    assert changed_settings(old, {**old, "qrpo_ties": "mid"}) == {"qrpo_ties": ["upper", "mid"]}
    assert changed_settings(old, {**old, "qrpo_ties": "upper"}) == {}
    other = {"objective": "agro", "seed": 0}
    assert changed_settings(other, {**other, "qrpo_ties": None}) == {}


@pytest.mark.parametrize(("scheduler", "differs"), [("constant", False), ("linear", True)])
def test_max_steps_is_a_change_where_the_learning_rate_follows_it(
    scheduler: str, differs: bool
) -> None:
    old = {"max_steps": 10, "lr_scheduler_type": scheduler}
    assert bool(changed_settings(old, {**old, "max_steps": 20})) == differs


def test_m_that_grows_until_max_steps_makes_it_a_change_too() -> None:
    old = {"max_steps": 10, "lr_scheduler_type": "constant", "num_generations_start": 2}
    assert "max_steps" in changed_settings(old, {**old, "max_steps": 20})
    old["num_generations_steps"] = 5
    assert changed_settings(old, {**old, "max_steps": 20}) == {}


def test_a_fingerprint_knows_rows_and_their_order() -> None:
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    assert fingerprint(rows) == fingerprint([dict(reversed(row.items())) for row in rows])
    assert fingerprint(rows) != fingerprint(rows[::-1])


# Claims --------------------------------------------------------------------------------------


def test_a_folder_that_another_process_has_is_not_written_to(
    half: Path, resume: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = try_claim(half)
    assert claim is not None
    assert resume(half) == 2
    error = capsys.readouterr().err
    assert f"is being trained by process {os.getpid()} on host" in error
    claim.release()
    assert resume(half) == 0
    assert not list(half.glob("claim-*"))


def test_the_claim_of_a_dead_process_is_taken_over(half: Path, resume: Resume) -> None:
    script = "import pathlib, sys; from podsrl.runs import claims; "
    script += "claims.try_claim(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(half)], check=True)
    assert len(list(half.glob("claim-*"))) == 1
    assert resume(half) == 0


def test_a_folder_is_the_first_one_s_before_anything_is_written(
    tiny_folder: str, sums: Path, tmp_path: Path
) -> None:
    """Two runs look for a free folder when neither has written a setting; one of them ends."""
    words = flags(tiny_folder, sums, tmp_path / "run")
    first, second = (
        prepare_run(*SettingsParser().parse(words), Console(quiet=True)) for _ in range(2)
    )
    assert (first.folder.name, second.folder.name) == ("run", "run-2")
    for run in (first, second):
        assert [path.name for path in run.folder.iterdir()] == ["claim-1.json"]
    forget_claims(first.folder)
    third = prepare_run(*SettingsParser().parse(words), Console(quiet=True))
    assert third.folder.name == "run"


def test_files_of_another_run_are_not_written_over(
    tiny_folder: str, sums: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 99}\n')
    assert main(flags(tiny_folder, sums, folder, evaluate_limit=0, max_steps=1)) == 0
    assert (folder / "metrics.jsonl").read_text() == '{"step": 99}\n'
    assert (tmp_path / "run-2" / "result.json").exists()


def test_a_run_that_left_long_questions_out_goes_on(tiny_folder: str, tmp_path: Path) -> None:
    """Checkpoints have the digest of all questions, the one too long for 256 tokens among them."""
    questions, folder = write_questions(tmp_path / "sums.jsonl"), tmp_path / "run"
    long = [{"question": f"{i} " * 300, "answer": "1"} for i in range(10)]  # some are not held out
    with questions.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in long)
    words = flags(
        tiny_folder, questions, folder, long_prompts="drop", max_steps=2, evaluate_limit=0
    )
    assert main(words) == 0
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    assert main([*words, "--resume"]) == 0


def test_a_run_from_before_manifests_and_claims_goes_on(half: Path, resume: Resume) -> None:
    (half / "checkpoint-2" / "manifest.json").unlink()
    make_old(half)
    assert resume(half) == 0
    assert read_json(half / "result.json")["steps"] == NUM_STEPS


def make_old(folder: Path) -> None:
    """Take out of config.json what an older version did not know."""
    config = read_json(folder / "config.json")
    for name in ("resume_with_changes", "long_prompts", "reward_timeout_seconds"):
        del config[name]
    write_json(folder / "config.json", config)


def test_a_run_from_before_is_one_arm_with_a_new_one(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "old")
    make_old(tmp_path / "old")
    (comparison,) = read_comparisons([finished, tmp_path / "old"])
    assert [len(arm.runs) for arm in comparison.arms.values()] == [2]
