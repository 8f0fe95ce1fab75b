"""The order of the prompts: TRL's as long as a run lasts, and the same one after a resume."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from helpers.harness import build
from helpers.tiny import even_reward
from podsrl import PODSTrainer
from podsrl.trl.prompt_order import ResumableSampler

STEPS_PER_EPOCH = 3  # of the harness: 6 prompts, 2 a step


class Questions:
    """A reward that notes which questions it was called with, batch by batch."""

    __name__ = "questions"

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, prompts: list, completions: list, **_: object) -> list[float]:
        self.seen.append(list(dict.fromkeys(prompt[0]["content"] for prompt in prompts)))
        return even_reward(completions)


def test_three_epochs_come_in_trls_order(tiny_folder: str, tmp_path: Path) -> None:
    seen = {}
    for trainer_class in (GRPOTrainer, PODSTrainer):
        questions = Questions()
        build(
            tiny_folder,
            tmp_path / trainer_class.__name__,
            trainer_class=trainer_class,
            rewards=[questions],
            max_steps=3 * STEPS_PER_EPOCH,
        ).train()
        seen[trainer_class] = questions.seen
    assert seen[PODSTrainer] == seen[GRPOTrainer]
    first, second, _ = (seen[PODSTrainer][i : i + STEPS_PER_EPOCH] for i in (0, 3, 6))
    assert sorted(chain(*first)) == sorted(chain(*second))
    assert first != second


@pytest.mark.parametrize("checkpoint", [3, 4])
@pytest.mark.parametrize("num_rollouts", [4, 8])
def test_a_run_resumed_in_a_later_epoch_is_the_run_that_was_not_interrupted(
    tiny_folder: str, tmp_path: Path, checkpoint: int, num_rollouts: int
) -> None:
    """Resumed at the end of the first epoch, and within the second; n = m as well as n > m."""
    options = {"max_steps": 7, "save_strategy": "steps", "save_steps": 1}
    seen, states = {}, {}
    for name in ("whole", "resumed"):
        questions = Questions()
        trainer = build(
            tiny_folder,
            tmp_path / name,
            rewards=[questions],
            num_rollouts=num_rollouts,
            **options,
        )
        start = tmp_path / f"whole/checkpoint-{checkpoint}" if name == "resumed" else None
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        seen[name], states[name] = questions.seen, trainer.model.state_dict()
    assert seen["resumed"] == seen["whole"][checkpoint:]
    for key, value in states["whole"].items():
        assert torch.equal(value, states["resumed"][key]), key


def test_an_order_follows_from_seed_and_epoch_alone() -> None:
    trls = RepeatSampler(range(7), mini_repeat_count=1, seed=5)
    orders = [list(trls) for _ in range(3)]
    epoch = [2]
    ours = ResumableSampler(RepeatSampler(range(7), 1, seed=5), lambda: epoch[0])
    assert list(ours) == list(ours) == orders[2]
    epoch[0] = 0
    assert list(ours) == orders[0]
    assert len(ours) == 7
