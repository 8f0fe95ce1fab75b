"""What is asked and how: the same in training and evaluation, recorded, and a flag of each verb."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_runs import flags, rows_of, write_questions
from podsrl.cli import main
from podsrl.cli.questions import as_trained
from podsrl.compare.comparison import load_comparison
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts
from podsrl.view.page import view_page

PROMPTS = {"system_prompt": "be brief", "prompt_template": "{question} now"}


def asked(folder: Path) -> list[list[str]]:
    """What an evaluation's problems said, message by message."""
    return [[m["content"] for m in row["prompt"]] for row in rows_of(folder, "answers.jsonl")]


@pytest.fixture()
def run(tiny_folder: str, tmp_path: Path) -> Path:
    """A run with prompts of its own."""
    words = flags(
        tiny_folder,
        write_questions(tmp_path / "questions.jsonl"),
        tmp_path / "run",
        max_steps=1,
        task_arguments="{}",
        answer_format="number",
        log_rollouts="true",
        save_strategy="no",
        **PROMPTS,
    )
    assert main(["train", *words]) == 0
    return tmp_path / "run"


def evaluate(run: Path, *words: str) -> int:
    options = ["--limit", "2", "--max-new-tokens", "4", "--output", str(run / "out")]
    return main(["evaluate", "--model", str(run / "model"), *options, *words])


def test_training_and_evaluation_ask_in_the_same_words(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    assert {name: config[name] for name in PROMPTS} == PROMPTS
    assert evaluate(run) == 0
    assert f"questions and prompts as in {run / 'config.json'}" in capsys.readouterr().out
    questions = asked(run / "out")
    assert questions == asked(run / "before") and len(questions) == 2
    for system, user in questions:
        assert system == "be brief" and user.endswith("? now")
    settings = json.loads((run / "out" / "evaluation.json").read_text())["settings"]
    assert {name: settings[name] for name in PROMPTS} == PROMPTS
    assert settings["answer_format"] == "number"

    header, groups = read_rollouts(run / FILE_NAME)
    assert {name: header[name] for name in PROMPTS} == PROMPTS
    assert all(group["question"].endswith("? now") for group in groups)
    assert "be brief" in view_page(run)

    held_out = tmp_path / "test.jsonl"
    held_out.write_text('{"question": "last digit of 77?", "answer": "7"}\n')
    assert evaluate(run, "--task", f"jsonl:{held_out}", "--system-prompt", "other") == 0
    assert "as in" in capsys.readouterr().out  # other data of one's own, put in the same way
    assert asked(run / "out") == [["other", "last digit of 77? now"]]
    assert evaluate(run, "--task", "arithmetic") == 0
    assert "as in" not in capsys.readouterr().out  # another task: nothing of the run
    assert all(len(p) == 1 and not p[0].endswith("now") for p in asked(run / "out"))


def test_flags_win_over_the_run_and_only_a_folder_of_a_run_is_one(run: Path) -> None:
    settings, note = as_trained(str(run / "model"), {"system_prompt": ""})
    assert (settings["system_prompt"], settings["prompt_template"]) == ("", "{question} now")
    assert note is not None
    (run / "model").rename(run.parent / "moved")
    assert as_trained(str(run.parent / "moved"), {}) == ({}, None)
    assert as_trained("smollm2-135m", {"task": "gsm8k"}) == ({"task": "gsm8k"}, None)


def recipe_of(tiny_folder: str, questions: Path) -> dict[str, Any]:
    return {
        "task": f"jsonl:{questions}",
        "answer_format": "number",
        "model": tiny_folder,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 4,
        "evaluate_limit": 2,
        "gradient_checkpointing": False,
    }


def test_plan_and_compare_take_the_flags(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tiny_folder, write_questions(tmp_path / "questions.jsonl"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    wrong = ["--prompt-template", "{level}"]
    assert main(["plan", str(tmp_path / "recipe.yaml"), *wrong]) == 2
    assert "names {level}, and the record has answer, question" in capsys.readouterr().err

    path = tmp_path / "compare.yaml"
    arms = {"pods": {}, "grpo": {"system_prompt": "own"}}
    content = {"recipe": recipe, "arms": arms, "training_seconds": 1}
    content["output_dir"] = str(tmp_path / "out")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    assert main(["compare", str(path), "--dry_run", *wrong]) == 2
    assert "arm pods: " in capsys.readouterr().err
    right = ["--prompt-template", "{question} now", "--system_prompt", "be brief"]
    assert main(["compare", str(path), "--dry_run", *right]) == 0
    found = load_comparison(path, PROMPTS).arms
    assert [found[arm]["system_prompt"] for arm in arms] == ["be brief", "own"]
    assert all(found[arm]["prompt_template"] == "{question} now" for arm in arms)


@pytest.mark.slow
def test_plan_asks_with_the_flags_and_writes_them_into_its_recipe(
    tiny_folder: str, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_folder, write_questions(tmp_path / "questions.jsonl"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--seconds", "0.1", "--steps", "1", "--pilot", "0", "--system-prompt", "be brief"]
    words += ["--output", str(tmp_path / "plan")]
    assert main(["plan", str(tmp_path / "recipe.yaml"), *words]) == 0
    assert yaml.safe_load((tmp_path / "plan" / "recipe.yaml").read_text())["system_prompt"] == (
        "be brief"
    )
