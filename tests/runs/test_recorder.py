"""Runs from Python: PODSTrainer alone leaves the folder that `podsrl train` leaves."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState
from trl import GRPOTrainer

from helpers.harness import build, numbers
from helpers.tiny import digit_reward, even_reward
from helpers.tiny_runs import flags, rows_of
from podsrl import PODSConfig
from podsrl.cli import main
from podsrl.runs.notebook import NotebookProgress
from podsrl.runs.recorder import RunRecorder
from podsrl.runs.rollout_log import FILE_NAME, attach_log, read_rollouts
from podsrl.runs.step import step_in_words
from podsrl.trl.trainer import PODSTrainer

OPTIONS: dict[str, Any] = {
    "write_run": True,
    "disable_tqdm": False,
    "max_steps": 4,
    "max_completion_length": 6,
    "num_generations_eval": 2,
    "per_device_eval_batch_size": 12,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 2,
}
# What TRL and transformers write into any output_dir.
OF_THE_HOST = {"checkpoint-2", "checkpoint-4", "README.md"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - OF_THE_HOST


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def trained(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> PODSTrainer:
    """Four steps with checkpoints and evaluations after 2 and 4, and one evaluation before."""
    folder = tmp_path_factory.mktemp("script") / "run"
    trainer = build(tiny_folder, folder, rewards=[even_reward], **OPTIONS)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(trained: PODSTrainer) -> Path:
    return Path(trained.args.output_dir)


@pytest.fixture()
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_the_files_are_those_of_podsrl_train(run: Path, finished: Path) -> None:
    """But for the two evaluations by its own task and the model, which a script saves itself."""
    curve = {"curve.jsonl"}
    assert names(run) - curve == names(finished) - {"before", "after", "model"}
    for name in ("metrics.jsonl", FILE_NAME):
        theirs, ours = (
            [*read_rollouts(f / name)][1] if name == FILE_NAME else rows_of(f)
            for f in (finished, run)
        )
        first, second = next(iter(theirs)), next(iter(ours))
        own = {key for key in {*first, *second} if key.startswith("rewards/") or key == "kl"}
        assert set(first) - own == set(second) - own
    assert read(run / "versions.json") == read(finished / "versions.json")
    ours, theirs = read(run / "result.json"), read(finished / "result.json")
    evaluated = {"before", "after", "gain_points", "intervals_overlap"}
    assert set(ours) == set(theirs) - evaluated
    assert set(ours["seconds"]) == set(theirs["seconds"])
    assert set(read(run / "config.json")) <= set(read(finished / "config.json"))


def test_they_say_what_was_run(trained: PODSTrainer, run: Path, tiny_folder: str) -> None:
    config, result = read(run / "config.json"), read(run / "result.json")
    assert (config["task"], config["model"]) == ("python", tiny_folder)
    assert (config["num_rollouts"], config["num_generations"]) == (8, 4)
    assert config["reward_funcs"] == ["even_reward"] and config["evaluate_every_steps"] == 2
    assert "write_run" not in config and "changes" not in config
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4] and result["steps"] == 4
    logged = [row for row in trained.state.log_history if "loss" in row]
    assert [row["reward"] for row in rows_of(run)] == [row["reward"] for row in logged]
    seconds = result["seconds"]
    assert 0 < seconds["training"] < seconds["wall"] and seconds["evaluation"] > 0
    _, records = read_rollouts(run / FILE_NAME)
    assert [record["step"] for record in records] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_the_curve_is_of_the_trainers_own_evaluations(trained: PODSTrainer, run: Path) -> None:
    """even_reward is 0 or 1: its mean is a share of right answers."""
    curve = rows_of(run, "curve.jsonl")
    assert [row["step"] for row in curve] == [0, 2, 4]
    measured = [row["eval_reward"] for row in trained.state.log_history if "eval_reward" in row]
    assert [row["held_out_reward"] for row in curve] == measured
    assert [row["accuracy"] for row in curve] == pytest.approx(measured) and len(set(measured)) > 1
    rewards = [row["reward"] for row in rows_of(run)]
    assert curve[0]["reward"] is None
    assert curve[2]["reward"] == pytest.approx((rewards[2] + rewards[3]) / 2)
    times = [row["training_seconds"] for row in curve]
    assert times[0] == 0 and times == sorted(times) and times[2] > times[1]


def test_graded_rewards_are_no_accuracy_and_are_reported(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OPTIONS | {"max_steps": 1, "eval_steps": 1, "save_strategy": "no"}
    for n in (4, 8):
        build(
            tiny_folder, tmp_path / f"{n}", rewards=[digit_reward], **options, num_rollouts=n
        ).train()
    rows = rows_of(tmp_path / "8", "curve.jsonl")
    assert [row["accuracy"] for row in rows] == [None, None] and 0 < rows[0]["held_out_reward"] < 1
    words = [str(tmp_path / "4"), str(tmp_path / "8"), "--output", str(tmp_path / "report")]
    assert main(["report", *words]) == 0
    assert "Reward of held-out questions" in (tmp_path / "report" / "report.html").read_text()
    (comparison,) = read(tmp_path / "report" / "summary.json")["comparisons"]
    assert set(comparison["arms"]) == {"GRPO 4/4", "max_variance 8/4"}


def test_view_report_and_plan_read_it(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["view", str(copied)]) == 0
    assert "what is 7-4?" in (copied / "view.html").read_text()
    assert main(["report", str(copied)]) == 0
    assert "max_variance 8/4" in (copied / "report" / "report.html").read_text()
    capsys.readouterr()
    assert main(["plan", str(copied), "--output", str(tmp_path / "plan")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "pilot: the newest 8 prompts of 8 rollouts" in told and "proposed: n =" in told
    assert "a run's files hold no gradients: rho is unknown" in told
    content = read(tmp_path / "plan" / "plan.json")
    rewards = [r for record in read_rollouts(copied / FILE_NAME)[1] for r in record["rewards"]]
    assert content["pilot"]["num_prompts"] == 8 and 0 < sum(rewards) < 64
    assert main(["plan", str(copied), "--check", "--output", str(tmp_path / "other")]) == 2
    assert "--check needs a recipe" in capsys.readouterr().err


def test_with_n_equal_to_m_it_is_stock_bit_for_bit(tiny_folder: str, tmp_path: Path) -> None:
    """Evaluations, checkpoints and logs among the steps; nothing of ours draws a number."""
    options = {"rewards": [even_reward], **OPTIONS}
    ours = build(tiny_folder, tmp_path / "ours", num_rollouts=4, **options)
    ours.train()
    del options["write_run"]
    stock = build(tiny_folder, tmp_path / "stock", trainer_class=GRPOTrainer, **options)
    stock.train()  # built after: the seed is set there
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    without = [
        [{k: v for k, v in row.items() if k not in timed} for row in numbers(trainer)]
        for trainer in (ours, stock)
    ]
    assert without[0] == without[1]
    pairs = zip(ours.model.parameters(), stock.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert (tmp_path / "ours" / "metrics.jsonl").is_file()


def test_a_resumed_run_goes_on_in_its_files(
    copied: Path, trained: PODSTrainer, tiny_folder: str
) -> None:
    """From the checkpoint of step 2, with another logging of no importance and another seed."""
    before = rows_of(copied), [*read_rollouts(copied / FILE_NAME)[1]]
    options = OPTIONS | {"seed": 4, "logging_first_step": True}
    trainer = build(tiny_folder, copied, rewards=[even_reward], **options)
    trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
    assert trainer.args.output_dir == str(copied)
    rows, (_, records) = rows_of(copied), read_rollouts(copied / FILE_NAME)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[:2] == before[0][:2]
    logged = [*records]
    assert logged[:4] == before[1][:4] and [record["step"] for record in logged[4:]] == [3, 3, 4, 4]
    assert [row["step"] for row in rows_of(copied, "curve.jsonl")] == [0, 2, 4]
    (change,) = read(copied / "config.json")["changes"]
    assert change == {"step": 2, "settings": {"seed": [3, 4]}}
    assert (copied / "result-4.json").is_file() and read(copied / "result.json")["steps"] == 4


def test_another_run_gets_another_folder(
    copied: Path, run: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """So does one that goes on from a checkpoint of elsewhere; and a trainer that trains twice."""
    old = (copied / "metrics.jsonl").read_bytes()
    options = OPTIONS | {"max_steps": 1, "eval_strategy": "no", "eval_on_start": False}
    trainer = build(tiny_folder, copied, rewards=[even_reward], **options, save_only_model=True)
    trainer.train()
    second = copied.with_name("run-2")
    assert trainer.args.output_dir == str(second) and f"{second}\n" in capsys.readouterr().out
    trainer.train()
    assert [row["step"] for row in rows_of(copied.with_name("run-3"))] == [1]
    options |= {"max_steps": 3}
    other = build(tiny_folder, copied, rewards=[even_reward], **options)
    other.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert [row["step"] for row in rows_of(copied.with_name("run-4"))] == [3]
    assert (copied / "metrics.jsonl").read_bytes() == old


def test_a_first_step_that_fails_leaves_the_folder_free(tiny_folder: str, tmp_path: Path) -> None:
    def broken(completions: list, **_: Any) -> list[float]:
        raise KeyError("answer")

    options = OPTIONS | {"max_steps": 1, "eval_strategy": "no", "eval_on_start": False}
    with pytest.raises(KeyError):
        build(tiny_folder, tmp_path / "run", rewards=[broken], **options).train()
    assert not (tmp_path / "run" / "config.json").exists()
    trainer = build(tiny_folder, tmp_path / "run", rewards=[even_reward], **options)
    attach_log(trainer, tmp_path / "elsewhere", "true")  # before training: it stays
    trainer.train()
    assert trainer.args.output_dir == str(tmp_path / "run")
    assert not (tmp_path / "run" / FILE_NAME).exists()
    assert (tmp_path / "elsewhere" / FILE_NAME).is_file()
    assert not list((tmp_path / "run").glob("claim-*"))


def test_one_field_turns_it_off(
    tiny_folder: str, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"num_generations": 4, "use_cpu": True, "bf16": False}
    assert PODSConfig(str(tmp_path / "named"), **settings).write_run is True
    assert PODSConfig(**settings).write_run is False  # nobody asked for a folder
    options = {"max_steps": 1, "write_run": False, "disable_tqdm": False}
    trainer = build(tiny_folder, tmp_path / "off", **options)
    assert not any(isinstance(c, RunRecorder) for c in trainer.callback_handler.callbacks)
    trainer.train()
    assert names(tmp_path / "off") == set()
    assert "'pods/kept_reward_variance'" in capsys.readouterr().out  # as transformers prints it
    assert main(["train", *flags(tiny_folder, sums, tmp_path / "cli", write_run="false")]) == 2
    assert "write_run is false" in capsys.readouterr().err and not (tmp_path / "cli").exists()


def test_the_first_line_and_the_lines_of_progress(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OPTIONS | {"max_steps": 2, "eval_strategy": "no", "eval_on_start": False}
    build(tiny_folder, tmp_path / "run", rewards=[even_reward], **options).train()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "8 rollouts for each of 2 prompts a step, 4 kept by max_variance: 8 rows an update; "
        f"samples 2 times what GRPO 4/4 samples, and updates on as many; {tmp_path / 'run'}"
    )
    rows = rows_of(tmp_path / "run")
    for number, (line, row) in enumerate(zip(lines[1:3], rows, strict=True), 1):
        variance, dead = (
            row[f"pods/{key}"] for key in ("kept_reward_variance", "frac_kept_zero_variance")
        )
        assert line.startswith(
            f"step {number}/2  reward {row['reward']:.3f}  kept variance {variance:.3f}  "
            f"dead groups {100 * dead:.0f} %  "
        )
        assert line.endswith("min left")
    assert lines[-1] == f"everything is in {tmp_path / 'run'}: podsrl view {tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("settings", "num_processes", "said"),
    [
        (  # 4 x 16 rows at a time are 64, of 4 prompts
            {"num_rollouts": 64, "num_generations": 16, "per_device_train_batch_size": 16},
            1,
            "64 rollouts for each of 4 prompts a step, 16 kept by max_variance: 64 rows an update; "
            "samples 4 times what GRPO 16/16 samples, and updates on as many",
        ),
        (  # twice the prompts on two processes
            {"num_rollouts": 4, "num_generations": 4, "per_device_train_batch_size": 4},
            2,
            "4 rollouts for each of 8 prompts a step, all kept: 32 rows an update, as GRPO 4/4 has "
            "them",
        ),
        (  # 8 x 4 rows are sampled for two steps of 4 x 4, each taken twice
            {
                "num_rollouts": 6,
                "num_generations": 4,
                "per_device_train_batch_size": 4,
                "steps_per_generation": 8,
                "num_iterations": 2,
                "budget": "pooled",
                "selection_rule": "max_variance",
            },
            1,
            "6 rollouts for each of 8 prompts every 4 steps, 4 on average kept by max_variance: 16 "
            "rows an update; samples 1.5 times what GRPO 4/4 samples, and updates on as many",
        ),
        (
            {
                "num_rollouts": 32,
                "num_generations": 8,
                "num_generations_start": 4,
                "per_device_train_batch_size": 8,
                "sampling_rounds": 8,
            },
            1,
            "up to 32 rollouts for each of 4 prompts a step, 4 to 8 kept by max_variance: 32 rows "
            "an update; samples up to 4 times what GRPO 8/8 samples, and updates on as many",
        ),
    ],
)
def test_a_step_in_words(settings: dict[str, Any], num_processes: int, said: str) -> None:
    config = PODSConfig(
        "unused", use_cpu=True, bf16=False, gradient_accumulation_steps=4, **settings
    )
    assert step_in_words(config, num_processes) == said


class Display:
    """What IPython.display does, as far as we ask for it."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, page: str, *, display_id: bool) -> "Display":
        assert display_id
        self.shown.append(page)
        return self

    def update(self, page: str) -> None:
        self.shown.append(page)


class NotebookProgressCallback(NotebookProgress):
    """Called as transformers' table, in whose place ours comes."""


def test_a_notebook_gets_a_table(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    display = Display()
    module = SimpleNamespace(HTML=str, display=display.display)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)  # type: ignore[arg-type]
    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    options = OPTIONS | {"max_steps": 2, "eval_strategy": "no", "eval_on_start": False}
    trainer = build(tiny_folder, tmp_path / "run", rewards=[even_reward], **options)
    kinds = [type(each) for each in trainer.callback_handler.callbacks]
    assert NotebookProgress in kinds and NotebookProgressCallback not in kinds
    trainer.train()
    last = display.shown[-1]
    assert "step 2 of 2" in last and "min left" in last
    reward = rows_of(tmp_path / "run")[1]["reward"]
    for cell in ("<th>step</th><th>reward</th>", f"<td>2</td><td>{reward:.3f}</td>"):
        assert cell in last
    assert "<th>dead groups</th>" in last and last.count("<tr>") == 3


def test_a_long_table_shows_its_end() -> None:
    progress = NotebookProgress()
    progress.rows = [{"step": str(i)} for i in range(40)]
    page = progress.page(TrainerState(global_step=0, max_steps=40))
    assert page.count("<td>") == 12 and "<td>39</td>" in page and "min left" not in page
    progress.on_log(None, TrainerState(), TrainerControl(), logs={"eval_loss": 1})  # type: ignore[arg-type]
    assert len(progress.rows) == 40
