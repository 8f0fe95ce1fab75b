"""PODSTrainer beside other subclasses of GRPOTrainer, and under its own test file's ways."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOTrainer

from helpers.harness import build, logged
from podsrl import PODSConfig, PODSTrainer


class Weighted(GRPOTrainer):
    """A user's subclass: parameters in another order, one of its own, a loss of its own."""

    def __init__(
        self,
        args: Any = None,
        train_dataset: Dataset | None = None,
        *,
        loss_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(args=args, train_dataset=train_dataset, **options)
        self.loss_weight = loss_weight

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        return self.loss_weight * super()._compute_loss(model, inputs)


class WeightedPods(PODSTrainer, Weighted):
    """Both."""


def test_another_subclass_stands_behind_ours(tiny_folder: str, tmp_path: Path) -> None:
    """Its parameter arrives and its loss is taken, on the kept rows."""
    plain = build(tiny_folder, tmp_path / "1", max_steps=1)
    plain.train()

    def heavier(**options: Any) -> PODSTrainer:
        model, functions = options.pop("model"), options.pop("reward_funcs")
        return WeightedPods(model, functions, loss_weight=3.0, **options)

    both = build(tiny_folder, tmp_path / "2", trainer_class=WeightedPods, make=heavier, max_steps=1)
    both.train()
    assert both.loss_weight == 3.0
    (loss,) = logged(plain, "loss")
    assert loss != 0 and logged(both, "loss") == [pytest.approx(3 * loss)]
    assert logged(both, "pods/kept_reward_mean") == logged(plain, "pods/kept_reward_mean")


def test_what_nobody_takes_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        PODSTrainer(reward_funcs=[len])
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss_weight'"):
        PODSTrainer(object(), [len], PODSConfig("x", use_cpu=True, bf16=False), loss_weight=3.0)


def test_a_trainer_that_was_not_built_generates_as_trl_says() -> None:
    """TRL's own tests make a trainer without __init__ and call one method."""
    trainer = object.__new__(PODSTrainer)
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(device="cpu")
    trainer.use_vllm = False
    trainer.rollout_func = lambda prompts, trainer: {"prompt_ids": [[1]]}
    with pytest.raises(ValueError, match=r"must return keys \['completion_ids', 'logprobs'\]"):
        trainer._generate(["a question"])
