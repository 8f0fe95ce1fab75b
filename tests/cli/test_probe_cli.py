"""podsrl probe on logged rollouts: what it writes and refuses, and its head as a reward."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny import save_tiny
from helpers.tiny_runs import flags, write_questions
from podsrl.cli import main
from podsrl.probe import fit
from podsrl.probe.head import load_head
from podsrl.probe.trivial import trivial_features
from podsrl.runs.folder import FROM_PYTHON
from podsrl.runs.json_lines import rewrite_lines
from podsrl.runs.probing import read_logged
from podsrl.runs.rollout_log import FILE_NAME, FORMAT, read_rollouts
from podsrl.tasks import load_task
from podsrl.tasks.rewarded import with_rewards

NUM_PROMPTS, NUM_EACH = 90, 4


@pytest.fixture(scope="module", autouse=True)
def one_strength() -> Iterator[None]:
    """To be quick, one penalty is tried; tests/probe/test_fit.py has all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "STRENGTHS", (1e-1,))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


def run_with(folder: Path, model: str, records: list[dict[str, Any]], **settings: Any) -> Path:
    """A run folder whose log has these records, with what the others need said as well."""
    folder.mkdir(exist_ok=True)
    config = {"task": "arithmetic", "seed": 0, "model": model, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    header = {"format": FORMAT, "reward_names": ["correctness", "other"]}
    whole = [
        {"step": 1, "rewards": each["parts"][0], "texts": ["7"] * len(each["parts"][0]), **each}
        for each in records
    ]
    rewrite_lines(folder / FILE_NAME, [header, *whole])
    return folder


def questions(num: int = NUM_PROMPTS) -> list[str]:
    """Distinct ones of the task's training rows."""
    rows = load_task("arithmetic", seed=0).rows("train", 200)
    return list(dict.fromkeys(row["prompt"][-1]["content"] for row in rows))[:num]


def by_length(folder: Path, model: str) -> Path:
    """Half of the rollouts of short questions are right, of long ones one in four or none."""
    records = []
    for i, question in enumerate(questions()):
        is_short = len(question) < 69  # one-digit terms
        rights = 2 if is_short else i % 2
        part = [1.0] * rights + [0.0] * (NUM_EACH - rights)
        records.append({"question": question, "parts": [part, [0.5] * NUM_EACH]})
    return run_with(folder, model, records)


def at_random(folder: Path, model: str) -> Path:
    draw = np.random.default_rng(0)
    records = [
        {"question": each, "parts": [draw.integers(0, 2, 4).tolist(), [0.0] * 4]}
        for each in questions()
    ]
    return run_with(folder, model, records)


def by_text(folder: Path, model: str, **settings: Any) -> Path:
    """Of each question two answers end in 7 and are right, two end in z and are not."""
    texts = ["so 7", "z", "7", "7 z"]
    part = [1.0, 0.0, 1.0, 0.0]
    records = [{"question": q, "parts": [part, part], "texts": texts} for q in questions()]
    records[0]["texts"] = ["so 7", "", "7", "7 z"]  # an empty answer ends at the prompt
    return run_with(folder, model, records, **settings)


def test_a_prompt_probe_is_written_with_its_figures(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = by_length(tmp_path / "run", model)
    assert main(["probe", str(run), "--rollouts", "1"]) == 0
    found = json.loads((run / "probe-prompt.json").read_text())
    head = load_head(run / "probe-prompt.safetensors")
    assert found["head"] == str(run / "probe-prompt.safetensors")
    assert (head.about.auroc, head.about.auroc_low) == (found["auroc"], found["low"])
    assert (head.about.at, head.about.model, head.about.label) == ("prompt", model, found["label"])
    assert found["label"] == "correctness >= 1" and found["layers"] == [1, 2]
    assert (found["num_prompts_fitted"], found["num_prompts_held_out"]) == (60, 30)
    # All four rollouts count at the prompt, whatever --rollouts says.
    assert found["num_rollouts"] == NUM_PROMPTS * NUM_EACH and found["num_prompts_put_bare"] == 0
    # Their length is all there is to know: a probe adds nothing to it.
    assert found["trivial"]["characters"] == {**found["trivial"]["characters"], "sign": -1}
    assert found["minus_together"]["low"] <= 0.01
    told = capsys.readouterr().out
    assert "minus characters" in told and "the probe minus these together" in told


def test_no_head_where_there_is_nothing_to_predict(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = at_random(tmp_path / "run", model)
    (run / "probe-prompt.safetensors").write_text("of an earlier fit")
    assert main(["probe", str(run)]) == 1
    found = json.loads((run / "probe-prompt.json").read_text())
    assert found["head"] is None and found["low"] <= 0.5
    assert not (run / "probe-prompt.safetensors").exists()
    assert "no head is written" in capsys.readouterr().out


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    run = by_text(tmp_path_factory.mktemp("text") / "run", model)
    assert main(["probe", str(run), "--at", "last", "--layers", "1"]) == 0
    return run


def test_a_probe_of_answers_tells_those_of_one_prompt_apart(text_run: Path) -> None:
    found = json.loads((text_run / "probe-last.json").read_text())
    assert found["within"]["low"] > 0.95 and found["auroc"] > 0.95
    assert found["layers_read"] == [1] and "completion tokens" in found["trivial"]
    assert load_head(text_run / "probe-last.safetensors").about.within_low > 0.95


@pytest.mark.parametrize("kind", ["bradley_terry", "gated"])
def test_a_head_of_pairs_is_written_beside_and_told_of_answers_to_one_question(
    text_run: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--at", "last", "--head", kind, "--prompts", "80", "--rollouts", "4"]
    assert main(["probe", str(text_run), *words]) == 0
    found = json.loads((text_run / f"probe-last-{kind}.json").read_text())
    head = load_head(text_run / f"probe-last-{kind}.safetensors")
    assert head.about.kind == kind and head.about.layers == found["layers_read"]
    assert len(found["layers_read"]) == (2 if kind == "gated" else 1)
    # What it is held to are pairs of one question, on which features of the question say nothing.
    assert found["auroc"] == found["within"]["value"] > 0.95
    assert set(found["trivial"]) == {"completion tokens"} and found["log_loss"] < 0.5
    assert found["log_loss_constant"] == pytest.approx(math.log(2), abs=1e-4)
    assert "of two rollouts of one prompt" in " ".join(capsys.readouterr().out.split())


def test_the_head_is_a_reward_and_never_the_accuracy(text_run: Path) -> None:
    reference = f"probe:{text_run / 'probe-last.safetensors'}"
    task = load_task("arithmetic", seed=0)
    rows = task.rows("train", 2)
    rewarded = with_rewards(task, ["correctness", reference], rows)
    assert list(rewarded.reward_funcs) == ["correctness", "probe"]
    assert rewarded.reward_weights["probe"] == 1 and rewarded.reward_bounds["probe"] == (0, 1)
    assert rewarded.score is task.score and rewarded.measured == ("probe",)
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    texts = [[{"role": "assistant", "content": each}] for each in ("7", "z", "so 7", "7 z")]
    given = rewarded.reward_funcs["probe"](completions=texts, prompts=prompts)
    assert given[0] > given[1] and given[2] > given[3]
    with pytest.raises(ValueError, match="reads one completion, but guess has several turns"):
        with_rewards(load_task("guess", seed=0), [reference], rows)


def test_a_probe_all_along_an_answer_knows_more_at_its_end(text_run: Path) -> None:
    assert main(["probe", str(text_run), "--at", "prefix", "--prompts", "80"]) == 0
    found = json.loads((text_run / "probe-prefix.json").read_text())
    assert found["num_prompts_fitted"] + found["num_prompts_held_out"] == 80
    # At the prompt nothing is known: "so 7" has 5 places, "7 z" 4, "7" and "z" 2 each.
    assert 0.6 < found["within"]["value"] < 0.95 and "tokens so far" in found["trivial"]


def test_logged_rollouts_by_hand(tmp_path: Path) -> None:
    def record(step: int, question: str, part: list[float | None], **more: Any) -> dict[str, Any]:
        return {"step": step, "question": question, "parts": [part, [1.0] * len(part)], **more}

    run = run_with(
        tmp_path / "run",
        "none",
        [
            record(1, "a", [1.0, 0.0, 0.5]),
            record(1, "b", [None, 0.0, 1.0]),
            record(2, "c", [None, None]),
            record(3, "d", [1.0, 0.0], texts=["7", None]),
            record(4, "a", [1.0]),
        ],
    )
    logged = read_logged(run / FILE_NAME)
    # Newest last: "a" was asked again; of "c" nothing is known; .5 is not right.
    assert [each.question for each in logged.prompts] == ["b", "d", "a"]
    assert [each.is_right for each in logged.prompts] == [
        [False, True],
        [True],
        [True, False, False, True],
    ]
    assert logged.num_without_reward == 4 and logged.prompts[2].rate == 0.5
    newest = read_logged(run / FILE_NAME, most=1, steps=(None, 3))
    assert [each.question for each in newest.prompts] == ["d"]
    assert read_logged(run / FILE_NAME, reward="other", steps=(1, 1)).prompts[0].rate == 1
    with pytest.raises(ValueError, match="has no rewarded rollout in these steps"):
        read_logged(run / FILE_NAME, steps=(2, 2))


def test_questions_of_a_script_are_put_bare(tmp_path: Path, model: str) -> None:
    run = by_text(tmp_path / "run", model, task=FROM_PYTHON)
    assert main(["probe", str(run), "--at", "last", "--model", model, "--layers", "2"]) == 0
    assert json.loads((run / "probe-last.json").read_text())["num_prompts_put_bare"] == NUM_PROMPTS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--held-out", "1"], "--held-out is 1.0: give a share"),
        (["--prompts", "0"], "--prompts is 0: give 1 or more"),
        (["--layers", "1,x"], "--layers is '1,x': write numbers"),
        (["--layers", "3"], "must be one or more from 1 to 2"),
        (["--reward", "format"], "--reward is format, but"),
        (["--head", "gated"], "--head gated compares two answers to one question, but --at is"),
        (["--head", "gated", "--at", "last", "--layers", "1"], "a gate weighs layers, and there"),
        (["--steps", "a"], "--steps is 'a'"),
        (["--model", "no/such/folder"], "does not exist"),
        (["--prompts", "30"], "are 10 held out, but it takes 20"),
    ],
)
def test_mistakes_are_told_in_one_line(
    text_run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(text_run), *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("podsrl probe: ") and message in told and told.count("\n") == 1


def test_a_folder_without_rollouts_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(tmp_path)]) == 2
    assert "holds no rollouts.jsonl.gz: log_rollouts" in capsys.readouterr().err


def test_features_of_a_question_are_of_the_question() -> None:
    (question,) = questions(1)
    assert trivial_features(question, num_tokens=3)["numbers"] == 2


def test_a_run_is_rewarded_by_the_head_beside_its_accuracy(
    text_run: Path, model: str, tmp_path: Path
) -> None:
    head = text_run / "probe-last.safetensors"
    questions = write_questions(tmp_path / "questions.jsonl")
    words = flags(model, questions, tmp_path / "run", max_steps=1, save_strategy="no")
    assert main(["train", *words, "--reward_funcs", "correctness", f"probe:{head}"]) == 0
    header, records = read_rollouts(tmp_path / "run" / FILE_NAME)
    assert header["reward_names"] == ["correctness", "probe"]
    scores = [score for each in records for score in each["parts"][1]]
    assert len(set(scores)) > 4 and all(0 <= score <= 1 for score in scores)
    after = json.loads((tmp_path / "run" / "after" / "evaluation.json").read_text())
    assert 0 < after["reward_probe"]["value"] < 1
    assert after["accuracy_greedy"]["value"] in (0, 0.5, 1)  # of two questions, whatever it says
