"""A colocated vLLM has room for all n rollouts of a step: they arrive in one wave."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

import pytest
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from helpers.harness import build, logged
from podsrl import PODSTrainer


class Engine:
    """Stands for TRL's VLLMGeneration: decodes at most `max_num_seqs` rows at once."""

    built: ClassVar[list["Engine"]] = []

    def __init__(self, *, max_num_seqs: int, mode: str, **options: Any) -> None:
        self.max_num_seqs, self.mode = max_num_seqs, mode
        self.waves: list[int] = []
        Engine.built.append(self)

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list, images: Any, num_generations: int, profiler: Any) -> tuple:
        for first in range(0, len(prompts), self.max_num_seqs):
            self.waves.append(len(prompts[first : first + self.max_num_seqs]))
        completions = [[3 + i % 10, 4, 1] for i in range(len(prompts))]
        return prompts, completions, [[[-1.0]] * 3 for _ in prompts], None


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    Engine.built.clear()


@pytest.mark.parametrize("num_rollouts", [16, 64, 256])
def test_n_rollouts_arrive_in_one_wave(tiny_folder: str, tmp_path: Path, num_rollouts: int) -> None:
    """16 kept rows a process, one prompt: TRL alone would bound vLLM at 16 rows."""
    trainer = build(
        tiny_folder,
        tmp_path,
        num_rollouts=num_rollouts,
        num_generations=16,
        per_device_train_batch_size=16,
        max_steps=1,
        use_vllm=True,
        vllm_mode="colocate",
    )
    assert grpo_trainer.VLLMGeneration is Engine  # as it was
    trainer.train()
    (built,) = Engine.built
    assert built.waves == [num_rollouts]
    assert logged(trainer, "pods/max_kept_per_prompt") == [16.0]


def test_trl_alone_takes_n_over_m_waves(tiny_folder: str, tmp_path: Path) -> None:
    """The reason for all this, and a sign when TRL sizes its engine otherwise."""
    build(
        tiny_folder,
        tmp_path,
        trainer_class=GRPOTrainer,
        num_generations=4,
        per_device_train_batch_size=8,
        steps_per_generation=2,
        use_vllm=True,
    )
    assert Engine.built[0].max_num_seqs == 16  # rows a process, not rollouts
    source = inspect.getsource(GRPOTrainer.__init__)
    assert "VLLMGeneration(" in source and "max_num_seqs=args.per_device_train_batch" in source


def test_the_engine_is_trls_own_again_after_an_error(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**options: Any) -> None:
        raise RuntimeError("no memory for the engine")

    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        build(tiny_folder, tmp_path, use_vllm=True, trainer_class=PODSTrainer)
    assert grpo_trainer.VLLMGeneration is failing
