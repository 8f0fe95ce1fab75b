"""podsrl evaluate: its files, its table, and mistakes found before a model is loaded."""

import json

import pytest

from helpers.tiny import make_model, make_tokenizer
from podsrl.cli import evaluate as verb


@pytest.fixture
def model_folder(tmp_path):
    make_model(max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_writes_figures_and_answers_and_shows_a_table(tmp_path, model_folder, capsys):
    output = tmp_path / "out"
    options = ["--limit", "6", "--samples", "2", "--max-new-tokens", "5", "--device", "cpu"]
    status = verb.main(["--model", model_folder, *options, "--output", str(output)])
    assert status == 0
    saved = json.loads((output / "evaluation.json").read_text())
    assert saved["settings"]["model"] == model_folder
    assert saved["settings"]["task"] == "arithmetic" and saved["num_problems"] == 6
    assert {"accuracy_greedy", "accuracy_sampled", "maj@2", "pass@2", "mean_length"} <= set(saved)
    assert len((output / "answers.jsonl").read_text().splitlines()) == 6
    shown = capsys.readouterr().out
    assert "accuracy, greedy" in shown and "95 % interval" in shown and "6 problems" in shown


def test_task_arguments_reach_the_task(tmp_path, model_folder):
    options = ["--limit", "0", "--max-new-tokens", "2", "--task-argument", "num_test=3"]
    status = verb.main(["--model", model_folder, *options, "--output", str(tmp_path / "out")])
    assert status == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_problems"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "sums"], "choose from arithmetic"),
        (["--model", "/no/such/model"], "does not exist"),
        (["--task", "gsm8k", "--data", "/no/such/data"], "does not exist"),
        (["--limit", "-1"], "--limit is -1"),
        (["--samples", "-1"], "num_samples is -1"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--device", "abacus"], "write cpu, cuda"),
        (["--task-argument", "num_test"], "write NAME=VALUE"),
        (["--task-argument", "digits=3"], "no argument 'digits'"),
        (["--output", __file__], "is a file: name a folder"),
    ],
)
def test_mistakes_are_one_line_before_a_model_is_loaded(
    options, message, model_folder, capsys, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(verb, "load_model", refuse)
    monkeypatch.setattr(verb, "load_tokenizer", refuse)
    model = [] if "--model" in options else ["--model", model_folder]
    assert verb.main([*model, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("podsrl evaluate: ") and message in error
    assert error.count("\n") == 1


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        verb.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown and "reasoning_gym:leg_counting" in shown and "maj@K" in shown
