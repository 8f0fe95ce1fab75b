"""Questions that a prompt probe calls hopeless or settled are left out, by the question alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.heads import about
from helpers.tiny import make_model
from helpers.tiny_runs import flags, write_questions
from podsrl.cli.train import main
from podsrl.models import load_tokenizer
from podsrl.probe.head import Head, model_digest, save_head
from podsrl.runs.predicted import predicted, prompt_head
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts
from podsrl.sampling.tap import states_at
from podsrl.tasks import load_task

WriteHead = Callable[..., Path]


def rows(questions: Path) -> list[dict[str, Any]]:
    return load_task(f"jsonl:{questions}", answer_format="number").rows("train")


def states_of(asked: list[dict[str, Any]], model: str) -> Tensor:
    tokenizer = load_tokenizer(model)
    ids = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        for row in asked
    ]
    return states_at(make_model(), ids, layers=[1])[:, 0]


@pytest.fixture
def write_head(tiny_folder: str, tmp_path: Path) -> WriteHead:
    """A head on the tiny model whose log-odds have mean 0 and deviation 1 over the questions."""

    def write(**changes: Any) -> Path:
        told = about(
            model=tiny_folder,
            model_digest=model_digest(make_model()),
            layers=[1],
            at="prompt",
            within_low=None,
        )
        weight_H = torch.randn(32, generator=torch.Generator().manual_seed(1))
        odds_P = states_of(rows(write_questions(tmp_path / "q.jsonl")), tiny_folder) @ weight_H
        head = Head(weight_H / odds_P.std(), -(odds_P.mean() / odds_P.std()).item(), told)
        path = tmp_path / "head.safetensors"
        save_head(path, replace(head, about=replace(head.about, **changes)))
        return path

    return write


def test_chances_are_the_heads_of_each_prompt(
    write_head: WriteHead, tiny_folder: str, tmp_path: Path
) -> None:
    head, asked = prompt_head(str(write_head())), rows(write_questions(tmp_path / "q.jsonl"))
    told: list[tuple[int, int]] = []
    chances = predicted(head, asked, report=lambda *each: told.append(each))
    expected = head.score(states_of(asked, tiny_folder))
    torch.testing.assert_close(torch.tensor(chances), expected, atol=1e-4, rtol=1e-3)
    assert max(chances) - min(chances) > 0.2 and told[-1] == (len(asked), len(asked))


def test_a_run_asks_only_questions_within_the_range(
    write_head: WriteHead, tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, questions = write_head(), write_questions(tmp_path / "q.jsonl")
    asked = rows(questions)
    chances = predicted(prompt_head(str(path)), asked)
    low, high = (sorted(chances)[len(chances) * k // 4] + 1e-6 for k in (1, 3))
    within = {
        row["prompt"][-1]["content"]
        for row, chance in zip(asked, chances, strict=True)
        if low <= chance <= high
    }
    more = {"prompt_probe": path, "max_steps": 6, "evaluate_limit": 0, "save_strategy": "no"}
    words = flags(tiny_folder, questions, tmp_path / "run", **more)
    assert main([*words, "--prompt_probe_range", str(low), str(high)]) == 0
    logged = [each["question"] for each in read_rollouts(tmp_path / "run" / FILE_NAME)[1]]
    assert len(logged) == 12 and set(logged) <= within and len(set(logged)) > 4
    below, above = sum(p < low for p in chances), sum(p > high for p in chances)
    assert (
        f"{below} of {len(asked)} questions are left out as too hard and {above} as too easy"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"at": "last"}, [], "was fitted at last, where an answer stands already"),
        ({}, ["0.9", "0.1"], "two numbers from 0 to 1, the lower one first"),
        ({}, ["0.2"], "two numbers from 0 to 1"),
        ({}, ["0", "1e-9"], "0 stay, and a generation batch takes 2: widen"),
        ({"model_digest": "0"}, [], "this model is another"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(
    changes: dict[str, Any],
    more: list[str],
    message: str,
    write_head: WriteHead,
    tiny_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions, path = write_questions(tmp_path / "q.jsonl"), write_head(**changes)
    words = flags(tiny_folder, questions, tmp_path / "run", prompt_probe=path)
    assert main([*words, *(["--prompt_probe_range", *more] if more else [])]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_range_without_a_head_is_refused(
    tiny_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(tiny_folder, write_questions(tmp_path / "q.jsonl"), tmp_path / "run")
    assert main([*words, "--prompt_probe_range", "0.1", "0.9"]) == 2
    assert "name a prompt_probe" in capsys.readouterr().err
