"""verl's trainer keeps of the rewards in the table what every other host keeps."""

from pathlib import Path
from typing import Any

import pytest
from harness import fit, make_config, make_trainer, sessions

from helpers.kept_sets import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verl(case: Case, tiny_folder: str, tmp_path: Path, agents: Any, monkeypatch: Any) -> None:
    num_prompts = len(case.rewards)
    config = make_config(
        tiny_folder,
        tmp_path,
        f"actor_rollout_ref.rollout.n={case.num_kept}",
        f"+trainer.v1.pods.num_rollouts={len(case.rewards[0])}",
        f"data.train_batch_size={num_prompts}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={num_prompts}",
        "trainer.total_training_steps=1",
    )
    scripts = [[[(reward, 2)] for reward in row] for row in case.rewards]
    trainer = make_trainer(config, scripts)
    fit(trainer, agents, tmp_path, monkeypatch)
    (call,) = trainer.actor_rollout_wg.of("update")
    kept = [[int(session) for session in chosen] for chosen in sessions(call["keys"]).values()]
    assert kept == case.kept
