"""PODSTrainer with a rollout log: what is written is what was sampled, kept and trained on."""

from pathlib import Path

import pytest
import torch

from helpers.harness import build, spy
from helpers.tiny import digit_reward, text_of
from podsrl.runs.rollout_log import FILE_NAME, attach_log, read_rollouts


def test_the_log_says_what_the_trainer_did(tiny_folder: str, tmp_path: Path) -> None:
    """Two prompts a step, n = 8, m = 4, three steps; kept texts and advantages recomputed."""
    trainer = build(tiny_folder, tmp_path, rewards=[digit_reward], scale_rewards="group")
    attach_log(trainer, tmp_path)
    kept = spy(trainer, "_generate")
    trainer.train()
    header, records = read_rollouts(tmp_path / FILE_NAME)
    rows = list(records)
    assert header["reward_names"] == ["digit_reward"]
    assert (header["num_rollouts"], header["num_generations"]) == (8, 4)
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (1, 2, 3) for prompt in (0, 1)
    ]
    for step in range(3):
        pair = rows[2 * step : 2 * step + 2]
        logged = [
            t for row in pair for t, kept in zip(row["texts"], row["kept"], strict=True) if kept
        ]
        assert logged == [text_of(completion) for completion in kept[step][3]]
    for row in rows:
        assert row["answer"] == str(len(row["question"]))  # the harness's data set
        assert (
            row["rewards"] == row["parts"][0] == pytest.approx(digit_reward(row["texts"]), rel=1e-5)
        )
        assert sum(row["kept"]) == 4 and len(row["kept"]) == 8
        assert sum(word in ("dropped", "no_reward") for word in row["why"]) == 4
        kept_rewards = [r for r, kept in zip(row["rewards"], row["kept"], strict=True) if kept]
        rewards = torch.tensor(kept_rewards)
        expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        advantages = [a for a in row["advantages"] if a is not None]
        assert advantages == pytest.approx(expected.tolist(), abs=1e-3)
