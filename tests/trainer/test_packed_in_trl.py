"""TRL's own trainer, reading packed rows in balanced micro-batches, takes the same step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from helpers.tiny import digit_reward
from podsrl import PODSConfig, PODSTrainer
from podsrl.packing.pack import group_by_prompt


class Counting:
    """Counts the tokens that the model of a trainer reads."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[Tensor] = []
        self.num_read, self.groups_read = 0, []
        self.model.get_input_embeddings().register_forward_hook(self.count)

    def count(self, module: Any, args: Any, output: Any) -> None:
        self.num_read += args[0].numel()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        before = self.num_read
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.detach())
        group_B = group_by_prompt(inputs["prompt_ids"], inputs["prompt_mask"])
        self.groups_read.append((len(group_B.unique()), self.num_read - before))
        return loss


class Padded(Counting, GRPOTrainer):
    """TRL's trainer."""


class Packed(Counting, PODSTrainer):
    """Ours with n = m and packed rows, checked before the count begins."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert self.kept_log_probs.costs(self.model) is not None


@pytest.fixture(autouse=True)
def always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is too small for packing to pay."""
    monkeypatch.setattr("podsrl.packing.serve.packed_is_cheaper", lambda *_, **__: True)


def train(trainer_class: type[Any], folder: str, output: Path, **options: Any) -> Any:
    """One optimizer step on four prompts with four rollouts, in micro-batches of four rows."""
    questions = ["1+1", "2+3 is", "what is 7-4?", "9+9?", "10-1", "0+0 equals", "5", "so 8+8 makes"]
    settings = {"loss_type": "dapo", "learning_rate": 0.1, "optim": "sgd", **options}
    if trainer_class is Packed:
        config_class, settings = PODSConfig, {**settings, "num_rollouts": 4, "packed_update": True}
    else:
        config_class = GRPOConfig
    config = config_class(
        str(output),
        max_steps=1,
        num_generations=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_completion_length=12,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=3,
        **settings,
    )
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=digit_reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": questions}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo", "beta": 0.1, "temperature": 0.8},
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo", "mask_truncated_completions": True, "steps_per_generation": 8},
    ],
    ids=["dapo with a reference", "grpo", "dr_grpo with old log-probs and truncated rows"],
)
def test_same_loss_and_step(options: dict[str, Any], tiny_folder: str, tmp_path: Path) -> None:
    padded = train(Padded, tiny_folder, tmp_path / "padded", **options)
    packed = train(Packed, tiny_folder, tmp_path / "packed", **options)
    if "steps_per_generation" not in options:
        # Micro-batches hold other rows, so only their sum is the same.
        assert sum(padded.losses).item() == pytest.approx(sum(packed.losses).item(), abs=1e-6)
        pairs = zip(padded.model.parameters(), packed.model.parameters(), strict=True)
        for expected, found in pairs:
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        start = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype="float32")
        moved = [
            (found - before).abs().max().item()
            for found, before in zip(packed.model.parameters(), start.parameters(), strict=True)
        ]
        assert max(moved) > 1e-3
    assert all(torch.isfinite(loss) for loss in packed.losses)
    assert [groups for groups, _ in packed.groups_read] == [1] * len(packed.groups_read)
    assert sum(n for _, n in packed.groups_read) < 0.8 * sum(n for _, n in padded.groups_read)
