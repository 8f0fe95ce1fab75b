"""From a file of questions and ten lines of reward to a trained model and a comparison's report.

Every command is one that docs/start.md or `podsrl init` prints, on a tiny model and for seconds.
"""

import json
from pathlib import Path

import pytest

from helpers.tiny_runs import rows_of
from podsrl.cli import main

REWARD = '''
"""Right digits are rare in a tiny model: most of the reward is for writing digits at all."""


def digits(completions, answer, **columns):
    """Half for the share of digits, half for a text that ends in the answer."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        text = completion[-1]["content"]
        share = sum(c.isdigit() for c in text) / max(1, len(text))
        rewards.append(share / 2 + text.endswith(right) / 2)
    return rewards
'''
COMPARED_SECONDS = 0.4


def write_inputs(folder: Path) -> None:
    rows = [{"question": f"what is {i} + 3?", "answer": (i + 3) % 10} for i in range(200)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my_reward.py").write_text(REWARD)


def set_in(path: Path, **settings: object) -> None:
    """Change lines of a YAML file, as a user does in an editor."""
    lines = path.read_text().splitlines()
    for name, value in settings.items():
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
        lines[place] = f"{name}: {value}"
    path.write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_practitioner_needs_no_python_beyond_the_reward(
    tmp_path: Path,
    tiny_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)

    reward = "my_reward.py:digits"
    assert main(["init", "sums.jsonl", "--model", tiny_folder, "--reward-funcs", reward]) == 0
    recipe, comparison = Path("sums/recipe.yaml"), Path("sums/compare.yaml")
    # A tiny model's answers of 128 tokens are noise; 8 of them do.
    set_in(recipe, max_steps=3, max_completion_length=8, learning_rate="1.0e-2", evaluate_limit=8)
    assert main(["train", str(recipe), "--dry_run"]) == 0
    assert main(["train", str(recipe)]) == 0
    run = Path("runs/sums")
    result = json.loads((run / "result.json").read_text())
    assert (result["num_rollouts"], result["num_generations"], result["steps"]) == (16, 8, 3)
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3]
    assert all(row["rewards/digits/mean"] == row["reward"] > 0 for row in rows_of(run))
    assert result["after"]["reward_digits"]["value"] != result["before"]["reward_digits"]["value"]

    assert main(["view", str(run)]) == 0
    page = (run / "view.html").read_text()
    assert "what is" in page and "digits" in page

    words = ["--model", f"{run}/model", "--limit", "8", "--max-new-tokens", "8"]
    assert main(["evaluate", *words, "--output", "evaluated"]) == 0  # it asks what the run asked
    figures = json.loads(Path("evaluated/evaluation.json").read_text())
    assert figures["reward_digits"] == pytest.approx(result["after"]["reward_digits"])

    set_in(comparison, seeds=2, training_seconds=COMPARED_SECONDS, evaluate_every_seconds=0.2)
    assert main(["compare", str(comparison)]) == 0
    for arm in ("grpo", "pods"):
        for seed in (0, 1):
            folder = Path(f"runs/sums-compare/{arm}/seed-{seed}")
            config = json.loads((folder / "config.json").read_text())
            assert config["reward_funcs"] == [f"{tmp_path}/{reward}"]
            assert config["num_rollouts"] == (8 if arm == "grpo" else 16)
            assert json.loads((folder / "result.json").read_text())["steps"] >= 1
    capsys.readouterr()
    assert main(["report", "runs/sums-compare"]) == 0
    assert "pods" in capsys.readouterr().out
    html = Path("runs/sums-compare/report/report.html").read_text()
    assert "grpo" in html and "pods" in html
