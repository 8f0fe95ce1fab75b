"""Objectives through the real trainer: they train, resume, and do not see micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import podsrl.trl.sampling
from helpers.harness import build, logged
from helpers.tiny import even_reward
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.objectives import OBJECTIVES, Objective
from podsrl.core.objectives.regression import agro

OWN = ("agro", "astar_po", "qrpo", "rebel", "vargrad", "sapg")
WITHOUT_REFERENCE = ("rebel", "sapg")
# Plain descent without clipping: weights move by exactly the gradient.
DESCENT = {
    "optim": "sgd",
    "learning_rate": 1e-2,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
}


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def trained(folder: str, output: Path, name: str, **options: Any) -> tuple[Tensor, Tensor]:
    """Weights before and after training by plain descent."""
    trainer = build(folder, output, objective=name, **{**DESCENT, **options})
    before = weights(trainer)
    trainer.train()
    return before, weights(trainer)


@pytest.mark.parametrize("name", OWN)
def test_trains_and_resumes(
    name: str, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two objectives repeat the end of training, past an epoch, and find the same weights.

    The reference reads the kept rollouts alone, and is not even loaded where nothing needs it.
    """
    resumes = name in ("agro", "astar_po")
    num_steps = 4 if resumes else 2
    options = {"max_steps": num_steps, "save_strategy": "steps", "save_steps": 2, "objective": name}
    whole = build(tiny_folder, tmp_path / "whole", **options)
    reference_rows = rows_of_reference(whole, monkeypatch)
    before = weights(whole)
    whole.train()
    assert all(torch.tensor(logged(whole, "loss")).isfinite())
    assert (weights(whole) - before).abs().max() > 1e-4
    assert len(logged(whole, "entropy")) == num_steps
    assert any(key.startswith("objective/") for key in whole.state.log_history[0])
    if name in WITHOUT_REFERENCE:
        assert whole.ref_model is None
    else:
        # two prompts a step, 4 of 8 rollouts kept
        assert reference_rows == [8] * num_steps
    if resumes:
        resumed = build(tiny_folder, tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
        assert torch.equal(weights(resumed), weights(whole))


def rows_of_reference(trainer: PODSTrainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of rows whenever the reference computes log-probs."""
    rows = []
    original = trainer._get_per_token_logps_and_entropies

    def spy(model: Any, input_ids: Tensor, *args: Any, **options: Any) -> Any:
        if model is trainer.ref_model:
            rows.append(len(input_ids))
        return original(model, input_ids, *args, **options)

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", spy)
    return rows


@pytest.fixture(scope="module")
def batches(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Trainers with the same 8 kept rollouts as one micro-batch and as two, and these."""
    options = {"beta": 0.1, "value_beta": 0.5, "rebel_eta": 1.0}
    probe = Objective(agro, options, needs_whole_groups=True, needs_reference_rewards=True)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "probe", probe)
        for size in (8, 4):
            trainer = build(
                tiny_folder,
                tmp_path_factory.mktemp("batches"),
                objective="probe",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=8 // size,
            )
            trainer.model.train()
            trainer.current_gradient_accumulation_steps = 8 // size
            torch.manual_seed(0)
            trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            # Away from the reference, where all log-ratios are 0.
            torch.manual_seed(1)
            for parameter in trainer.model.parameters():
                parameter.data += 0.02 * torch.randn_like(parameter)
            made.append((trainer, trainer._buffered_inputs))
    assert [len(inputs) for _, inputs in made] == [1, 2]
    return made


@pytest.mark.parametrize("name", OWN)
def test_gradients_do_not_depend_on_micro_batches(name: str, batches: list[Any]) -> None:
    gradients = []
    for trainer, inputs in batches:
        trainer.args.objective = name
        trainer.objective_step.objective = OBJECTIVES[name]
        trainer.args.epsilon_high, trainer.args.qrpo_ties = None, "mid"
        trainer.args.sapg_mu_max = 3.0
        trainer.model.zero_grad()
        for batch in inputs:
            trainer._compute_loss(trainer.model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    size = gradients[0].abs().max()
    assert size > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-6 * max(1, size.item()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("agro", {"packed_update": False, "max_steps": 1}),
        ("rebel", {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-4}),
    ],
)
def test_micro_batches_change_no_weights(
    name: str, options: dict[str, Any], tiny_folder: str, tmp_path: Path
) -> None:
    start, one = trained(tiny_folder, tmp_path, name, **options)
    two_batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    _, two = trained(tiny_folder, tmp_path, name, **options, **two_batches)
    assert (one - start).abs().max() > 1e-4
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def first_question_even(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Rewards that differ for the batch's first question alone."""
    values = even_reward(completions)
    return [v if prompt == prompts[0] else 0.0 for v, prompt in zip(values, prompts, strict=True)]


def test_groups_of_any_size_in_micro_batches(tiny_folder: str, tmp_path: Path) -> None:
    """A pooled budget leaves one group of eight: one micro-batch holds it, the other idles."""
    options = {"max_steps": 1, "budget": "pooled", "rewards": [first_question_even]}
    start, one = trained(tiny_folder, tmp_path, "agro", **options)
    two_batches = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    _, two = trained(tiny_folder, tmp_path, "agro", **options, **two_batches)
    assert (one - start).abs().max() > 1e-4
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def test_sapg_without_other_policies_is_grpo(tiny_folder: str, tmp_path: Path) -> None:
    options = {"max_steps": 4, "num_iterations": 2}
    start, sapg = trained(tiny_folder, tmp_path, "sapg", **options)
    _, grpo = trained(tiny_folder, tmp_path, "grpo", **options)
    assert (sapg - start).abs().max() > 1e-4
    torch.testing.assert_close(sapg, grpo, rtol=0, atol=1e-6)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_reference_is_sampled_once_per_prompt(
    with_adapter: bool, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"]) if with_adapter else None
    trainer = build(
        tiny_folder,
        tmp_path,
        objective="astar_po",
        max_steps=4,
        num_reference_rollouts=5,
        peft_config=adapter,
    )
    prompts_of = {"policy": 0, "reference": 0}
    original = podsrl.trl.sampling.sample

    def spy(model: Any, prompts: list[Any], *args: Any, **options: Any) -> Any:
        layers = [layer for layer in model.modules() if hasattr(layer, "disable_adapters")]
        is_reference = model is trainer.ref_model
        if with_adapter:
            assert layers
            is_reference = all(layer.disable_adapters for layer in layers)
        prompts_of["reference" if is_reference else "policy"] += len(prompts)
        return original(model, prompts, *args, **options)

    monkeypatch.setattr(podsrl.trl.sampling, "sample", spy)
    trainer.train()
    # six questions, two a step: four steps ask the policy 8 times, the reference once for each
    assert prompts_of == {"policy": 8, "reference": 6}
    known = trainer.reference.known
    assert len(known) == 6 and all(len(rewards) == 5 for rewards in known.values())
    assert len(logged(trainer, "completions/mean_length")) == 4
    assert trainer._pending_extra_logs == {}


def test_reference_rewards_reach_the_rows_of_their_prompt(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the length of the question as reward, all of a prompt's rewards are equal."""

    def question_length(prompts: list[Any], **_: Any) -> list[float]:
        return [float(len(prompt[-1]["content"])) for prompt in prompts]

    trainer = build(
        tiny_folder,
        tmp_path,
        objective="qrpo",
        max_steps=2,
        rewards=[question_length],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    seen = []
    original = trainer.objective_step._kept_batch

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(original(model, inputs)[0])
        return original(model, inputs)

    monkeypatch.setattr(trainer.objective_step, "_kept_batch", spy)
    trainer.train()
    assert len(seen) == 4
    for batch in seen:
        expected_BK = batch.rewards_B[:, None].expand(4, 8)
        assert torch.equal(batch.extras["reference_rewards"], expected_BK)
    assert len({reward for batch in seen for reward in batch.rewards_B.tolist()}) > 1


def config(**options: Any) -> PODSConfig:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, **options}
    return PODSConfig("unused", **settings)


def test_options_left_out_are_the_objectives_own() -> None:
    assert config().beta == 0.0
    assert config(objective="agro").beta == 0.1
    assert config(objective="rebel").beta == 0.0
    astar = config(objective="astar_po", value_beta=0.2)
    assert astar.objective_options() == {"beta": 1e-3, "value_beta": 0.2}
    assert astar.num_reference_rollouts == 8
    sapg = config(objective="sapg", epsilon=0.1)
    assert sapg.objective_options() == {"epsilon": 0.1, "epsilon_high": None, "sapg_mu_max": 3.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "agra"}, "objective is 'agra'; choose one of grpo, agro"),
        ({"objective": "agro", "beta": 0.0}, "beta is 0.0, but objective='agro'"),
        ({"objective": "rebel", "rebel_eta": -1.0}, "rebel_eta is -1.0"),
        ({"objective": "rebel", "beta": 0.1}, "reads no reference: leave beta out"),
        ({"objective": "agro", "rebel_eta": 2.0}, "rebel_eta is 2.0, which has no effect"),
        ({"rebel_eta": 2.0}, "no effect with objective='grpo'"),
        ({"objective": "agro", "per_device_train_batch_size": 6}, "no multiple of num_generations"),
        ({"objective": "agro", "loss_type": "dr_grpo"}, "loss_type is 'dr_grpo', but belongs to"),
        ({"objective": "agro", "advantage": "rloo"}, "reads rewards: leave them out"),
        ({"objective": "agro", "num_reference_rollouts": 4}, "num_reference_rollouts is 4, which"),
        ({"objective": "qrpo", "num_reference_rollouts": 0}, "needs at least 1"),
        ({"objective": "qrpo", "qrpo_ties": "low"}, "qrpo_ties is 'low'; choose one of mid, upper"),
        ({"objective": "agro", "qrpo_ties": "mid"}, "qrpo_ties is 'mid', which has no effect"),
        ({"objective": "agro", "sapg_mu_max": 2.0}, "sapg_mu_max is 2.0, which has no effect"),
        ({"objective": "sapg", "sapg_mu_max": 0.5}, "sapg_mu_max is 0.5: choose at least 1"),
        ({"objective": "qrpo", "sync_ref_model": True}, "needs sync_ref_model=False"),
        ({"objective": "qrpo", "use_vllm": True}, "needs use_vllm=False"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**{"gradient_accumulation_steps": 2, **options})


def test_rows_of_other_methods_are_allowed_to_be_cut() -> None:
    """An objective without groups takes any micro-batch that TRL takes."""
    options = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    assert config(objective="astar_po", **options).per_device_train_batch_size == 6
