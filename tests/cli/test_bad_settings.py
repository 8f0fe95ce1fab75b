"""Mistakes in settings are found before the model loads: one line, status 2, nothing behind."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_runs import flags
from podsrl.cli import main
from podsrl.cli.train import main as train
from podsrl.runs.checks import check_output, check_reporters, read_yaml
from podsrl.runs.settings import SettingsParser, parse_settings

# The model does not exist: had anything tried to load it, the error would be another one.
RECIPE = {
    "task": "arithmetic",
    "model": "no-such/model",
    "num_rollouts": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "max_steps": 2,
    "evaluate_limit": 2,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "temperature is 0: it must be above 0"),
    ({"temperature": float("inf")}, "temperature is inf: it must be a finite number"),
    ({"top_p": 2}, "top_p is 2: it must be above 0, at most 1"),
    ({"top_k": -3}, "top_k is -3"),
    ({"learning_rate": float("nan")}, "learning_rate is nan"),
    ({"learning_rate": -1e-5}, "learning_rate is -1e-05: it must be 0 or more"),
    ({"learning_rate": "fast"}, "invalid float value: 'fast'"),
    ({"seed": -1}, "seed is -1: it must be from 0 to 4294967295"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
    ({"max_steps": 0}, "max_steps is 0: it must be at least 1, or left out"),
    ({"max_completion_length": 0}, "max_completion_length is 0"),
    ({"num_rollouts": 8.5}, "num_rollouts is 8.5: it must be a whole number"),
    ({"num_rollouts": [8]}, "num_rollouts is [8]: it must be a whole number"),
    ({"num_rollouts": True}, "num_rollouts is True: it must be a whole number"),
    ({"num_generations": 0}, "num_generations is 0: it must be at least 1"),
    ({"num_generations": None}, "num_generations is None: it must be a whole number"),
    ({"task": 5}, "task is 5: it must be text"),
    ({"save_strategy": False}, "YAML reads yes, no, on and off as true and false"),
    ({"loss_type": "ppo"}, "loss_type is 'ppo': choose from grpo"),
    ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers, but arithmetic has 1"),
    ({"reward_weights": [float("nan")]}, "reward_weights is [nan]: its numbers must be finite"),
    ({"reward_weights": 1.0}, "reward_weights is 1.0: it must be a list"),
    ({"train_limit": 1}, "a generation batch takes 2 prompts, but arithmetic has 1"),
    ({"nmu_rollouts": 8}, "unknown setting: nmu_rollouts; did you mean num_rollouts"),
    ({"report_to": "tensorbord"}, "did you mean tensorboard"),
    ({"task_arguments": "{"}, "task_arguments is '{', which is not JSON"),
    ({"long_prompts": "cut"}, "long_prompts is 'cut': choose from refuse, drop"),
    ({"evaluate_samples": -1}, "evaluate_samples is -1"),
]
NAMES = [f"{next(iter(change))}={next(iter(change.values()))}" for change, _ in BAD]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(("change", "words"), BAD, ids=NAMES)
def test_train_tells_before_anything_is_loaded(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, **change, "output_dir": str(tmp_path / "run")}))
    assert words in told(["train", str(recipe)], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


OWN = ("max_steps", "train_limit", "evaluate_samples", "seed")


@pytest.mark.parametrize(
    ("change", "words"),
    [case for case in BAD if next(iter(case[0])) not in OWN],
    ids=[name for name in NAMES if name.split("=")[0] not in OWN],
)
def test_compare_finds_it_in_a_dry_run_of_the_second_arm(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {name: RECIPE[name] for name in RECIPE if name != "max_steps"}
    content = {
        "recipe": base,
        "arms": {"pods": {}, "other": change},
        "training_seconds": 1,
        "seeds": 1,
        "output_dir": str(tmp_path / "comparison"),
    }
    path = tmp_path / "comparison.yaml"
    path.write_text(yaml.safe_dump(content))
    error = told(["compare", str(path), "--dry-run"], capsys)
    # compare itself computes with n and m, and says so in its own words.
    assert words.split(":")[0] in error or "num_" in words
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\nmax_steps: 3\nseed: 1\n", "line 3: seed stands twice"),
        ("task_arguments: {a: 1, a: 2}\n", "line 1: a stands twice"),
        ("5: 3\n", "line 1: the key '5' is no text"),
        ("seed: [1\n", "line 2: "),
        ("- seed\n", "holds no mapping"),
        ("seed: 1\n\tx: 2\n", "line 2: "),
        ("", "holds no mapping"),
    ],
)
def test_a_recipe_that_is_no_mapping_of_names_is_told_by_its_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    for verb in ("train", "compare"):
        error = told([verb, str(recipe)], capsys)
        assert "recipe.yaml" in error and words in error


def test_plain_yaml_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {seed: 1, beta: 0.5}\nother: {<<: *b, seed: 2}\nrate: 1e-5\n")
    content = {"base": {"seed": 1, "beta": 0.5}, "other": {"seed": 2, "beta": 0.5}, "rate": "1e-5"}
    assert read_yaml(path) == content


@pytest.mark.parametrize("flag", ["--nmu_rollouts", "--num-rollotus"])
def test_a_flag_that_is_not_there_is_told_with_one_that_is(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean --num" in told(["train", flag, "8"], capsys)


def test_what_is_right_is_taken() -> None:
    right = {
        "learning_rate": "2e-5",  # YAML reads it as text, for want of a point
        "scale_rewards": False,
        "log_rollouts": True,
        "save_strategy": "no",
        "num_generations": 4,
        "reward_weights": [1, 0.5],
        "max_steps": -1,
    }
    _, config, _ = parse_settings(right)
    assert config.learning_rate == 2e-5 and config.reward_weights == [1, 0.5]


def test_a_backend_that_is_not_installed_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = next(n for n in ("wandb", "clearml", "mlflow") if not importlib.util.find_spec(n))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "report_to": missing}))
    error = told(["train", str(recipe)], capsys)
    assert f"report_to is {missing}: install {missing}, or write report_to: none" in error


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_without_a_key_is_told(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one that is made up, as it may not be installed."""
    wandb = types.ModuleType("wandb")
    wandb.api = types.SimpleNamespace(api_key=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    where = "transformers.integrations.integration_utils.get_available_reporting_integrations"
    monkeypatch.setattr(where, lambda: ["tensorboard", "wandb"])
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    if mode == "offline":
        return check_reporters(["tensorboard", "wandb"])
    with pytest.raises(ValueError, match="knows no key: run wandb login"):
        check_reporters(["tensorboard", "wandb"])
    wandb.api.api_key = "x" * 40  # type: ignore[attr-defined]
    check_reporters(["tensorboard", "wandb"])


def test_several_places_to_report_to_are_one_setting() -> None:
    words = ["--report_to", "tensorboard", "trackio", "--seed", "3"]
    _, config, _ = SettingsParser().parse(words)
    assert config.report_to == ["tensorboard", "trackio"] and config.seed == 3
    assert SettingsParser().parse(["--report_to", "none"])[1].report_to == []


@pytest.mark.skipif(bool(importlib.util.find_spec("deepspeed")), reason="deepspeed is installed")
def test_a_setting_that_needs_another_package_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "deepspeed": "/no/such/file.json"}))
    error = told(["train", str(recipe)], capsys)
    assert "a setting needs what is not installed: " in error and "deepspeed" in error


def test_an_output_folder_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path / "file")}))
    assert "is a file: name a folder" in told(["train", str(recipe)], capsys)
    with pytest.raises(ValueError, match="is a file: name a folder"):
        check_output(tmp_path / "file")
    with pytest.raises(ValueError, match="lies below the file"):
        check_output(tmp_path / "file" / "run")
    check_output(tmp_path / "a" / "b" / "c")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match="cannot be written to"):
        check_output(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["x" * 101, "two\nlines", "nul\0", "comparison.json", "report", "a/b", ".hidden", ""]
)
def test_an_arm_whose_name_is_no_folder_is_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    content = {"arms": {name: {"seed": 1}}, "training_seconds": 1}
    path.write_text(yaml.safe_dump(content))
    assert "a name becomes a folder" in told(["compare", str(path), "--dry_run"], capsys)


def test_a_model_that_is_not_there_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only loading finds it, when the run has its folder."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**RECIPE, "output_dir": str(tmp_path / "a" / "run")}))
    assert "podsrl train: " in told(["train", str(recipe)], capsys)
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.parametrize(("policy", "status"), [("refuse", 2), ("drop", 0)])
def test_questions_that_leave_the_model_no_room(
    policy: str, status: int, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model reads 256 tokens of one character each; every third question has 300."""
    questions = tmp_path / "long.jsonl"
    texts = [("x" * 300 if i % 3 == 0 else f"last digit of {i}?") for i in range(30)]
    rows = [{"question": text, "answer": str(i % 10)} for i, text in enumerate(texts)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = flags(tiny_folder, questions, tmp_path / "run", evaluate_limit=0, max_steps=1)
    assert train([*words, "--save_strategy", "no", "--long-prompts", policy]) == status
    shown = capsys.readouterr()
    if policy == "refuse":
        assert "prompts do not fit" in shown.err and shown.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
    else:
        assert "questions are too long for the model and left out" in shown.out
