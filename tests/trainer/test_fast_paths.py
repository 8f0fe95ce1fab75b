"""Our sampler and packed update inside PODSTrainer: same training, fewer tokens computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig

from helpers.harness import build, logged, spy
from helpers.tiny import FAMILIES, even_reward, save_tiny


@pytest.fixture(autouse=True)
def always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are too small for packing to pay; these tests want to see it run."""
    monkeypatch.setattr("podsrl.packing.serve.packed_is_cheaper", lambda *_, **__: True)


def count_tokens(model: torch.nn.Module) -> list[int]:
    """Tokens of every packed forward pass of the model."""
    calls: list[int] = []

    def hook(_: Any, args: tuple, kwargs: dict) -> None:
        if "shift_labels" in kwargs:
            calls.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def parameters_after(folder: str, output: Path, **options: Any) -> tuple[list[float], list]:
    trainer = build(folder, output, rewards=[even_reward], **options)
    trainer.train()
    trained = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
    return logged(trainer, "loss"), trained


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.1},
        {"num_iterations": 2, "max_steps": 4},
        {"gradient_checkpointing": True},
        {"mask_truncated_completions": True},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"loss_type": "grpo"},
        {"loss_type": "bnpo"},
        {"loss_type": "dr_grpo", "temperature": 0.7},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), "beta": 0.1},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_packed_training_is_padded_training(
    tiny_folder: str, tmp_path: Path, options: dict
) -> None:
    """Same rollouts, losses to 1e-6 and parameters to 1e-5 after three steps.

    SGD, because Adam divides by gradients that may be all rounding.
    """
    options = {**options, "optim": "sgd", "learning_rate": 0.05}
    losses, trained = parameters_after(tiny_folder, tmp_path / "1", packed_update=True, **options)
    expected, padded = parameters_after(tiny_folder, tmp_path / "2", packed_update=False, **options)
    assert losses == pytest.approx(expected, abs=1e-6)
    for a, b in zip(trained, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_packed_and_sampled_by_us(tmp_path: Path, family: str) -> None:
    folder = save_tiny(tmp_path / "model", family)
    trainer = build(folder, tmp_path / "run")
    tokens = count_tokens(trainer.model)
    trainer.train()
    assert trainer.prompt_once.fallback is None
    assert len([count for count in tokens if count > 30]) == 3
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoConfig.from_pretrained(tmp_path / "saved")
    assert "podsrl" not in (tmp_path / "saved" / "config.json").read_text()
    assert saved._attn_implementation != "podsrl_sdpa"


@pytest.mark.parametrize("num_rollouts", [8, 64])
def test_the_update_reads_each_prompt_once_and_kept_completions_whatever_n_is(
    tiny_folder: str, tmp_path: Path, num_rollouts: int
) -> None:
    trainer = build(tiny_folder, tmp_path, num_rollouts=num_rollouts, beta=0.1, max_steps=1)
    policy, reference = count_tokens(trainer.model), count_tokens(trainer.ref_model)
    kept = spy(trainer, "_generate")
    trainer.train()
    prompts = {tuple(ids) for ids in kept[0][0]}
    expected = sum(map(len, prompts)) + sum(map(len, kept[0][1]))
    assert policy[-1] == reference[-1] == expected  # the passes before are the self-check


def test_rollouts_of_a_prompt_stay_in_one_micro_batch(tiny_folder: str, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4}
    trainer = build(tiny_folder, tmp_path, max_steps=1, **options)
    trainer.train()
    for batch in trainer._buffered_inputs:
        assert torch.unique(batch["prompt_ids"], dim=0).shape[0] == 1
    rows = torch.cat([batch["completion_ids"] for batch in trainer._buffered_inputs])
    assert rows.shape[0] == 16


def test_generate_is_used_where_our_sampler_does_not_serve(
    tiny_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tiny_folder, tmp_path, generation_kwargs={"no_repeat_ngram_size": 3})
    with caplog.at_level("WARNING", logger="podsrl"):
        trainer.train()
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("podsrl")]
    reason = "no_repeat_ngram_size=3 is not implemented"
    assert warnings == [f"sampling through TRL's generate, which is slower: {reason}"]


def test_padded_rows_are_used_where_packing_does_not_serve(
    tiny_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("podsrl.packing.serve.packing_reason", lambda model: "it is a test")
    trainer = build(tiny_folder, tmp_path)
    with caplog.at_level("WARNING", logger="podsrl"):
        trainer.train()
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("podsrl")]
    assert warnings == ["updating on padded rows, which is slower: it is a test"]


class FakeEngine:
    """Stands for vLLM: records what it is asked for and answers with fixed tokens."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list, images: Any, num_generations: int, profiler: Any) -> tuple:
        self.calls.append((len(prompts), num_generations))
        completions = [[3 + i % 10, 4, 1] for i in range(len(prompts))]
        return prompts, completions, [[[-1.0]] * 3 for _ in prompts], None


def test_vllm_is_driven_by_its_contract(tiny_folder: str, tmp_path: Path) -> None:
    """n rollouts of each prompt are asked for, and only kept ones get importance ratios."""
    trainer = build(tiny_folder, tmp_path, num_rollouts=16, max_steps=1)
    trainer.use_vllm, trainer.vllm_generation = True, FakeEngine()
    trainer._last_loaded_step = -1
    trainer._build_steps()  # as it does where vLLM is there from the start
    assert trainer.prompt_once is None
    tokens = count_tokens(trainer.model)
    trainer.train()
    assert trainer.vllm_generation.calls == [(2 * 16, 16)]
    lengths = {batch["importance_sampling_ratio"].shape[0] for batch in trainer._buffered_inputs}
    assert lengths == {8}
    assert max(tokens) < 2 * 16 * 3  # two prompts and 8 completions of 3 tokens, not 32
