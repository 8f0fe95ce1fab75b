"""`rbrm` with a head on the policy's hidden states, through the real trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from helpers.harness import build, logged, spy
from helpers.heads import about
from helpers.tiny import even_reward, make_model
from podsrl import PODSConfig, PODSTrainer
from podsrl.probe.head import Head, load_head, model_digest, save_head
from podsrl.sampling.tap import states_at

WriteHead = Callable[..., str]
RBRM: dict[str, Any] = {"objective": "rbrm", "max_steps": 2, "rewards": [even_reward]}


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


@pytest.fixture
def write_head(tmp_path: Path) -> WriteHead:
    """A head of pairs on the tiny model, with random weights of the given size."""

    def write(size: float = 0.5, layers: tuple[int, ...] = (1,), **changes: Any) -> str:
        told = {"kind": "bradley_terry", "model_digest": model_digest(make_model()), **changes}
        draw = torch.Generator().manual_seed(1)
        weight, bias, gate = torch.randn(32, generator=draw) * size, 0.25, None
        if len(layers) > 1:
            weight = torch.randn(len(layers), 32, generator=draw) * size
            bias, gate = torch.ones(len(layers)), torch.eye(len(layers))
        path = tmp_path / f"head-{size}-{len(layers)}.safetensors"
        save_head(path, Head(weight, bias, about(layers=list(layers), **told), gate))
        return str(path)

    return write


@pytest.mark.parametrize(("layers", "refill"), [((1,), 1), ((1, 2), 0)])
def test_each_rollout_has_what_the_head_gives_its_end(
    layers: tuple[int, ...], refill: int, write_head: WriteHead, tiny_folder: str, tmp_path: Path
) -> None:
    path = write_head(layers=layers)
    trainer = build(
        tiny_folder,
        tmp_path / "run",
        **{**RBRM, "max_steps": 1},
        rbrm_head=path,
        refill_constant_groups=refill,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    )
    found, batches = spy(trainer.objective_step, "_kept_batch"), []
    loss = trainer.objective_step.loss
    trainer.objective_step.loss = lambda model, inputs, *more: (
        batches.append(inputs) or loss(model, inputs, *more)
    )
    trainer.train()
    head, model, num_rows = load_head(path), make_model(), 0
    for inputs, (batch, _) in zip(batches, found, strict=True):
        texts = []
        for row in range(len(inputs["prompt_ids"])):
            ids = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist()
            answer = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
            texts.append(ids + answer[:-1])  # the state that drew the last token
        states = states_at(model, texts, layers=head.about.layers)
        expected = head.log_odds(head.of_layers(states))
        torch.testing.assert_close(batch.extras["head_log_odds"], expected, atol=1e-4, rtol=1e-4)
        num_rows += len(texts)
    assert num_rows == 8
    assert 0 <= logged(trainer, "objective/head_agrees")[0] <= 1
    assert 0.5 <= logged(trainer, "objective/pair_confidence")[0] < 1


def test_a_head_that_gives_all_the_same_is_none_and_beside_sure_rewards_it_is_dpo(
    write_head: WriteHead, tiny_folder: str, tmp_path: Path
) -> None:
    constant = write_head(0.0)

    def trained(**options: Any) -> Tensor:
        trainer = build(tiny_folder, tmp_path / "run", **{**RBRM, **options})
        trainer.train()
        return weights(trainer)

    bare = trained()
    assert torch.equal(trained(rbrm_head=constant, rbrm_alpha=7.5), bare)
    dpo = trained(objective="dpo")
    assert torch.equal(trained(rbrm_head=constant, rbrm_alpha=100.0), dpo)
    # On rewards of 0 and 1 it is another loss where the head tells rollouts apart.
    other = trained(rbrm_head=write_head())
    assert (other - dpo).abs().max() > 1e-4


def test_a_resumed_run_is_the_whole_one_to_the_bit(
    write_head: WriteHead, tiny_folder: str, tmp_path: Path
) -> None:
    options = {**RBRM, "rbrm_head": write_head(), "save_strategy": "steps", "save_steps": 1}
    whole = build(tiny_folder, tmp_path / "whole", **options)
    whole.train()
    resumed = build(tiny_folder, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"at": "prompt", "within_low": None}, {}, "was fitted at the prompt"),
        ({"within_low": 0.4}, {}, "not right from wrong among the rollouts of one prompt"),
        ({"model_digest": "0" * 64}, {}, "this model is another"),
        ({}, {"objective": "dpo"}, "rbrm_head needs objective='rbrm', which alone"),
        ({}, {"fast_sampling": False}, "rbrm_head needs fast_sampling=True"),
        ({}, {"sampling_rounds": 4}, "rbrm_head needs sampling_rounds=0"),
        ({}, {"rbrm_refresh_steps": 0}, "rbrm_refresh_steps is 0: give 1 or more"),
        ({}, {"rbrm_refresh_steps": 2, "rbrm_head": None}, "is 2: .* together with rbrm_head"),
        (
            {},
            {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])},
            "train without use_peft",
        ),
    ],
)
def test_what_a_head_cannot_be_used_for_is_told(
    changes: dict[str, Any],
    options: dict[str, Any],
    message: str,
    write_head: WriteHead,
    tiny_folder: str,
    tmp_path: Path,
) -> None:
    path = write_head(**changes)
    with pytest.raises(ValueError, match=message):
        build(tiny_folder, tmp_path / "run", **{**RBRM, "rbrm_head": path, **options})


def test_with_a_head_the_rewards_say_only_which_is_chosen_unless_told() -> None:
    def alpha(**options: Any) -> float | None:
        plain = {"use_cpu": True, "bf16": False, "num_generations": 4, "num_rollouts": 8}
        return PODSConfig("unused", objective="rbrm", **plain, **options).rbrm_alpha

    assert alpha() == 7.5 and alpha(rbrm_head="h") == 0
    assert alpha(rbrm_head="h", rbrm_alpha=2.0) == 2
