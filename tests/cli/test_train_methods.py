"""Every estimator, objective, rule and budget trains through podsrl train and goes on from a
checkpoint, with more rollouts sampled than kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from podsrl.cli.train import main
from podsrl.core.advantage import ESTIMATORS
from podsrl.core.objectives import OBJECTIVES
from podsrl.core.select import RULES

METHODS: dict[str, dict[str, Any]] = {
    **{f"advantage {name}": {"advantage": name} for name in ESTIMATORS},
    "stratified": {"advantage_weights": "stratified"},
    **{
        f"objective {name}": {"objective": name}
        for name, each in OBJECTIVES.items()
        if not each.needs_turns  # which is refused: tests/trainer/test_sdpo.py
    },
    **{f"rule {name}": {"selection_rule": name} for name in RULES},
    "pooled": {"budget": "pooled"},
    "schedule": {"num_generations_start": 2},
    "refill": {"refill_constant_groups": 1},
    "early stop": {"early_stop": True},
    "rounds": {"sampling_rounds": 2},
}
# Both stages of the loop, and two rollouts of the reference instead of eight.
OPTIONS = {
    "schedule": {"num_generations_steps": 2},
    "objective veripo": {"veripo_policy_steps": 1, "veripo_pair_steps": 1},
    "objective astar_po": {"num_reference_rollouts": 2},
    "objective qrpo": {"num_reference_rollouts": 2},
}


@pytest.mark.parametrize("name", METHODS)
def test_trains_and_resumes(name: str, tiny_folder: str, tmp_path: Path) -> None:
    settings = {
        "model": tiny_folder,
        "output_dir": tmp_path / "run",
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 4,
        "evaluate_limit": 0,
        "train_limit": 16,
        "save_model": False,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_checkpointing": False,
        "lr_scheduler_type": "constant",  # another one ends with max_steps, which is put off
        **METHODS[name],
        **OPTIONS.get(name, {}),
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert main([*words, "--max_steps", "1"]) == 0
    assert main([*words, "--max_steps", "2", "--resume"]) == 0
    folder = tmp_path / "run"
    config = json.loads((folder / "config.json").read_text())
    for key, value in METHODS[name].items():
        assert config[key] == value
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] == row["loss"] and abs(row["loss"]) < 1e6 for row in rows)
