"""Sub-trajectory balance through the real trainer: what reaches the loss, and that it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.harness import build, logged
from helpers.tiny import even_reward, text_of
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.objectives.end_tokens import end_log_probs
from podsrl.packing.log_probs import unwrap

# Plain descent without clipping: weights move by exactly the gradient.
DESCENT = {"optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0.0}


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def logging_reward(completions: list, answer: list, log_metric: Any, log_extra: Any, **_: Any):
    """1 for completions of even length, .5 more where the question's length divides theirs."""
    log_metric("num_scored", float(len(completions)))
    log_extra("text", [text_of(each) for each in completions])
    pairs = zip(even_reward(completions), completions, answer, strict=True)
    return [r + 0.5 * (len(text_of(text)) % int(length) == 0) for r, text, length in pairs]


def test_what_reaches_the_loss(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        objective="subtb",
        rewards=[logging_reward],
        max_steps=2,
        temperature=0.7,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
    )
    seen: list[Any] = []
    original = trainer.objective_step._kept_batch

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        batch, entropies = original(model, inputs)
        ends = [ends_by_whole_logits(trainer, each, inputs) for each in (model, trainer.ref_model)]
        seen.append((inputs, batch, ends))
        return batch, entropies

    monkeypatch.setattr(trainer.objective_step, "_kept_batch", spy)
    before = weights(trainer)
    trainer.train()
    assert (weights(trainer) - before).abs().max() > 1e-4
    assert len(seen) == 4
    for inputs, batch, (policy_BT, reference_BT) in seen:
        keep_BT = batch.keep_BT
        found = batch.extras["end_log_probs"], batch.extras["reference_end_log_probs"]
        for one, other in zip(found, (policy_BT, reference_BT), strict=True):
            torch.testing.assert_close(one[keep_BT], other[keep_BT], rtol=1e-4, atol=1e-5)
        assert found[0].requires_grad and not found[1].requires_grad
        rewards_BT = batch.extras["prefix_rewards"]
        assert torch.equal(rewards_BT.isnan(), ~keep_BT)
        ids = inputs["completion_ids"].tolist()
        for row, t in keep_BT.nonzero().tolist():
            text = trainer.processing_class.decode(ids[row][:t], skip_special_tokens=True)
            assert rewards_BT[row, t] % 1 in (0, 0.5)
            assert (rewards_BT[row, t] >= 1) == (len(text) % 2 == 0)
            if ids[row][t] == trainer.processing_class.eos_token_id:
                assert rewards_BT[row, t] == batch.rewards_B[row]  # and so of its own question
    # What the reward function logs is of the 16 rollouts of a step, and not of prefixes.
    assert logged(trainer, "num_scored") == [16.0, 16.0]
    assert len(trainer._logs["extra"]["text"]) == len(trainer._logs["completion"])


@torch.no_grad()
def ends_by_whole_logits(trainer: PODSTrainer, model: Any, inputs: dict[str, Any]) -> Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    positions = mask.cumsum(1).sub(1).clamp(min=0)
    logits = unwrap(model)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    width = inputs["completion_ids"].shape[1]
    log_probs = (logits[:, -width - 1 : -1] / trainer.temperature).log_softmax(-1)
    return log_probs[..., trainer.processing_class.eos_token_id]


def test_micro_batches_change_nothing(tiny_folder: str, tmp_path: Path) -> None:
    found = []
    for batches in (1, 2):
        sizes = {"per_device_train_batch_size": 8 // batches}
        options = {"objective": "subtb", "max_steps": 2, "subtb_lambda": 0.9, **DESCENT}
        trainer = build(
            tiny_folder, tmp_path, gradient_accumulation_steps=batches, **sizes, **options
        )
        start = weights(trainer)
        trainer.train()
        found.append(weights(trainer))
    assert (found[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subtb_lambda": 0.0}, "subtb_lambda is 0.0, but objective='subtb' divides"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "as prefixes are in no group"),
        ({"objective": "agro", "subtb_lambda": 1.0}, "subtb_lambda is 1.0, which has no effect"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, "objective": "subtb"}
    with pytest.raises(ValueError, match=words):
        PODSConfig("unused", **{**settings, **options})


def test_turns_are_refused(tiny_folder: str, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="objective='subtb' scores what stands before"):
        build(
            tiny_folder,
            tmp_path,
            objective="subtb",
            make=lambda **given: PODSTrainer(rollout_func=lambda prompts, trainer: {}, **given),
        )


def test_ends_by_hand() -> None:
    """Logits (0, 0, log 2): ends 0 and 2 have 1/4 + 1/2, whatever the chunk; padding has 0."""
    hidden_BTH = torch.tensor([1.0, 1.0, 2.0]).log().expand(2, 3, 3).contiguous()
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0]])
    hidden_BTH.requires_grad_()
    found_BT = end_log_probs(
        hidden_BTH, lambda x: x, torch.tensor([0, 2]), mask_BT, tokens_per_chunk=3
    )
    expected = torch.tensor(0.75).log() * mask_BT
    torch.testing.assert_close(found_BT.detach(), expected)
    found_BT.sum().backward()
    # d log(3/4): softmax among the ends, minus softmax: (1/3 - 1/4, -1/4, 2/3 - 1/2)
    assert hidden_BTH.grad is not None
    expected_H = torch.tensor([1 / 12, -1 / 4, 1 / 6])
    torch.testing.assert_close(hidden_BTH.grad[0, 0], expected_H)
    assert (hidden_BTH.grad[1, 1:] == 0).all()
    with pytest.raises(ValueError, match="at least one"):
        end_log_probs(hidden_BTH, lambda x: x, torch.tensor([]).long(), mask_BT)
