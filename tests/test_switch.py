"""Switching between models: literal votes, what the threshold's limits are, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny import make_model, make_tokenizer
from podsrl.cli import evaluate as verb
from podsrl.core.votes import majority, numbered
from podsrl.switch import switched

Drawn = tuple[list[list[list[str | None]]], list[list[list[bool]]]]


def drawn(num_models: int, num_problems: int, num_samples: int, *, seed: int = 0) -> Drawn:
    """Answers "0" to "3" or none, of which "0" is right, commoner of the later models."""
    rng = torch.Generator().manual_seed(seed)
    answers: list[list[list[str | None]]] = []
    for model in range(num_models):
        chances = torch.tensor([1.0 + model, 1.0, 0.5, 0.3, 0.3])
        each = torch.multinomial(
            chances, num_problems * num_samples, replacement=True, generator=rng
        ).view(num_problems, num_samples)
        answers.append([[None if a == 4 else str(a) for a in row] for row in each.tolist()])
    right = [[[a == "0" for a in row] for row in of_model] for of_model in answers]
    return answers, right


def value(figures: dict[str, Any], name: str) -> float:
    return figures[name]["value"]


def test_two_models_by_hand() -> None:
    # Four problems, K = 2, the answer "4" is right.
    a = [["4", "4"], ["3", "4"], ["3", None], [None, None]]
    b = [["3", "3"], ["4", "4"], ["3", "4"], [None, "4"]]
    answers = [a, b]
    right = [[[each == "4" for each in row] for row in of_model] for of_model in answers]
    found = switched(answers, right, threshold=1.0)
    # 1: A settles it. 2: A's votes weigh 1/2 each, B's 1: "3" .5, "4" 2.5. 3: all weigh 1/2: "3"
    # 1, "4" .5. 4: two silent samples are no agreement; B's one vote decides.
    assert value(found, "switch") == 3 / 4
    assert value(found, "mean_samples") == (2 + 4 + 4 + 4) / 4 and found["most_samples"] == 4
    assert found["settled_by"] == [1 / 4, 1 / 4]  # B's own agree on the second alone of the rest
    # A alone: right, "3" came first, "3", nobody; B alone: "3", right, "3" came first, right
    assert [each["value"] for each in found["majority"]] == [1 / 4, 2 / 4]
    # all, plain: 2 against 2 and A came first; "4" 3 of 4; "3" 2 of 3; "4"
    assert value(found, "all") == 3 / 4
    assert value(found, "all_weighted") == 3 / 4  # both pairs of the first weigh 1: A came first
    assert [each["value"] for each in found["minus_majority"]] == [2 / 4, 1 / 4]
    assert found["minus_all_weighted"]["value"] == 0.0


def test_votes_of_models_that_agree_with_themselves_weigh_more() -> None:
    # "1" has 4 of 12 votes, 1/4 each: 1; "4" has 3, 0.3915 each: 1.17.
    answers = [["1", "2", "1", "2"], ["1", "3", "1", "3"], ["4", "4", "4", "5"]]
    right = [[[each == "4" for each in row]] for row in answers]
    found = switched([[row] for row in answers], right, threshold=1.0)
    assert value(found, "all") == 0.0 and value(found, "all_weighted") == 1.0
    assert value(found, "switch") == 1.0 and found["settled_by"] == [0.0, 0.0, 0.0]
    # Three of four agree: the order in which models are asked decides how many are.
    turned = switched([[row] for row in answers[::-1]], right[::-1], threshold=0.75)
    assert value(turned, "mean_samples") == 4.0 and turned["settled_by"] == [1.0, 0.0, 0.0]
    assert value(turned, "switch") == 1.0


def test_above_1_all_are_asked_and_at_0_the_first_alone() -> None:
    answers, right = drawn(3, 200, 4)
    always = switched(answers, right, threshold=1.1)
    assert always["switch"] == always["all_weighted"] and value(always, "mean_samples") == 12.0
    assert always["settled_by"] == [0.0, 0.0, 0.0]
    never = switched(answers, right, threshold=0.0)
    assert never["switch"] == never["majority"][0] and value(never, "mean_samples") == 4.0
    assert never["settled_by"] == [1.0, 0.0, 0.0]
    between = switched(answers, right, threshold=0.75)
    assert 4 < value(between, "mean_samples") < 12 and 0 < between["settled_by"][1] < 1


def test_one_model_is_self_consistency() -> None:
    answers, right = drawn(1, 100, 5)
    found = switched(answers, right, threshold=1.0)
    assert found["switch"] == found["all"] == found["majority"][0]
    votes = numbered(answers[0])
    expected = [place >= 0 and right[0][i][place] for i, place in enumerate(majority(votes))]
    assert value(found, "switch") == pytest.approx(sum(expected) / 100)


def test_one_sample_is_the_first_models_where_it_answers() -> None:
    answers, right = drawn(2, 300, 1)
    found = switched(answers, right, threshold=1.0)
    chosen = [r if a[0] is not None else s for a, r, s in zip(answers[0], *right, strict=True)]
    assert value(found, "switch") == sum(each[0] for each in chosen) / 300
    asked = sum(1 + (a[0] is None) for a in answers[0])
    assert value(found, "mean_samples") == pytest.approx(asked / 300)


@pytest.mark.parametrize("answers", [[], [[]], [[["1"]], [["1", "2"]]], [[["1"]], []], [[[]]]])
def test_models_must_have_answered_alike(answers: list[Any]) -> None:
    with pytest.raises(ValueError, match="pass the same number of both"):
        switched(answers, answers, threshold=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    names = [str(tmp_path_factory.mktemp("models") / name) for name in ("a", "b")]
    for number, name in enumerate(names):
        torch.manual_seed(number)
        make_model(max_position_embeddings=1024).save_pretrained(name)
        make_tokenizer().save_pretrained(name)
    return names


def test_the_command_compares_the_same_draws(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", "5", "--samples", "3", "--max-new-tokens", "6", "--device", "cpu"]
    models = [word for name in folders for word in ("--model", name)]
    both = tmp_path / "both"
    assert verb.main([*models, "--switch", "1", *options, "--output", str(both)]) == 0
    shown = capsys.readouterr().out
    assert "switch at 1, arithmetic" in shown and "settled by the models in turn" in shown
    found = json.loads((both / "switch.json").read_text())
    assert found["settings"]["models"] == folders and found["most_samples"] == 6
    for number in (1, 2):
        own = json.loads((both / f"model-{number}" / "evaluation.json").read_text())
        assert own["maj@3"]["value"] == found["majority"][number - 1]["value"]
        assert own["settings"]["seed"] == number - 1
    # The first model's draws are those of a command with it alone.
    alone = tmp_path / "alone"
    assert verb.main(["--model", folders[0], *options, "--output", str(alone)]) == 0
    answers = (alone / "answers.jsonl").read_text()
    assert answers == (both / "model-1" / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "4", "--model", "a"], "--model is given 2 times: add --switch 1.0"),
        (["--switch", "1", "--model", "a"], "--samples is 0: give --samples 8"),
        (["--switch", "-1", "--samples", "4"], "--switch is -1.0: give a share"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: list[str], message: str, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main(["--model", folders[0], *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
