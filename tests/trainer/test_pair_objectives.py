"""Pair objectives through the real trainer: they train, resume, and get what they need."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor
from trl.trainer.utils import use_adapter

from helpers.harness import build, logged, recorded
from helpers.tiny import text_of
from podsrl import PODSConfig, PODSTrainer
from podsrl.packing.log_probs import unwrap
from podsrl.trl.objective_checks import places_of_checks

PAIRS = ("dpo", "tdpo1", "tdpo2", "bmc", "rbrm", "veripo")  # sdpo: test_sdpo.py
VERIPO = {"veripo_policy_steps": 1, "veripo_pair_steps": 1}
# Plain descent without clipping: weights move by exactly the gradient.
DESCENT = {"optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0.0}


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def settings(name: str, **options: Any) -> dict[str, Any]:
    return {"objective": name, "max_steps": 2, **(VERIPO if name == "veripo" else {}), **options}


@pytest.mark.parametrize("name", PAIRS)
def test_trains_and_resumes(name: str, tiny_folder: str, tmp_path: Path) -> None:
    options = settings(name, save_strategy="steps", save_steps=1)
    whole = build(tiny_folder, tmp_path / "whole", **options)
    before = weights(whole)
    whole.train()
    assert all(torch.tensor(logged(whole, "loss")).isfinite())
    assert (weights(whole) - before).abs().max() > 1e-4
    assert whole.state.log_history[1]["objective/num_pairs"] > 0
    resumed = build(tiny_folder, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize(("name", "options"), [("tdpo2", {}), ("bmc", {"pair_mode": "all"})])
def test_micro_batches_change_nothing(
    name: str, options: dict[str, Any], tiny_folder: str, tmp_path: Path
) -> None:
    """Two steps, so that the policy has left the reference in the second."""
    found = []
    for batches in (1, 2):
        sizes = {"per_device_train_batch_size": 8 // batches}
        trainer = build(
            tiny_folder,
            tmp_path,
            **settings(name, gradient_accumulation_steps=batches, **DESCENT, **sizes, **options),
        )
        start = weights(trainer)
        trainer.train()
        found.append(weights(trainer))
    assert (found[0] - start).abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def seen_batches(trainer: PODSTrainer, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each micro-batch with the divergence by whole logits, filled while the trainer trains."""
    seen = []
    original = trainer.objective_step._kept_batch

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        result = original(model, inputs)
        seen.append((result[0], whole_divergence(trainer, inputs)))
        return result

    monkeypatch.setattr(trainer.objective_step, "_kept_batch", spy)
    return seen


@torch.no_grad()
def whole_divergence(trainer: PODSTrainer, inputs: dict[str, Any]) -> Tensor:
    def log_probs(model: Any) -> Tensor:
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        positions = mask.cumsum(1).sub(1).clamp(min=0)
        logits = unwrap(model)(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        width = inputs["completion_ids"].shape[1]
        return (logits[:, -width - 1 : -1] / trainer.temperature).log_softmax(-1)

    if trainer.ref_model is None:
        with use_adapter(trainer.model, adapter_name=None):
            reference = log_probs(trainer.model)
    else:
        reference = log_probs(trainer.ref_model)
    policy = log_probs(trainer.model)
    kl_BT = F.kl_div(policy, reference, log_target=True, reduction="none").sum(-1)
    return (kl_BT * inputs["completion_mask"]).sum(1)


@pytest.mark.parametrize(("packed", "with_adapter"), [(True, True), (False, False)])
def test_divergence_is_that_of_the_whole_logits(
    packed: bool,
    with_adapter: bool,
    tiny_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if with_adapter else None
    trainer = build(
        tiny_folder,
        tmp_path,
        objective="tdpo2",
        packed_update=packed,
        max_steps=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        temperature=0.7,
        peft_config=adapter,
    )
    seen = seen_batches(trainer, monkeypatch)
    trainer.train()
    assert len(seen) == 4
    for i, (batch, expected_B) in enumerate(seen):
        found_B = batch.extras["sequential_kl"]
        assert found_B.requires_grad
        torch.testing.assert_close(found_B.detach(), expected_B, rtol=1e-4, atol=1e-5)
        assert (found_B.max() > 1e-3) == (i >= 2)  # the first step starts from the reference


def num_passes(trainer: PODSTrainer) -> int:
    """Forward passes of policy and reference in a training run."""
    calls = []
    for model in (trainer.model, trainer.ref_model):
        model.base_model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    return len(calls)


def test_the_divergence_costs_no_pass(tiny_folder: str, tmp_path: Path) -> None:
    counts = [
        num_passes(build(tiny_folder, tmp_path, objective=name, max_steps=1))
        for name in ("dpo", "tdpo2")
    ]
    assert counts[0] == counts[1] > 2


def test_veripo_alternates_with_grpo(tiny_folder: str, tmp_path: Path) -> None:
    schedule = {"veripo_policy_steps": 2, "veripo_pair_steps": 1}
    options = {**DESCENT, "lr_scheduler_type": "constant", "beta": 0.1, "max_steps": 2}
    grpo = build(tiny_folder, tmp_path, objective="grpo", **options)
    start = weights(grpo)
    grpo.train()
    assert (weights(grpo) - start).abs().max() > 1e-5
    veripo = build(tiny_folder, tmp_path, objective="veripo", **schedule, **options)
    veripo.train()
    torch.testing.assert_close(weights(veripo), weights(grpo), rtol=0, atol=1e-7)
    # The policy stage has a KL term of its own weight; pairs keep beta.
    plain = {**options, "beta": 0.0, "num_iterations": 2}  # the second step has left the reference
    pods = build(tiny_folder, tmp_path, objective="grpo", **plain)
    pods.train()
    for policy_beta, is_pods in ((0.0, True), (5.0, False)):
        own = {**schedule, **plain, "beta": 0.1, "veripo_policy_beta": policy_beta}
        apart = build(tiny_folder, tmp_path, objective="veripo", **own)
        apart.train()
        assert apart.beta == 0.1
        assert torch.allclose(weights(apart), weights(pods), rtol=0, atol=1e-7) == is_pods
    longer = build(tiny_folder, tmp_path, objective="veripo", **schedule, max_steps=5)
    longer.train()
    stages = ["objective/num_pairs" in entry for entry in longer.state.log_history[:5]]
    assert stages == [False, False, True, False, False]


def test_veripo_stage_may_change_while_a_batch_is_in_use(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, **settings("veripo", num_iterations=2))
    trainer.train()
    stages = ["objective/num_pairs" in entry for entry in trainer.state.log_history[:2]]
    assert stages == [False, True]


def test_accuracy_is_the_first_reward_over_all_sampled(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []

    def has_digit(completions: list[Any], **_: Any) -> list[float]:
        values = [float(any(c.isdigit() for c in text_of(each))) for each in completions]
        scored.extend(values)
        return values

    def length(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(text_of(each))) for each in completions]

    options = settings("veripo", rewards=[has_digit, length], num_iterations=2)
    trainer = build(tiny_folder, tmp_path, **options)
    seen = seen_batches(trainer, monkeypatch)
    trainer.train()
    ((batch, _),) = seen
    expected_P = torch.tensor(scored).view(2, 8).mean(1)
    assert torch.equal(batch.extras["accuracy"], expected_P[batch.group_B])


def odd(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(text_of(each)) % 2) for each in completions]


def digits(completions: list[Any], **_: Any) -> list[float]:
    return [float(any(c.isdigit() for c in text_of(each))) for each in completions]


def test_pair_steps_choose_by_verdicts_of_all_rollouts(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steps of TRL's loss by rewards, in pair steps by all checks; `reward` stays `reward`."""
    checks: dict[str, Any] = {"veripo_checks": ["digits"], "veripo_max_tokens": 40}
    options = settings("veripo", rewards=[odd, digits], reward_weights=[1.0, 0.0], **checks)
    options |= {"temperature": 2.0, "max_completion_length": 48}  # so that some end
    trainer = build(tiny_folder, tmp_path, **options)
    seen, recorder = seen_batches(trainer, monkeypatch), recorded(trainer)
    trainer.train()
    policy, pairs = recorder.batches
    assert torch.equal(policy.selection.rewards_PN, policy.selection.rewards_per_func_PNF[..., 0])
    texts = [text_of(completion) for completion in pairs.completions]
    right, check = (torch.tensor(each(texts)) for each in (odd, digits))
    short = torch.tensor(pairs.num_tokens) <= 40
    passed = (right == 1) & (check == 1) & short
    assert torch.equal(pairs.selection.rewards_PN.flatten(), passed.float())
    assert 0 < passed.sum() < 16
    ((batch, _),) = seen
    kept_B = passed.float()[pairs.selection.kept_rows_B]  # TRL shuffles them later
    found = zip(batch.group_B.tolist(), batch.rewards_B.tolist(), strict=True)
    expected = zip(pairs.selection.group_B.tolist(), kept_B.tolist(), strict=True)
    assert sorted(found) == sorted(expected)
    of_pairs = trainer.state.log_history[1]
    failed = [right == 0, (right == 1) & (check == 0), (right == 1) & (check == 1) & ~short]
    for name, kind in zip(("odd", "digits", "max_tokens"), failed, strict=True):
        assert of_pairs[f"veripo/frac_failed_{name}"] == pytest.approx(kind.float().mean().item())
        assert f"veripo/frac_failed_{name}" not in trainer.state.log_history[0]
    assert of_pairs["reward"] == pytest.approx(right.mean().item())


def test_all_right_and_consistent_is_no_pair(tiny_folder: str, tmp_path: Path) -> None:
    def one(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    def also(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    for check, num_pairs in ((also, 0), (odd, 4)):
        options = {"rewards": [one, check], "reward_weights": [1.0, 0.0], "max_steps": 2}
        own = settings("veripo", veripo_checks=[check.__name__], veripo_drop_solved=0.0, **options)
        trainer = build(tiny_folder, tmp_path, veripo_policy_beta=0.0, **own, **DESCENT)
        start = weights(trainer)
        trainer.train()
        assert trainer.state.log_history[1]["objective/num_pairs"] == num_pairs
        assert torch.equal(weights(trainer), start) == (num_pairs == 0)


def test_all_rewards_equal_changes_no_weight(tiny_folder: str, tmp_path: Path) -> None:
    def one(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = build(tiny_folder, tmp_path, rewards=[one], **settings("tdpo2", max_steps=1))
    start = weights(trainer)
    trainer.train()
    assert torch.equal(weights(trainer), start)
    assert logged(trainer, "objective/num_pairs") == [0.0]
    assert logged(trainer, "objective/frac_no_pair") == [1.0]
    # Without a pair there is no mean over pairs: it is not there, and no NaN either.
    for name in ("pair_accuracy", "pair_margin"):
        assert not any(f"objective/{name}" in entry for entry in trainer.state.log_history)


def test_means_over_pairs_weigh_pairs_and_show_a_nan_of_real_pairs(
    tiny_folder: str, tmp_path: Path
) -> None:
    trainer = build(tiny_folder, tmp_path, objective="dpo")
    metrics = trainer._metrics["train"]
    for num, mean in ((3.0, 0.5), (0.0, math.nan), (2.0, math.nan)):
        values = {"num_pairs": num, "pair_accuracy": mean, "pair_margin": mean}
        trainer.objective_step._record(
            {f"objective/{name}": torch.tensor(value) for name, value in values.items()}
        )
    assert metrics["objective/num_pairs"] == [3.0, 0.0, 2.0]
    assert metrics["objective/pair_accuracy"] == pytest.approx([0.5, math.nan], nan_ok=True)


def test_an_adapter_on_the_output_layer_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(NotImplementedError, match="plain linear output layer"):
        build(tiny_folder, tmp_path, objective="tdpo1", peft_config=adapter)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("veripo", {"budget": "pooled"}, "set budget='per_prompt'"),
        ("tdpo2", {"sync_ref_model": True, "beta": 0.2}, "set sync_ref_model=False"),
    ],
)
def test_what_the_trainer_cannot_do_is_refused(
    name: str, options: dict[str, Any], words: str, tiny_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(NotImplementedError, match=words):
        build(tiny_folder, tmp_path, objective=name, **options)


def test_a_check_must_be_a_reward_beside_the_first() -> None:
    chosen = config(objective="veripo", veripo_checks=["variety"])
    assert places_of_checks(chosen, ["correctness", "format", "variety"]) == [0, 2]
    assert places_of_checks(config(objective="veripo"), ["correctness"]) == []
    assert places_of_checks(config(objective="veripo", veripo_max_tokens=4), ["correctness"]) == [0]
    for names in (["correctness"], ["variety", "correctness"]):
        with pytest.raises(ValueError, match="veripo_checks names variety, but the rewards are"):
            places_of_checks(chosen, names)


def config(**options: Any) -> PODSConfig:
    return PODSConfig("unused", **{"num_generations": 4, "use_cpu": True, "bf16": False, **options})


def test_options_left_out_are_the_objectives_own() -> None:
    assert config(objective="dpo").objective_options() == {"beta": 0.1, "pair_mode": "extremes"}
    tdpo2 = config(objective="tdpo2", pair_mode="all")
    assert tdpo2.objective_options() == {"beta": 0.1, "pair_mode": "all", "tdpo_alpha": 0.5}
    veripo = config(objective="veripo", veripo_pair_steps=1, loss_type="dr_grpo")
    assert veripo.objective_options() == {
        "beta": 0.1,
        "pair_mode": "extremes",
        "veripo_drop_solved": 0.8,
    }
    assert [veripo.is_policy_stage(step) for step in (0, 7, 8, 9)] == [True, True, False, True]
    assert config().pair_mode is None and not config().is_policy_stage(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "dpo", "beta": 0.0}, "beta is 0.0, but objective='dpo'"),
        ({"objective": "dpo", "pair_mode": "best"}, "pair_mode is 'best'; choose one of extremes"),
        ({"objective": "dpo", "tdpo_alpha": 0.5}, "tdpo_alpha is 0.5, which has no effect"),
        ({"pair_mode": "all"}, "pair_mode is 'all', which has no effect with objective='grpo'"),
        ({"objective": "tdpo2", "tdpo_alpha": -1.0}, "tdpo_alpha is -1.0: choose at least 0"),
        ({"objective": "bmc", "bmc_delta": -1.0}, "bmc_delta is -1.0: choose at least 0"),
        ({"objective": "sdpo", "sdpo_num_turns": 0}, "sdpo_num_turns is 0: choose at least 1"),
        ({"objective": "veripo", "veripo_pair_steps": 0}, "veripo_pair_steps is 0"),
        ({"objective": "veripo", "veripo_policy_beta": -1.0}, "veripo_policy_beta is -1.0"),
        ({"objective": "dpo", "veripo_policy_beta": 0.0}, "veripo_policy_beta is 0.0, which has"),
        ({"objective": "veripo", "veripo_drop_solved": 2.0}, "veripo_drop_solved is 2.0: a share"),
        ({"objective": "dpo", "veripo_checks": ["x"]}, r"veripo_checks is \['x'\], which has no"),
        ({"objective": "veripo", "veripo_max_tokens": 0}, "veripo_max_tokens is 0: choose at"),
        (
            {"objective": "veripo", "veripo_checks": ["x"], "selection_rule": "random"},
            "need selection_rule='max_variance'",
        ),
        (
            {"objective": "veripo", "veripo_max_tokens": 9, "refill_constant_groups": 1},
            "need refill_constant_groups=0",
        ),
        (
            {"objective": "veripo", "veripo_checks": ["x"], "num_iterations": 2},
            "need a batch sampled for each step",
        ),
        ({"objective": "dpo", "per_device_train_batch_size": 6}, "no multiple of num_generations"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**{"gradient_accumulation_steps": 2, **options})
