"""A task with turns from warm-up to page: played as TRL plays it, trained, evaluated, looked at."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from helpers.harness import spy
from helpers.tiny import make_model, make_tokenizer
from podsrl.cli.evaluate import main as evaluate_main
from podsrl.cli.plan import main as plan_main
from podsrl.cli.train import main as train_main
from podsrl.evaluate import evaluate
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts
from podsrl.tasks import load_task
from podsrl.tasks.turns import replayed
from podsrl.trl.play import play, transcript
from podsrl.view.page import view_page

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import warm_up

NUM_TEST = 24
REPLIES = {"higher", "lower", "right", "over", "no number"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that has learned in a second how a guess is written, and little else."""
    task = load_task("guess", seed=warm_up.SEED, num_train=3000)
    texts = ["".join(warm_up.told(row, None, "creeping")) for row in task.rows("train")]
    tokenizer = warm_up.make_tokenizer([*texts, "no number"], calls=True)
    model = warm_up.make_model(tokenizer, 32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows, moves = task.rows("train"), random.Random(0)
    for step in range(120):
        drawn = rows[16 * step : 16 * (step + 1)]
        model(**warm_up.batch(drawn, tokenizer, moves, "creeping")).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("guesser")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def loaded(folder: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def flags(folder: str, output: Path, **more: Any) -> list[str]:
    settings = {
        "task": "guess",
        "task_arguments": json.dumps({"num_test": NUM_TEST, "num_train": 60}),
        "model": folder,
        "output_dir": output,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 64,
        "max_steps": 2,
        "evaluate_limit": NUM_TEST,
        "gradient_checkpointing": "false",
        "bf16": "false",
        "learning_rate": "1e-3",
        **more,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def test_the_teachers_tokens_are_those_of_the_chat_template(loaded: tuple[Any, Any]) -> None:
    """What supervised training reads is what play puts together: template, calls and answers."""
    tokenizer = loaded[1]
    row = load_task("guess", num_train=1).rows("train")[0]
    said = warm_up.played(row, random.Random(3))
    messages = list(row["prompt"])
    for text, reply in zip(said[1:-1:2], said[2:-1:2], strict=True):
        number = text.removeprefix("guess(number=").removesuffix(")")
        call = {"name": "guess", "arguments": {"number": number}}
        messages += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "name": "guess", "content": reply.strip("\n> ")},
        ]
    messages.append({"role": "assistant", "content": "done"})
    assert said[-2].strip("\n> ") in ("right", "over")
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    (taught,) = warm_up.batch([row], tokenizer, random.Random(3), "creeping")["input_ids"].tolist()
    assert taught == ids and tokenizer.unk_token_id not in ids


def test_evaluation_plays_to_the_end_and_scores_with_an_interval(loaded: tuple[Any, Any]) -> None:
    """Calls made again give each verdict; what came back is marked, and never the model's."""
    task = load_task("guess", num_test=NUM_TEST)
    model, tokenizer = loaded
    assert task.environment is not None
    found = evaluate(model, tokenizer, task, limit=None, num_samples=3, max_new_tokens=64)
    summary = found.summary
    assert 0 <= summary["accuracy_sampled"]["low"] <= summary["accuracy_sampled"]["high"] <= 1
    assert "pass@3" in summary and "maj@3" not in summary and summary["format_rate"] is None
    answers = []
    for row, problem in zip(task.rows("test"), found.problems, strict=True):
        answers += [(row, each) for each in (problem["greedy"], *problem["samples"])]
    for row, answer in answers:
        assert answer["correct"] == (replayed(task, row, answer["messages"]).score == 1)
        given = [answer["text"][start:end].strip("\n> ") for start, end in answer["given"]]
        back = [each["content"] for each in answer["messages"] if each["role"] == "tool"]
        assert given == back and len(given) == answer["num_calls"] <= 5
        own = "".join(c for i, c in enumerate(answer["text"]) if not _within(i, answer["given"]))
        assert "higher" not in own and "over" not in own
    greedy = [problem["greedy"]["num_calls"] for problem in found.problems]
    assert summary["mean_calls"]["value"] == pytest.approx(sum(greedy) / NUM_TEST)
    assert max(greedy) > 1  # several turns, or this test has seen nothing
    # Ties of rounding apart, in other batches the dialogues are the same.
    other = evaluate(
        model, tokenizer, task, limit=None, num_samples=3, max_new_tokens=64, batch_size=7
    )
    same = [
        a["text"] == b["samples"][0]["text"]
        for (_, a), b in zip(answers[1::4], other.problems, strict=True)
    ]
    assert sum(same) >= 0.9 * NUM_TEST
    texts = [[each["text"] for each in problem["samples"]] for problem in found.problems]
    assert any(len(set(each)) > 1 for each in texts)  # draws, not three times one dialogue


def _within(place: int, parts: list[list[int]]) -> bool:
    return any(start <= place < end for start, end in parts)


def test_a_dialogue_is_the_one_that_a_trainer_plays(folder: str, tmp_path: Path) -> None:
    """Stock GRPOTrainer, evaluating with the likeliest token each time: tokens, mask, messages."""
    task = load_task("guess", num_test=8)
    rows = task.rows("test")
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=8,
        num_generations=2,
        num_generations_eval=1,
        per_device_train_batch_size=2,
        max_completion_length=16,  # the third turn is cut off: four tokens each, three come back
        max_tool_calling_iterations=task.max_calls,
        top_k=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=list(task.reward_funcs.values()),
        args=config,
        train_dataset=Dataset.from_list(rows),
        environment_factory=task.environment,
    )
    trainer.model.eval()
    theirs = spy(trainer, "_generate")
    trainer._generate_and_score_completions([dict(row) for row in rows])
    ((_, ids, mask, messages, *_),) = theirs

    def greedy(prompts: list[list[int]]) -> list[list[int]]:
        return trainer._generate_single_turn(prompts, None, {}, 1)[0]

    host = trainer.model, trainer.processing_class, task
    own, environments = play(*host, rows, greedy, max_new_tokens=16)
    assert [each.completion_ids for each in own] == ids
    assert [each.tool_mask for each in own] == mask and any(0 in each for each in mask)
    assert [each.messages for each in own] == messages
    assert [each.score for each in environments] == [each.score for each in trainer.environments]
    assert any(len(each) == 16 for each in ids)


def test_a_run_trains_logs_and_shows_turns(folder: str, tmp_path: Path) -> None:
    assert train_main(flags(folder, tmp_path / "run")) == 0
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["before"]["num_problems"] == result["after"]["num_problems"] == NUM_TEST
    assert result["after"]["mean_calls"]["value"] > 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(1 < row["tools/call_frequency"] <= 5 for row in metrics)
    assert json.loads((run / "config.json").read_text())["max_tool_calling_iterations"] == 5
    header, groups = read_rollouts(run / FILE_NAME)
    for group in groups:
        for text, given, length in zip(
            group["texts"], group["given"], group["num_tokens"], strict=True
        ):
            back = [text[start:end] for start, end in given]
            assert {line for each in back for line in each.strip("\n> ").split("\n")} <= REPLIES
            own = "".join(c for i, c in enumerate(text) if not _within(i, given))
            assert 0 < length < 64 and not any(word in own for word in REPLIES)
    assert header["task"] == "guess"
    page = view_page(run)
    assert '"given":[[' in page
    # The model that it wrote is played as its run was.
    output = tmp_path / "evaluation"
    words = ["--model", str(run / "model"), "--limit", str(NUM_TEST), "--output", str(output)]
    assert evaluate_main([*words, "--max-new-tokens", "64", "--dtype", "float32"]) == 0
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["settings"]["task"] == "guess"
    assert evaluation["accuracy_greedy"] == result["after"]["accuracy_greedy"]


def test_a_transcript_says_what_was_given() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("3high4")["input_ids"]
    assert transcript(tokenizer, ids, [1, 0, 0, 0, 0, 1]) == ("3high4", [[1, 5]])
    end = tokenizer.eos_token_id  # not seen, nor marked
    assert transcript(tokenizer, [*ids[:1], end, end], [1, 1, 0]) == ("3", [])
    assert transcript(tokenizer, [], []) == ("", [])


def test_what_needs_one_turn_is_refused_in_one_line(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = {"early_stop": "true", "fast_sampling": "true"}
    assert train_main([*flags(folder, tmp_path / "a", **early), "--dry_run"]) == 2
    assert "but guess has several turns: leave early_stop out" in capsys.readouterr().err
    words = ["--task", "guess", "--model", folder, "--model", folder, "--samples", "2"]
    assert evaluate_main([*words, "--switch", "1.0"]) == 2
    assert "--switch compares final answers, but guess" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: guess\nmodel: {folder}\nmax_completion_length: 64\n")
    assert plan_main([str(recipe), "--output", str(tmp_path / "plan")]) == 2
    assert "but guess has several turns: give --pilot 0" in capsys.readouterr().err


def test_a_model_that_cannot_call_tools_is_refused_before_it_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "tiny")
    make_tokenizer().save_pretrained(tmp_path / "tiny")
    assert train_main(flags(str(tmp_path / "tiny"), tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "guess is played by calling tools, but the model's chat template leaves" in error
    assert not (tmp_path / "run").exists()
    output = str(tmp_path / "evaluation")
    words = ["--task", "guess", "--model", str(tmp_path / "tiny"), "--output", output]
    assert evaluate_main([*words, "--max-new-tokens", "64"]) == 2
    assert "guess is played by calling tools" in capsys.readouterr().err


def test_sdpo_goes_on_from_the_midst_of_dialogues(folder: str, tmp_path: Path) -> None:
    """The game is brought back there by its calls, through the command."""
    options = {"objective": "sdpo", "evaluate_limit": 0, "save_model": "false", "num_rollouts": 96}
    assert train_main(flags(folder, tmp_path / "run", **options)) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row) for row in rows]
    assert sum(step["objective/num_branches"] for step in steps) > 0
    assert sum(step["objective/num_pairs"] for step in steps) > 0
