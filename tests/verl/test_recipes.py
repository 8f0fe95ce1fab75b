"""recipes/verl: what they pass is in verl's configuration, and fits PODS and verl's own checks."""

import os
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_reference_policy
from verl.utils.config import validate_config

from podsrl.verl.settings import settings_of

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "verl").glob("*.sh"))
SIZES = {  # GPUs, n, m, prompts a step
    "qwen2.5-0.5b-1gpu": (1, 32, 8, 64),
    "qwen2.5-7b-8gpus": (8, 64, 16, 64),
    "qwen2.5-32b-64gpus": (64, 64, 16, 64),
}


def config_of(recipe: Path, tmp_path: Path, *more: str) -> DictConfig:
    """What verl would be started with, read from a stand-in for Python."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "DATA": "/data"}
    command = [str(recipe), *more]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    flag, module, *overrides = ran.stdout.splitlines()
    assert (flag, module) == ("-m", "verl.trainer.main_ppo")
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def test_every_recipe_is_known_here() -> None:
    assert {recipe.stem for recipe in RECIPES} == SIZES.keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_fits(recipe: Path, tmp_path: Path) -> None:
    config = config_of(recipe, tmp_path)
    num_gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    settings = settings_of(config)
    sizes = num_gpus, settings.num_rollouts, settings.num_kept, config.data.train_batch_size
    assert sizes == SIZES[recipe.stem]
    assert config.trainer.use_v1 and config.trainer.v1.trainer_mode == "pods_sync"
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)
    # Kept rows of a step fill mini-batches and processes without padding.
    kept = config.data.train_batch_size * settings.num_kept
    mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size * settings.num_kept
    assert kept % mini_batch == 0 and mini_batch % num_gpus == 0


def test_what_is_added_on_the_command_line_wins(tmp_path: Path) -> None:
    config = config_of(RECIPES[0], tmp_path, "actor_rollout_ref.rollout.n=16")
    assert settings_of(config).num_kept == 16
