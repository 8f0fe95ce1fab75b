"""Every file of docs/extending.md does through the command line what that page says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_runs import flags, rows_of, write_questions
from helpers.turns import save_caller
from podsrl import RULES, PODSConfig
from podsrl.cli import main
from podsrl.core.advantage import ESTIMATORS
from podsrl.core.objectives import OBJECTIVES, Objective
from podsrl.rewards import GRADERS
from podsrl.tasks import TASKS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
TABLES: tuple[dict[str, Any], ...] = (RULES, ESTIMATORS, OBJECTIVES, TASKS, GRADERS)


@pytest.fixture()
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder with the page's files; what they add to the tables is taken out again."""
    before = [dict(table) for table in TABLES]
    text = PAGE.read_text(encoding="utf-8")
    for name, code in re.findall(r"```\w+\n# (\w+\.\w+)\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(code)
    yield tmp_path
    for table, names in zip(TABLES, before, strict=True):
        table.clear()
        table.update(names)


def run_flags(model: str, own: Path, **more: Any) -> list[str]:
    questions = own / "questions.jsonl"
    return flags(
        model,
        questions if questions.exists() else write_questions(questions),
        own / "run",
        max_steps=2,
        **more,
    )


@pytest.mark.parametrize(
    ("plugin", "setting", "value"),
    [
        ("my_own.py", "selection_rule", "farthest"),
        ("my_estimator.py", "advantage", "signs"),
        ("my_objective.py", "objective", "centred"),
        ("my_task.py", "task", "doubling"),
        ("my_grader.py", "grader", "near"),
    ],
)
def test_a_plugin_trains_by_name(
    plugin: str,
    setting: str,
    value: str,
    own: Path,
    tiny_folder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {setting: value, "train_limit": 16}
    if setting == "task":
        settings["task_arguments"] = "{}"
    words = run_flags(tiny_folder, own, **settings)
    assert main(["train", *words]) == 2  # without the plugin nobody knows the name
    assert value in capsys.readouterr().err
    assert main(["train", *words, "--plugins", str(own / plugin)]) == 0
    config = json.loads((own / "run" / "config.json").read_text())
    assert config[setting] == value and config["plugins"] == [str(own / plugin)]
    assert [row["step"] for row in rows_of(own / "run")] == [1, 2]


def test_a_task_with_turns_trains_by_name(own: Path, tmp_path: Path) -> None:
    """The page's door, with a model that calls another tool than it has, and is told so."""
    caller = save_caller(tmp_path / "caller")
    words = run_flags(caller, own, task="door", task_arguments="{}", max_completion_length=48)
    assert main(["train", *words, "--plugins", str(own / "my_dialogue.py")]) == 0
    metrics = rows_of(own / "run")
    assert max(row["tools/call_frequency"] for row in metrics) > 0
    answers = rows_of(own / "run" / "after", "answers.jsonl")
    said = [message for each in answers for message in each["greedy"]["messages"]]
    assert any("Tool look not found" in str(each["content"]) for each in said)


def test_own_rewards_train_are_logged_evaluated_and_compared_on_resume(
    own: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_questions(own / "questions.jsonl")
    recipe = {"reward_funcs": ["correctness", "my_reward.py:closeness"], "reward_weights": [1, 0.5]}
    (own / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = [str(own / "mine.yaml"), *run_flags(tiny_folder, own, save_steps=1)]
    assert main(["train", *words]) == 0
    for row in rows_of(own / "run"):
        whole = row["rewards/correctness/mean"] + 0.5 * row["rewards/closeness/mean"]
        assert row["reward"] == pytest.approx(whole, abs=1e-6)
        assert row["rewards/closeness/mean"] > 0  # a tiny model is never right, but never far off
    for when in ("before", "after"):
        figure = json.loads((own / "run" / when / "evaluation.json").read_text())[
            "reward_closeness"
        ]
        assert 0 < figure["value"] <= 1 and figure["num_problems"] == 2

    path = own / "my_reward.py"
    path.write_text(path.read_text() + "\n# other words\n")
    capsys.readouterr()
    assert main(["train", *words, "--max_steps", "3", "--resume"]) == 2
    assert "my_reward.py (SHA-256)" in capsys.readouterr().err
    assert main(["train", *words, "--max_steps", "3", "--resume", "--resume_with_changes"]) == 0
    (change,) = json.loads((own / "run" / "config.json").read_text())["changes"]
    assert "my_reward.py (SHA-256)" in change["settings"]


def test_evaluate_averages_an_own_reward(
    own: Path, tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write_questions(own / "questions.jsonl")
    words = ["--task", f"jsonl:{questions}", "--task-argument", "answer_format=number"]
    words += ["--model", tiny_folder, "--limit", "4", "--output", str(own / "out")]
    words += ["--max-new-tokens", "4", "--reward-funcs", f"{own / 'my_reward.py'}:closeness"]
    assert main(["evaluate", *words]) == 0
    assert "reward, closeness" in capsys.readouterr().out
    figures = json.loads((own / "out" / "evaluation.json").read_text())
    assert 0 < figures["reward_closeness"]["value"] <= 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(completions, **_):\n    return [0.0]\n", "line 1: f returns 1 values for 2"),
        ("def f(completions, **_):\n    return unknown\n", "line 2: NameError"),
        ("import no_such_thing_here\n", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_bad_reward_is_one_line_before_anything_is_loaded(
    code: str, said: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "bad.py").write_text(code)
    words = run_flags("no-such/model", own, reward_funcs=f"{own / 'bad.py'}:f")
    # The model does not exist: it would be told if it were looked for first.
    words = [word for word in words if word != "--model" and word != "no-such/model"]
    assert main(["train", *words, "--evaluate_limit", "0"]) == 2
    error = capsys.readouterr().err
    assert said in error and "bad.py" in error and error.count("\n") == 1
    assert not (own / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_own_rule_and_objective_of_one_file_compared_with_pods_over_three_seeds(
    own: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page's comparison has it, in one file, but for the model, its sizes and the seconds.

    Nine runs, two at a time, and the report on them.
    """
    write_questions(own / "questions.jsonl")
    both = [(own / name).read_text() for name in ("my_own.py", "my_objective.py")]
    (own / "mine.py").write_text("\n".join(both))
    content = yaml.safe_load((own / "compare.yaml").read_text())
    content["recipe"] |= {
        "plugins": ["mine.py"],
        "task_arguments": {"answer_format": "number"},
        "model": tiny_folder,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 4,
        "evaluate_limit": 2,
        "gradient_checkpointing": False,
    }
    content |= {"training_seconds": 0.1, "output_dir": str(own / "out")}
    (own / "compare.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(own)
    assert main(["compare", "compare.yaml", "--devices", "0,1"]) == 0
    arms = {"pods": ("max_variance", "grpo"), "mine": ("farthest", "grpo")}
    arms |= {"centred": ("max_variance", "centred")}
    for arm, used in arms.items():
        for seed in range(3):
            folder = own / "out" / arm / f"seed-{seed}"
            config = json.loads((folder / "config.json").read_text())
            assert (config["selection_rule"], config["objective"]) == used
            assert config["plugins"] == [str(own / "mine.py")]
            assert (folder / "result.json").is_file()
            if arm == "centred":
                assert "objective/log_ratio_squared" in rows_of(folder)[0]
    capsys.readouterr()
    assert main(["report", str(own / "out"), "--baseline", "pods"]) == 0
    summary = json.loads((own / "out" / "report" / "summary.json").read_text())
    (comparison,) = summary["comparisons"]
    assert set(comparison["arms"]) == set(arms) and comparison["baseline"] == "pods"
    for arm in comparison["arms"].values():
        assert arm["seeds"] == ["0", "1", "2"]


def test_the_thing_itself_in_python(own: Path, tmp_path: Path) -> None:
    def nearest(rewards_PN: Any, keep: int, *, seed: int = 0, first_group: int = 0) -> Any:
        return RULES["random"](rewards_PN, keep, seed=seed, first_group=first_group)

    def nothing(batch: Any) -> Any:
        raise AssertionError

    options = {"output_dir": str(tmp_path / "run"), "bf16": False, "use_cpu": True}
    config = PODSConfig(
        selection_rule=nearest,
        objective=Objective(nothing, needs_reference=False),
        **options,
    )
    assert config.selection_rule == "nearest" and RULES["nearest"] is nearest
    assert config.objective == "nothing" and config.get_objective() is OBJECTIVES["nothing"]
    json.dumps(config.to_dict())  # as checkpoints hold it
