"""Searches as files and folders: sizes of a step, what is refused, what is confirmed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from podsrl.tune.confirm import chosen, comparison, verdict
from podsrl.tune.results import write_results, write_verdict
from podsrl.tune.settings import trial_settings
from podsrl.tune.space import read_space
from podsrl.tune.tuning import Tuning, known, load_tuning, score_of, write_tuning
from podsrl.tune.work import TuneWorker

BASE: dict[str, Any] = {
    "task": "arithmetic",
    "num_generations": 4,
    "num_rollouts": 16,
    "per_device_train_batch_size": 16,
    "train_limit": 8,
    "evaluate_limit": 8,
    "bf16": False,
    "learning_rate": 1e-5,
}
SPACE = {"num_rollouts": [2, 8, 16], "num_generations": [4, 8]}


@pytest.fixture()
def load(tiny_folder: str, tmp_path: Path) -> Callable[..., Tuning]:
    def load(**changes: Any) -> Tuning:
        content = {
            "recipe": {**BASE, "model": tiny_folder},
            "space": SPACE,
            "trials": 4,
            "training_seconds": 60,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        path = tmp_path / "file.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return load_tuning(path)

    return load


@pytest.mark.parametrize(
    ("m", "rows", "micro"),
    # 4 prompts a step: 4 m rows, at most 64 at a time, whole groups.
    [(4, 16, 16), (16, 64, 64), (32, 128, 64), (24, 96, 48), (80, 320, 64)],
)
def test_a_step_keeps_its_prompts(m: int, rows: int, micro: int) -> None:
    recipe = {"num_rollouts": 320, "num_generations": 16, "per_device_train_batch_size": 64}
    space = read_space({"num_generations": [4, 8]})
    found = trial_settings({"num_generations": m}, recipe, space)
    assert found["per_device_train_batch_size"] == micro
    assert micro * found["gradient_accumulation_steps"] == rows
    named = read_space({"num_generations": [4, 8], "gradient_accumulation_steps": [1, 2]})
    kept = trial_settings({"num_generations": m}, recipe, named)
    assert kept["per_device_train_batch_size"] == 64


def test_the_defaults(load: Callable[..., Tuning]) -> None:
    tuning = load(trials=None, output_dir=None)
    assert (tuning.num_trials, tuning.num_confirmed, tuning.num_confirm_seeds) == (24, 3, 4)
    assert tuning.output_dir == Path("runs/file") and tuning.seed == 0
    assert tuning.recipe_values == {"num_rollouts": 16, "num_generations": 4}
    assert load(space={"beta": [0.1, 0.2]}).recipe_values == {"beta": 0.0}


def test_every_trial_has_one_seed_and_the_confirmation_others(load: Callable[..., Tuning]) -> None:
    tuning = load(seed=3, confirm_seeds=2)
    run = tuning.run(7, {"num_rollouts": 8, "num_generations": 8})
    assert run.folder == tuning.output_dir / "trial-007" / "seed-3"
    assert run.settings["seed"] == 3 and run.settings["gradient_accumulation_steps"] == 2
    assert run.settings["training_seconds"] == 60.0 and run.settings["num_generations"] == 8
    propose_all(tuning)
    finish(tuning, 1, [0.4])
    runs = comparison(tuning, chosen(tuning)).runs()
    assert {run.seed for run in runs} == {4, 5} and {run.arm for run in runs} == {
        "recipe",
        "trial-001",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trial": 3}, "unknown field: trial; did you mean trials"),
        ({"trials": 0}, "trials is 0: give a whole number, at least 1"),
        ({"confirm_seeds": 1}, "confirm_seeds is 1: give a whole number, at least 2"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"training_seconds": None}, "training_seconds is None"),
        ({"recipe": "none.yaml"}, "recipe none.yaml does not exist"),
        ({"plan": "none.json"}, "plan none.json does not exist"),
        ({"space": {"num_rollouts": [2, 3]}}, "space: no values that were drawn go together"),
    ],
)
def test_what_is_refused(
    load: Callable[..., Tuning], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        load(**changes)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_samples_ahead_is_refused(
    load: Callable[..., Tuning], tiny_folder: str
) -> None:
    recipe = {**BASE, "model": tiny_folder, "steps_per_generation": 2}
    with pytest.raises(ValueError, match="steps_per_generation, which depends on num_generations"):
        load(recipe=recipe)
    assert load(recipe=recipe, space={"beta": [0, 0.1]}).recipe["steps_per_generation"] == 2


def test_more_trials_may_be_asked_for_later_and_nothing_else(load: Callable[..., Tuning]) -> None:
    tuning = load()
    write_tuning(tuning)
    write_tuning(load(trials=9))
    found = json.loads((tuning.output_dir / "tune.json").read_text())
    assert found["trials"] == 9 and found["versions"]["trl"]
    with pytest.raises(ValueError, match=r"training_seconds is 61\.0, but .* was begun with 60"):
        write_tuning(load(training_seconds=61))
    with pytest.raises(ValueError, match=r"space is .* was begun with"):
        write_tuning(load(space={"beta": [0, 0.1]}))


def propose_all(tuning: Tuning) -> None:
    """All trials, as one worker proposes them where every run were long."""
    worker = TuneWorker(tuning, tell=lambda *_: None)
    for _ in range(tuning.num_trials):
        worker._propose(tuning.trials())


def finish(tuning: Tuning, number: int, accuracies: list[float]) -> None:
    write_run(tuning.trials()[number].run.folder, accuracies)


def write_run(folder: Path, accuracies: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 0, "mark_seconds": 0.0, "accuracy": 0.2, "training_seconds": 0.0}]
    rows += [
        {"step": k, "mark_seconds": 1.0 * k, "accuracy": a, "training_seconds": 1.0 * k}
        for k, a in enumerate(accuracies, start=1)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text("{}")


def test_the_recipe_comes_first_and_no_trial_twice(load: Callable[..., Tuning]) -> None:
    """n in 2, 8, 16 and m in 4, 8: four pairs go together, and the recipe is one of them."""
    tuning = load(trials=6)
    worker = TuneWorker(tuning, tell=lambda *_: None)
    for _ in range(6):
        worker._propose(tuning.trials())
    trials = tuning.trials()
    assert trials[0].chosen == "recipe" and trials[0].values == tuning.recipe_values
    pairs = {(t.values["num_rollouts"], t.values["num_generations"]) for t in trials}
    assert len(trials) == 4 and pairs == {(8, 4), (8, 8), (16, 4), (16, 8)}
    assert worker.is_exhausted and worker.problem is None


def test_what_the_checks_of_a_run_refuse_is_passed_over(load: Callable[..., Tuning]) -> None:
    """The rule of sizes lets a schedule by max_steps through, which a run on the clock refuses."""
    schedules = ["cosine", "constant", "constant_with_warmup"]
    tuning = load(space={"lr_scheduler_type": schedules}, trials=3)
    worker = TuneWorker(tuning, tell=lambda *_: None)
    for _ in range(3):
        worker._propose(tuning.trials())
    tried = [trial.values["lr_scheduler_type"] for trial in tuning.trials()]
    assert tried == ["constant", "constant_with_warmup"]
    assert "lr_scheduler_type is cosine" in str(worker.problem)


def test_scores_are_means_over_the_marks(tmp_path: Path) -> None:
    write_run(tmp_path / "clock", [0.3, 0.5])
    assert score_of(tmp_path / "clock") == pytest.approx(0.4)
    rows = [
        {"step": step, "mark_seconds": None, "accuracy": a}
        for step, a in ((0, 0.1), (3, 0.2), (6, 0.6))
    ]
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "curve.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert score_of(tmp_path / "steps") == pytest.approx(0.4)
    assert score_of(tmp_path / "none") is None


def test_a_failed_trial_counts_as_the_lowest_score(load: Callable[..., Tuning]) -> None:
    tuning = load()
    propose_all(tuning)
    finish(tuning, 0, [0.3, 0.4])
    finish(tuning, 2, [0.5, 0.6])
    folder = tuning.trials()[1].run.folder
    folder.mkdir(parents=True)
    failure = {"exit_status": 1, "seconds": 3.0, "last_lines": ["a", "no memory left"]}
    (folder / "failed.json").write_text(json.dumps(failure))
    values, scores = known(tuning.trials())
    by_number = [trial.values for trial in tuning.trials()]
    assert values == [by_number[place] for place in (2, 0, 1, 3)]
    assert scores == pytest.approx([0.55, 0.35, 0.35])
    write_results(tuning)
    lines = (tuning.output_dir / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["state"] for row in rows] == ["finished", "failed", "finished", "to do"]
    assert rows[0]["score"] == pytest.approx(0.35) and rows[0]["accuracy"] == [0.2, 0.3, 0.4]
    assert rows[1]["log"] == "no memory left" and "score" not in rows[3]
    assert [path.name for path in tuning.output_dir.glob("results*")] == ["results.jsonl"]


def confirm(tuning: Tuning, scores: dict[str, list[float]]) -> None:
    """Results of a confirmation on seeds 1, 2, ...; None in a score's place is a missing run."""
    folder = tuning.output_dir / "confirm"
    for arm, by_seed in scores.items():
        for seed, score in enumerate(by_seed, start=1):
            write_run(folder / arm / f"seed-{seed}", [score])
    seeds = list(range(1, 1 + max(map(len, scores.values()))))
    (folder / "comparison.json").write_text(json.dumps({"arms": dict(scores), "seeds": seeds}))


def test_a_winner_is_named_when_its_interval_leaves_out_0(load: Callable[..., Tuning]) -> None:
    tuning = load()
    propose_all(tuning)
    finish(tuning, 1, [0.9])
    confirm(tuning, {"recipe": [0.30, 0.32, 0.31], "trial-001": [0.40, 0.42, 0.42]})
    found = verdict(tuning)
    assert found is not None and found.winner == "trial-001" and found.seeds == [1, 2, 3]
    assert found.arms[1].difference == pytest.approx(0.31 / 3)
    assert found.arms[1].mean["value"] == pytest.approx(1.24 / 3)
    assert found.text.startswith("trial-001 is better than the recipe: +10.3 points, 95 % +8.9")
    write_verdict(tuning, found)
    best = yaml.safe_load((tuning.output_dir / "best.yaml").read_text())
    assert best["num_rollouts"] == tuning.trials()[1].values["num_rollouts"]
    assert json.loads((tuning.output_dir / "confirmed.json").read_text())["winner"] == "trial-001"
    # The interval of noisier runs reaches below 0: the same mean difference shows nothing.
    confirm(tuning, {"recipe": [0.20, 0.42, 0.31], "trial-001": [0.50, 0.32, 0.42]})
    found = verdict(tuning)
    assert found is not None and found.winner is None
    assert found.text.startswith("no difference shown: trial-001 is nearest with +10.3 points")
    write_verdict(tuning, found)
    assert not (tuning.output_dir / "best.yaml").exists()


def test_a_worse_setting_never_wins(load: Callable[..., Tuning]) -> None:
    tuning = load()
    propose_all(tuning)
    confirm(tuning, {"recipe": [0.40, 0.42, 0.42], "trial-001": [0.30, 0.32, 0.31]})
    found = verdict(tuning)
    assert found is not None and found.winner is None and found.arms[1].difference is not None


def test_seeds_that_an_arm_lacks_are_left_out(load: Callable[..., Tuning]) -> None:
    tuning = load()
    propose_all(tuning)
    assert verdict(tuning) is None
    confirm(tuning, {"recipe": [0.3, 0.4, 0.5], "trial-001": [0.4, 0.5], "trial-002": []})
    found = verdict(tuning)
    assert found is not None and found.seeds == [1, 2]
    assert [arm.arm for arm in found.arms] == ["recipe", "trial-001"]
    confirm(tuning, {"recipe": [0.3], "trial-001": [0.4]})
    for path in tuning.output_dir.glob("confirm/*/seed-[23]/result.json"):
        path.unlink()
    found = verdict(tuning)
    assert found is not None and found.winner is None and "fewer than two seeds" in found.text


def test_the_recommended_are_confirmed_without_the_recipe(load: Callable[..., Tuning]) -> None:
    tuning = load(confirm_settings=2)
    propose_all(tuning)
    for number, score in enumerate([0.9, 0.1, 0.5, 0.3]):
        finish(tuning, number, [score])
    assert [trial.number for trial in chosen(tuning)] == [2, 3]
    assert chosen(load(confirm_settings=0)) == []
