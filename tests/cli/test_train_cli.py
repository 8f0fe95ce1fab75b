"""podsrl train on a tiny model: run folder, recipes, resume, a stop that saves, clear errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from podsrl.cli.train import _expand, _resume_command, main
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts
from podsrl.runs.settings import RunArguments, parse_settings
from podsrl.trl.config import PODSConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").glob("*.yaml") if p.stem[:8] != "compare-")


@pytest.fixture()
def questions(tmp_path: Path) -> Path:
    """A user's own file: forty sums, some of them held out."""
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"last digit of {i}?", "answer": str(i % 10)} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(model: str, questions: Path, output: Path, /, **more: Any) -> list[str]:
    settings = {
        "task": f"jsonl:{questions}",
        "model": model,
        "output_dir": output,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": 2,
        "evaluate_limit": 2,
        "task_arguments": '{"answer_format": "number"}',
        "gradient_checkpointing": "false",
        **more,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def test_a_run_folder_holds_everything(tiny_folder: str, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(flags(tiny_folder, questions, folder)) == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["num_rollouts"], result["num_generations"], result["steps"]) == (8, 4, 2)
    assert result["selection_rule"] == "max_variance"
    assert result["before"]["num_problems"] == result["after"]["num_problems"] == 2
    phases = result["seconds"]
    parts = sum(phases[name] for name in ("sampling", "rewards", "selection", "update"))
    assert phases["training"] == pytest.approx(parts)
    assert 0 < phases["training"] < phases["wall"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"reward", "pods/kept_reward_variance", "time/update_seconds"} <= set(metrics[0])
    config = json.loads((folder / "config.json").read_text())
    assert config["num_rollouts"] == 8 and config["task"].startswith("jsonl:")
    assert json.loads((folder / "versions.json").read_text())["trl"].startswith("1.16")
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    header, groups = read_rollouts(folder / FILE_NAME)
    assert header["task"].startswith("jsonl:")
    assert [(row["step"], sum(row["kept"]), len(row["texts"])) for row in groups] == [
        (step, 4, 8) for step in (1, 1, 2, 2)
    ]
    assert AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters() > 0


def test_a_second_run_gets_a_folder_of_its_own(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert main(flags(tiny_folder, questions, tmp_path / "run", evaluate_limit=0)) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run-2" / "result.json").exists()


def test_lora_is_merged_into_a_model_that_plain_transformers_loads(
    tiny_folder: str, questions: Path, tmp_path: Path
) -> None:
    more = {"use_peft": "true", "lora_r": 4, "evaluate_limit": 0, "num_rollouts": 64}
    assert main(flags(tiny_folder, questions, tmp_path / "run", **more)) == 0
    assert not (tmp_path / "run/model/adapter_config.json").exists()
    start = AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").state_dict()
    assert start.keys() == trained.keys()
    assert any(not torch.equal(start[key], trained[key]) for key in start)


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_goes_on(tiny_folder: str, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = {"max_steps": 60, "max_completion_length": 40, "lr_scheduler_type": "constant"}
    words = flags(tiny_folder, questions, folder, **more)
    process = subprocess.Popen(
        [sys.executable, "-m", "podsrl.cli", "train", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=200)[0]
    assert process.returncode == 130, rest
    assert "To go on: podsrl train" in rest and "--resume" in rest
    checkpoints = list(folder.glob("checkpoint-*"))
    assert len(checkpoints) == 1
    stopped_at = int(checkpoints[0].name.split("-")[1])
    assert 2 <= stopped_at < 60
    before = (folder / "before/evaluation.json").read_text()
    words[words.index("--max_steps") + 1] = str(stopped_at + 2)
    assert main([*words, "--resume"]) == 0
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, stopped_at + 3))
    assert (folder / "before/evaluation.json").read_text() == before


def test_resume_command_names_the_folder_that_was_used() -> None:
    folder = Path("runs/x-2")
    assert _resume_command(["r.yaml"], folder) == (
        "podsrl train r.yaml --output_dir runs/x-2 --resume"
    )
    assert _resume_command(["--output_dir", "runs/x", "--resume"], folder) == (
        "podsrl train --output_dir runs/x-2 --resume"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "chess"}, "task is 'chess': choose from arithmetic"),
        ({"model": "./no/such/folder"}, "does not exist"),
        ({"num_rollouts": 2}, "num_rollouts (n) is 2, less than num_generations (m) = 4"),
        ({"selection_rule": "best"}, "selection_rule is 'best'"),
        ({"evaluate_limit": -1}, "evaluate_limit is -1"),
        ({"train_limit": 0}, "train_limit is 0"),
        ({"resume": "true"}, "holds no checkpoint"),
        ({"task_arguments": "[1]"}, "task_arguments is [1]"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    """The model does not exist: had anything tried to load it, the error would be another one."""
    assert main(flags("no-such/model", questions, tmp_path / "run", **change)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes/none.yaml"]) == 2
    assert "recipe recipes/none.yaml does not exist" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--num_rollouts", "--num_generations", "--selection_rule", "--resume"):
        assert flag in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_into_known_fields(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import ModelConfig, TrlParser

    from podsrl.runs.settings import RunArguments
    from podsrl.tasks import load_task

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    parser = TrlParser((RunArguments, PODSConfig, ModelConfig))
    parser.set_defaults(bf16=False)
    words = [*_expand([str(recipe)]), "--use_cpu", "true"]
    arguments, config, _ = parser.parse_args_and_config(words)
    task = load_task(arguments.task)
    assert config.num_rollouts >= config.num_generations
    if config.reward_weights is not None:
        assert len(config.reward_weights) == len(task.reward_funcs)
    text = recipe.read_text()
    assert text.startswith("#") and any(
        word in text for word in ("Hardware", "L40S", "H100", "A100")
    )


def test_there_is_a_recipe_for_every_setting_of_the_paper() -> None:
    assert [path.stem.split("-")[1] for path in RECIPES if path.stem.startswith("paper")] == [
        *"abcde"
    ]


def test_log_rollouts_is_text_or_yaml_truth() -> None:
    assert [RunArguments(log_rollouts=value).log_rollouts for value in ("auto", True, "False")] == [
        "auto",
        "true",
        "false",
    ]
    with pytest.raises(ValueError, match="log_rollouts is 'some'"):
        RunArguments(log_rollouts="some")


def test_a_cpu_with_bfloat16_trains_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes bf16 without an accelerator only where use_cpu says that this is meant."""
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    _, config, _ = parse_settings({"num_generations": 4})
    assert (config.bf16, config.use_cpu) == (True, True)
