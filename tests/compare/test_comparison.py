"""Comparison files: what their fields come to, in which order runs start, what is refused."""

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from podsrl.compare.comparison import Comparison, load_comparison, write_comparison
from podsrl.compare.weights import digests_of_weights
from podsrl.report.records import collect

BASE: dict[str, Any] = {
    "task": "arithmetic",
    "num_generations": 4,
    "num_rollouts": 16,
    "per_device_train_batch_size": 16,
    "train_limit": 8,
    "evaluate_limit": 8,
    "bf16": False,
}


@pytest.fixture()
def load(tiny_folder: str, tmp_path: Path) -> Any:
    def load(**changes: Any) -> Comparison:
        content = {
            "recipe": {**BASE, "model": tiny_folder},
            "arms": {"grpo": {}, "grpo-ga": {}, "pods": {}},
            "seeds": 2,
            "training_seconds": 60,
            "evaluate_every_seconds": 15,
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        path = tmp_path / "file.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        return load_comparison(path)

    return load


def test_presets(load: Any) -> None:
    arms = load().arms
    shape = {name: (a["num_rollouts"], a["num_generations"]) for name, a in arms.items()}
    assert shape == {"grpo": (4, 4), "grpo-ga": (16, 16), "pods": (16, 4)}
    # As many rows at a time, 16 / 4 times as many micro-batches: 16 x 4 / 16 = 4 prompts as ever.
    assert arms["grpo-ga"]["gradient_accumulation_steps"] == 4
    assert arms["grpo-ga"]["per_device_train_batch_size"] == 16
    assert all(arm["fast_sampling"] and arm["packed_update"] for arm in arms.values())
    assert not any(arm["save_model"] for arm in arms.values())


def test_overrides_win_over_preset_and_recipe(load: Any) -> None:
    arms = load(
        arms={
            "grpo-8": {"preset": "grpo", "num_generations": 8},
            "pods-random": {"selection_rule": "random"},
            "grpo-ga": {"num_rollouts": 8, "gradient_accumulation_steps": 3},
            "slow": {"fast_sampling": False, "learning_rate": "1e-3"},
        }
    ).arms
    assert (arms["grpo-8"]["num_rollouts"], arms["grpo-8"]["num_generations"]) == (8, 8)
    assert arms["pods-random"]["selection_rule"] == "random"
    assert arms["pods-random"]["num_rollouts"] == 16
    assert (arms["grpo-ga"]["num_generations"], arms["grpo-ga"]["num_rollouts"]) == (8, 8)
    assert arms["grpo-ga"]["gradient_accumulation_steps"] == 3
    assert arms["slow"]["fast_sampling"] is False


def test_runs_go_seed_by_seed_and_each_seed_begins_with_another_arm(load: Any) -> None:
    comparison = load(seeds=4)
    order = [(run.arm, run.seed) for run in comparison.runs()]
    assert order[:6] == [
        *(("grpo", 0), ("grpo-ga", 0), ("pods", 0)),
        *(("grpo-ga", 1), ("pods", 1), ("grpo", 1)),
    ]
    assert [seed for _, seed in order] == sorted(seed for _, seed in order)
    assert Counter(arm for arm, _ in order[::3]) == {"grpo": 2, "grpo-ga": 1, "pods": 1}
    run = comparison.runs(["pods"], [3])[0]
    assert run.folder == comparison.output_dir / "pods" / "seed-3"
    assert run.settings["seed"] == 3 and run.settings["training_seconds"] == 60.0


def test_defaults(load: Any) -> None:
    comparison = load(
        arms=["pods", "grpo"], seeds=None, evaluate_every_seconds=None, output_dir=None
    )
    assert comparison.seeds == tuple(range(8)) and comparison.budget.every == 15.0
    assert comparison.baseline == "grpo" and comparison.output_dir == Path("runs/file")


def test_a_recipe_file_without_what_the_comparison_sets(
    load: Any, tmp_path: Path, tiny_folder: str
) -> None:
    recipe = {**BASE, "model": tiny_folder, "max_steps": 20, "output_dir": "x", "seed": 5}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    settings = load(recipe="base.yaml").runs()[0].settings
    assert "max_steps" not in settings and settings["seed"] == 0
    assert settings["output_dir"].endswith("out/grpo/seed-0")


def by_steps(**changes: Any) -> dict[str, Any]:
    none = {"training_seconds": None, "evaluate_every_seconds": None}
    return {**none, "budget": "steps", "max_steps": 10, **changes}


def test_a_budget_of_steps(load: Any, tmp_path: Path) -> None:
    comparison = load(**by_steps(evaluate_every_steps=4, seeds=[7, 3]))
    assert str(comparison.budget) == "10 optimizer steps"
    settings = [run.settings for run in comparison.runs(["pods"])]
    assert [each["seed"] for each in settings] == [7, 3]
    for each in settings:
        assert each["max_steps"] == 10 and each["evaluate_every_steps"] == 4
        assert not {"training_seconds", "evaluate_every_seconds"} & set(each)
    write_comparison(comparison)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [content[name] for name in ("budget", "max_steps", "evaluate_every_steps")] == [
        *("steps", 10, 4)
    ]
    assert "training_seconds" not in content
    write_comparison(load(**by_steps(evaluate_every_steps=4, seeds=[7, 3, 8])))
    with pytest.raises(ValueError, match=r"evaluate_every_steps is 3, but .* was begun with 4"):
        write_comparison(load(**by_steps(seeds=[7, 3])))  # 10 / 4, rounded up
    with pytest.raises(ValueError, match=r"budget is 'seconds', but .* was begun with 'steps'"):
        write_comparison(load())


def predict(folder: Path, name: str = "predictions.json", **changes: Any) -> str:
    arms = {"pods": {"low": 1.0, "value": 1.2, "high": 1.5}}
    (folder / name).write_text(json.dumps({"ratio": "time", "arms": arms} | changes))
    return name


def test_predictions_and_share_are_fixed_before_the_runs(load: Any, tmp_path: Path) -> None:
    predict(tmp_path)
    comparison = load(share=0.95)
    assert comparison.predictions == {
        "ratio": "time",
        "baseline": "grpo",
        "arms": {"pods": {"low": 1.0, "value": 1.2, "high": 1.5}},
    }
    write_comparison(comparison)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["predictions"] == comparison.predictions and content["share"] == 0.95
    write_comparison(load(seeds=4))
    predict(tmp_path, arms={"pods": {"low": 1.0, "value": 1.3, "high": 1.5}})
    with pytest.raises(ValueError, match=r"the predictions are others than .* was begun with"):
        write_comparison(load())
    named = predict(tmp_path, "mine.json", baseline="grpo-ga")
    assert load(predictions=named).predictions["baseline"] == "grpo-ga"
    (tmp_path / "predictions.json").unlink()
    assert load().predictions is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": "accuracy"}, "ratio is 'accuracy': choose from time, steps"),
        ({"ratio": "steps"}, "ratio is steps, but the comparison's budget is seconds"),
        ({"arms": {"ppo": {}}}, "predicts of ppo: the comparison has grpo, grpo-ga, pods"),
        ({"baseline": "ppo"}, "predicts of ppo"),
        ({"arms": {"pods": {"value": 1.2}}}, "pods is {'value': 1.2}: give value, low and high"),
        ({"arms": {"pods": {"low": 2, "value": 1, "high": 3}}}, "with 0 < low <= value"),
        ({"arms": [1]}, "has no mapping arms"),
        ({"arm": {}}, "unknown field of"),
    ],
)
def test_what_is_no_prediction(
    load: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    predict(tmp_path, **changes)
    with pytest.raises(ValueError) as error:
        load()
    assert words in str(error.value)


def test_a_folder_from_before_there_were_budgets_goes_on(load: Any, tmp_path: Path) -> None:
    write_comparison(load())
    path = tmp_path / "out" / "comparison.json"
    old = json.loads(path.read_text())
    assert old.pop("budget") == "seconds"
    path.write_text(json.dumps(old))
    write_comparison(load(seeds=3))
    assert json.loads(path.read_text())["seeds"] == [0, 1, 2]


def test_a_collection_with_own_code_goes_on(load: Any, tmp_path: Path) -> None:
    """It names the code by its file; other code, by another name, is another setting."""
    for name in ("own.py", "other.py"):
        (tmp_path / name).write_text("")
    write_comparison(load(arms={"pods": {"plugins": ["own.py"]}}))
    folder = collect(tmp_path / "out", tmp_path / "kept").parent
    shutil.rmtree(tmp_path / "out")
    folder.rename(tmp_path / "out")
    write_comparison(load(arms={"pods": {"plugins": ["own.py"]}}))
    with pytest.raises(ValueError, match=r"plugins of arm pods is \['other.py'\], but"):
        write_comparison(load(arms={"pods": {"plugins": ["other.py"]}}))


def test_a_model_made_anew_does_not_join(load: Any, tiny_folder: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    comparison = load(recipe={**BASE, "model": str(model)})
    write_comparison(comparison)
    path = tmp_path / "out" / "comparison.json"
    first = json.loads(path.read_text())["weights"]
    assert len(first[str(model)]) == 64
    write_comparison(comparison)  # the same weights go on
    (weights,) = model.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the last bit of the last parameter
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"has other weights .* bring the old ones back"):
        write_comparison(comparison)
    assert json.loads(path.read_text())["weights"] == first
    # Begun before weights were written down: nobody knows which they were.
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "weights"})
    )
    write_comparison(comparison)
    assert json.loads(path.read_text())["weights"] == {}


def test_weights_are_those_of_folders(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"x"), ("b.bin", b"y"), ("config.json", b"{}")):
        (tmp_path / name).write_bytes(content)
    before = digests_of_weights([str(tmp_path), "smollm2-135m", str(tmp_path / "nothing")])
    assert list(before) == [str(tmp_path)]
    # By hand: name, size and digest of each, in alphabetical order.
    whole = hashlib.sha256(
        b"a.safetensors 1\n"
        + hashlib.sha256(b"x").digest()
        + b"b.bin 1\n"
        + hashlib.sha256(b"y").digest()
    )
    assert before[str(tmp_path)] == whole.hexdigest()
    (tmp_path / "config.json").write_text("{ }")
    assert digests_of_weights([str(tmp_path)]) == before


def test_learning_rates_may_follow_known_steps_and_arms_may_pool_their_budget(load: Any) -> None:
    arms = {"grpo": {}, "mine": {"lr_scheduler_type": "cosine", "budget": "pooled"}}
    settings = load(**by_steps(arms=arms)).runs()[1].settings
    assert settings["budget"] == "pooled" and settings["lr_scheduler_type"] == "cosine"
    assert settings["max_steps"] == 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": {}}, "unknown field: arm; did you mean arms"),
        ({"arms": {}}, "arms is {}: name at least one"),
        ({"arms": {"mine": {}}}, "arm mine changes nothing and is no preset"),
        ({"arms": {"a/b": {"beta": 0.1}}}, "arm 'a/b': a name becomes a folder"),
        ({"arms": {"a": {"num_rollout": 3}}}, "unknown setting of arm a: num_rollout; did you"),
        ({"arms": {"a": {"num_rollouts": 2}}}, "arm a: num_rollouts (n) is 2, less than"),
        ({"arms": {"a": {"selection_rule": "x"}}}, "arm a: selection_rule is 'x'"),
        ({"arms": {"a": {"preset": "x"}}}, "arm a: preset is 'x'"),
        ({"arms": {"a": {"seed": 1}}}, "arm a sets seed"),
        ({"arms": {"a": {"max_steps": 1}}}, "arm a sets max_steps"),
        ({"arms": {"a": {"evaluate_every_steps": 1}}}, "arm a sets evaluate_every_steps"),
        ({"arms": {"a": {"budget": "steps"}}}, "arm a: budget is 'steps'; choose one of per_"),
        ({"arms": {"grpo-ga": {"num_rollouts": 6}}}, "arm grpo-ga: gradient_accumulation_steps"),
        ({"arms": {"a": {"lr_scheduler_type": "cosine"}}}, "arm a: lr_scheduler_type is cosine"),
        ({"arms": {"a": {"model": "./none"}}}, "arm a: model folder ./none does not exist"),
        ({"arms": {"a": {"evaluate_limit": 0}}}, "arm a: evaluate_limit is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]"),
        ({"training_seconds": None}, "training_seconds is None"),
        ({"training_seconds": "1m"}, "training_seconds is '1m'"),
        ({"evaluate_every_seconds": -5}, "evaluate_every_seconds is -5"),
        ({"budget": "epochs"}, "budget is 'epochs': a comparison's is seconds or steps"),
        ({"budget": "pooled"}, "an arm, as in arms: {mine: {budget: pooled}}"),
        (
            {"max_steps": 10},
            "max_steps goes with budget: steps, but the comparison's budget is seconds: give "
            "training_seconds and evaluate_every_seconds, or write budget: steps",
        ),
        (
            {"budget": "steps", "max_steps": 10},
            "training_seconds goes with budget: seconds, but the comparison's budget is steps: "
            "give max_steps and evaluate_every_steps, or write budget: seconds",
        ),
        (by_steps(max_steps=None), "max_steps is None: give a whole number of steps"),
        (by_steps(max_steps=2.5), "max_steps is 2.5"),
        (by_steps(evaluate_every_steps=0), "evaluate_every_steps is 0"),
        ({"share": 0}, "share is 0: give a number above 0 and at most 1, such as 0.95"),
        ({"predictions": "none.json"}, "predictions none.json does not exist"),
        ({"predictions": 3}, "predictions is 3: name a JSON file"),
        ({"baseline": "none"}, "baseline is none: the comparison has grpo, grpo-ga, pods"),
        ({"recipe": "none.yaml"}, "recipe none.yaml does not exist"),
        ({"recipe": {"seed": 3}}, "recipe sets seed"),
    ],
)
def test_what_is_refused(load: Any, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        load(**changes)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_arms_and_seeds_to_run(load: Any) -> None:
    with pytest.raises(ValueError, match="--arms is x: the comparison has grpo"):
        load().runs(["x"])
    with pytest.raises(ValueError, match="--seeds is 9: the comparison has 0, 1"):
        load().runs(None, [9])


def test_arms_and_seeds_may_be_added_but_not_changed(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "out" / "comparison.json"
    write_comparison(load())
    first = json.loads(path.read_text())
    assert first["task"] == "arithmetic" and first["baseline"] == "grpo"
    assert first["versions"]["trl"] and first["arms"]["pods"]["num_rollouts"] == 16
    write_comparison(load(arms={"pods": {}, "pods-all": {"advantage_from": "all"}}, seeds=[5]))
    second = json.loads(path.read_text())
    assert list(second["arms"]) == ["grpo", "grpo-ga", "pods", "pods-all"]
    assert second["seeds"] == [0, 1, 5]
    with pytest.raises(ValueError, match=r"beta of arm pods is 0.1, but .* was begun with None"):
        write_comparison(load(arms={"pods": {"beta": 0.1}}))
    with pytest.raises(ValueError, match=r"training_seconds is 61\.0"):
        write_comparison(load(training_seconds=61))
    assert json.loads(path.read_text()) == second
