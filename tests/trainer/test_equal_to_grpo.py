"""With n = m, PODSTrainer is TRL's GRPOTrainer bit for bit."""

from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from helpers.harness import build, logged, numbers
from podsrl import PODSTrainer

CASES = [
    *[
        (loss, scale, {})
        for loss in ("grpo", "dr_grpo", "dapo", "bnpo")
        for scale in ("group", "batch", "none")
    ],
    ("dapo", "group", {"beta": 0.1}),
    ("dapo", "group", {"num_iterations": 2, "steps_per_generation": 2}),
    ("grpo", "group", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
    ("grpo", "group", {"multi_objective_aggregation": "normalize_then_sum"}),
]


def _train(trainer_class: type[GRPOTrainer], folder: str, output: Path, options: dict) -> tuple:
    if trainer_class is PODSTrainer:
        options = {**options, "num_rollouts": 4}
    trainer = build(folder, output, trainer_class=trainer_class, **options)
    trainer.train()
    parameters = [p.detach().clone() for p in trainer.model.parameters()]
    return trainer, parameters


@pytest.mark.parametrize(("loss_type", "scale_rewards", "more"), CASES)
def test_loss_and_parameters_are_bit_for_bit_equal(
    tiny_folder: str, tmp_path: Path, loss_type: str, scale_rewards: str, more: dict
) -> None:
    options = {"loss_type": loss_type, "scale_rewards": scale_rewards, **more}
    stock, stock_parameters = _train(GRPOTrainer, tiny_folder, tmp_path / "grpo", options)
    pods, pods_parameters = _train(PODSTrainer, tiny_folder, tmp_path / "pods", options)
    assert logged(pods, "loss") == logged(stock, "loss")
    assert len(logged(stock, "loss")) == 3
    assert any(loss != 0 for loss in logged(stock, "loss"))
    assert all(torch.equal(a, b) for a, b in zip(pods_parameters, stock_parameters, strict=True))
    assert numbers(pods) == numbers(stock)
    assert {"reward", "reward_std", "rewards/even_reward/std", "entropy"} <= {*numbers(stock)[0]}


def test_training_moves_the_parameters_and_n_above_m_differs(
    tiny_folder: str, tmp_path: Path
) -> None:
    """Guards the test above: its equality would also hold between models that never change."""
    _, start = _train(PODSTrainer, tiny_folder, tmp_path / "0", {"learning_rate": 0.0})
    _, equal = _train(PODSTrainer, tiny_folder, tmp_path / "1", {})
    wider = build(tiny_folder, tmp_path / "2", num_rollouts=8)
    wider.train()
    assert not all(torch.equal(a, b) for a, b in zip(start, equal, strict=True))
    assert not all(
        torch.equal(a, b.detach()) for a, b in zip(equal, wider.model.parameters(), strict=True)
    )
