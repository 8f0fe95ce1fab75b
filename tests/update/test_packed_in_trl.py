"""TRL's own trainer, reading packed rows in balanced micro-batches, takes the same step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from podsrl.update.log_probs import log_probs_by_prompt
from podsrl.update.microbatch import balance, regroup
from podsrl.update.packing import group_by_prompt
from podsrl.update.support import packing_reason
from tiny import digit_reward


class Padded(GRPOTrainer):
    """GRPOTrainer that counts the tokens its model reads."""

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


class Packed(Padded):
    """The two overrides that packed updates need."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert packing_reason(self.model) is None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):  # type: ignore[no-untyped-def]
        with self.accelerator.autocast():
            log_probs, entropies = log_probs_by_prompt(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                num_rows_per_pass=batch_size,
                compute_entropy=kwargs.get("compute_entropy", False),
            )
        return log_probs, entropies, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        buffered = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is buffered:
            return inputs
        batches = self._buffered_inputs
        masks = {key: torch.cat([b[key] for b in batches]) for key in batches[0] if "mask" in key}
        prompts = torch.cat([batch["prompt_ids"] for batch in batches])
        rows = balance(
            masks["prompt_mask"].sum(1).tolist(),
            masks["completion_mask"].sum(1).tolist(),
            group_by_prompt(prompts, masks["prompt_mask"]).tolist(),
            len(batches),
        )
        self._buffered_inputs = regroup(batches, rows)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]


def train(trainer_class: type[Padded], folder: str, output: Path, **options: Any) -> Padded:
    """One optimizer step on four prompts with four rollouts, in micro-batches of four rows."""
    questions = ["1+1", "2+3 is", "what is 7-4?", "9+9?", "10-1", "0+0 equals", "5", "so 8+8 makes"]
    settings = {"loss_type": "dapo", "learning_rate": 0.1, "optim": "sgd", **options}
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=digit_reward,
        args=GRPOConfig(
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
        ),
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
