"""Evaluations at marks of the training clock, which training does not notice."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny_runs import same_model
from podsrl.cli.train import main
from podsrl.evaluate import Answer, Evaluation, summarise
from podsrl.runs.evaluations import (
    curve_figures,
    marks_passed,
    mean_or_none,
    read_curve,
    untouched_random_state,
)
from podsrl.runs.json_lines import keep_until
from podsrl.tasks import load_task


@pytest.mark.parametrize(
    ("before", "after", "budget", "marks"),
    [
        (0.0, 14.9, 60.0, []),
        (0.0, 15.0, 60.0, [15.0]),
        (15.0, 29.0, 60.0, []),
        (14.0, 46.0, 60.0, [15.0, 30.0, 45.0]),
        (58.0, 61.0, 60.0, [60.0]),
        (44.0, 80.0, 50.0, [45.0, 50.0]),
        (50.5, 80.0, 50.0, []),
        (29.0, 31.0, None, [30.0]),
    ],
)
def test_marks(before: float, after: float, budget: float | None, marks: list[float]) -> None:
    assert marks_passed(before, after, 15.0, budget) == marks


def test_each_mark_is_passed_once_however_time_goes() -> None:
    generator = random.Random(5)
    for every in (0.1, 0.7, 3.0):
        now, passed = 0.0, []
        while now < 20:
            later = now + generator.random() * 2
            passed += marks_passed(now, later, every, 20.0)
            now = later
        marks = [k * every for k in range(1, 1000) if k * every < 20.0 - 1e-9]
        assert passed == pytest.approx([*marks, 20.0])


def test_random_states_are_given_back() -> None:
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), numpy.random.rand(), torch.rand(1).item())
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    with untouched_random_state():
        random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
        random.random(), numpy.random.rand(3), torch.rand(3)
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == expected


def test_figures_of_a_row() -> None:
    """Right and in format; right; in format, cut off; neither: 2/4, 2/4, 1/4, 1/4, 25/4."""
    verdicts = [(True, True, 4, False), (True, False, 6, False), (False, True, 10, True)]
    answers = [
        Answer(text="", answer=None, correct=c, num_tokens=t, truncated=u, keeps_format=f)
        for c, f, t, u in [*verdicts, (None, False, 5, False)]
    ]
    task = load_task("arithmetic")
    problems: list[dict[str, Any]] = [{"greedy": vars(answer)} for answer in answers]
    summary = summarise(answers, [[] for _ in answers], task, [{} for _ in answers])
    summary["format_rate"] = {"value": 0.5}
    figures = curve_figures(
        Evaluation(settings={}, summary=summary, problems=problems), has_format=True
    )
    assert figures == {
        "accuracy": 0.5,
        "format_rate": 0.5,
        "both_rate": 0.25,
        "mean_length": 6.25,
        "frac_cut_off": 0.25,
    }


def test_mean_or_none() -> None:
    assert mean_or_none([1.0, float("nan"), 2.0]) == 1.5
    assert mean_or_none([float("nan")]) is None and mean_or_none([]) is None


def test_rows_after_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    rows = [{"step": step, "mark_seconds": mark} for step, mark in ((0, 0), (3, 1), (3, 2), (5, 3))]
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep_until(tmp_path / "curve.jsonl", 4)
    assert read_curve(tmp_path) == rows[:3]
    keep_until(tmp_path / "curve.jsonl", 0)
    assert read_curve(tmp_path) == [] and not (tmp_path / "curve.jsonl").exists()


def train(model: str, folder: Path, questions: Path, **more: Any) -> Path:
    settings = {
        "task": f"jsonl:{questions}",
        "model": model,
        "output_dir": folder,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": 3,
        "evaluate_limit": 2,
        "learning_rate": "1e-2",
        "lr_scheduler_type": "constant",
        "beta": 0.1,
        "weight_decay": 0.5,
        "task_arguments": '{"answer_format": "number"}',
        "gradient_checkpointing": "false",
        **more,
    }
    assert main([word for key, value in settings.items() for word in (f"--{key}", str(value))]) == 0
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "sums.jsonl"
    rows = [{"question": f"last digit of {i}?", "answer": str(i % 10)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluating_changes_nothing_in_training(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    plain = train(tiny_folder, tmp_path / "plain", questions, evaluate_limit=0)
    curve = train(tiny_folder, tmp_path / "curve", questions, evaluate_every_seconds=0.02)
    start, one, other = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tiny_folder, plain / "model", curve / "model")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(start[name], one[name]) for name in one)
    rows = read_curve(curve)
    assert rows[0]["mark_seconds"] == rows[0]["step"] == 0 and rows[0]["reward"] is None
    assert {row["step"] for row in rows} == {0, 1, 2, 3}
    marks = [row["mark_seconds"] for row in rows if row["mark_seconds"] is not None]
    assert marks == pytest.approx([0.02 * k for k in range(len(marks))])
    for row in rows:
        assert row["mark_seconds"] is None or row["mark_seconds"] <= row["training_seconds"]
        assert row["wall_seconds"] > row["training_seconds"]
    assert rows[-1]["reward"] is not None and rows[-1]["kept_reward"] is not None
    result = json.loads((curve / "result.json").read_text())
    assert result["after"]["accuracy_greedy"]["value"] == rows[-1]["accuracy"]
    assert result["seconds"]["training"] == pytest.approx(rows[-1]["training_seconds"])
    assert 0 < result["seconds"]["evaluation"] < result["seconds"]["wall"]


def test_evaluating_by_steps_changes_nothing_in_training(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    plain = train(tiny_folder, tmp_path / "plain", questions, evaluate_limit=0)
    curve = train(tiny_folder, tmp_path / "curve", questions, evaluate_every_steps=2)
    assert same_model(plain / "model", curve / "model")
    assert not same_model(Path(tiny_folder), plain / "model")
    rows = read_curve(curve)
    assert [row["step"] for row in rows] == [0, 2, 3]  # before the first, after the 2nd and last
    assert [row["mark_seconds"] for row in rows] == [None] * 3
    seconds = [row["training_seconds"] for row in rows]
    assert seconds[0] == 0.0 < seconds[1] < seconds[2]
    assert rows[0]["reward"] is None and rows[-1]["reward"] is not None
    result = json.loads((curve / "result.json").read_text())
    assert result["steps"] == 3
    assert result["before"]["accuracy_greedy"]["value"] == rows[0]["accuracy"]
    assert result["after"]["accuracy_greedy"]["value"] == rows[-1]["accuracy"]


def test_a_run_resumed_between_two_evaluations_has_the_same_curve(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    more = {"evaluate_every_steps": 3, "save_model": "false", "max_steps": 7}
    whole = train(tiny_folder, tmp_path / "whole", questions, **more)
    saving = {"save_strategy": "steps", "save_steps": 2}
    folder = train(tiny_folder, tmp_path / "part", questions, **more, **saving)
    for name in ("checkpoint-6", "checkpoint-7", "after"):
        shutil.rmtree(folder / name)
    (folder / "result.json").unlink()
    train(tiny_folder, folder, questions, **more, resume="true")  # from step 4
    curves = [
        [{key: row[key] for key in row if "seconds" not in key} for row in read_curve(found)]
        for found in (whole, folder)
    ]
    assert [row["step"] for row in curves[0]] == [0, 3, 6, 7]
    assert curves[0] == curves[1]


def test_a_resumed_run_keeps_its_clock_and_its_curve(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    more = {"evaluate_every_seconds": 0.05, "save_model": "false"}
    folder = tmp_path / "run"
    train(tiny_folder, folder, questions, save_strategy="steps", save_steps=2, **more)
    first = read_curve(folder)
    seconds = json.loads((folder / "checkpoint-2/trainer_state.json").read_text())
    saved = seconds["stateful_callbacks"]["TrainingClock"]["attributes"]["seconds"]
    train(tiny_folder, folder, questions, **more, resume="true", max_steps=4)
    rows = read_curve(folder)
    kept = [row for row in first if row["step"] <= 2]
    assert kept and rows[: len(kept)] == kept
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    marks = [row["mark_seconds"] for row in rows if row["mark_seconds"] is not None]
    assert marks == pytest.approx([0.05 * k for k in range(len(marks))])
    result = json.loads((folder / "result.json").read_text())["seconds"]
    phases = sum(result[name] for name in ("sampling", "rewards", "selection", "update"))
    assert result["training"] == pytest.approx(phases)
    assert result["training"] > saved["training"] > 0
    assert not (folder / "model").exists()
