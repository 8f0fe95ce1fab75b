"""Tools, environments and rollout functions: TRL's to the bit with n = m, m of n trained else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer

from helpers.commands import launch
from helpers.harness import logged, numbers, recorded, spy
from helpers.images import save_seeing
from helpers.tiny import even_reward
from helpers.turns import TURNS, Asker, Counter, build_turns, roll_out, save_caller, train
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.objectives import OBJECTIVES
from podsrl.runs.rollout_log import FILE_NAME, attach_log, read_rollouts
from podsrl.trl.play import transcript
from podsrl.trl.refusals import refuse_arguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_caller(tmp_path_factory.mktemp("caller"))


def test_turns_with_n_equal_to_m_are_stock_bit_for_bit(folder: str, tmp_path: Path) -> None:
    """Three steps of each way to have turns, with LoRA and several iterations among them."""
    for how in TURNS:
        stock = train(folder, tmp_path / how / "1", how, trainer_class=GRPOTrainer)
        ours = train(folder, tmp_path / how / "2", how, num_rollouts=4)
        assert numbers(ours) == numbers(stock), how
        assert any(logged(stock, "loss")), how
        if how != "rollout_func":
            assert max(logged(stock, "tools/call_frequency")) > 0, how
        pairs = zip(ours.model.parameters(), stock.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), how


@pytest.mark.parametrize("how", TURNS)
def test_only_kept_rollouts_are_read_in_the_update(folder: str, tmp_path: Path, how: str) -> None:
    """n = 16: 32 rollouts a step go through turns, 8 through the update; their masks go with them.

    A kept rollout's tokens of tools are those that its completion says.
    """
    made = len(Counter.made)
    trainer = build_turns(folder, tmp_path, how, num_rollouts=16, packed_update=False, max_steps=2)
    recorder, kept = recorded(trainer), spy(trainer, "_generate")
    rows: list[int] = []

    def count(_: Any, args: tuple, kwargs: dict) -> None:
        if "labels" in kwargs:
            rows.append(len(kwargs["input_ids"]))

    trainer.model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    assert sum(rows) == 2 * 8
    assert len(Counter.made) - made == (32 if how == "environment" else 0)
    for (_, completion_ids, tool_mask, completions, *_), batch in zip(
        kept, recorder.batches, strict=True
    ):
        assert len(completions) == len(tool_mask) == 8 and len(batch.completions) == 32
        chosen = batch.selection.kept_rows_B.tolist()
        texts = [
            transcript(trainer._tokenizer, *tokens)[0]
            for tokens in zip(completion_ids, tool_mask, strict=True)
        ]
        assert texts == [batch.completions[row] for row in chosen]
        assert [sum(mask) for mask in tool_mask] == [batch.num_tokens[row] for row in chosen]
        for ids, mask in zip(completion_ids, tool_mask, strict=True):
            assert len(ids) == len(mask)
    assert any(0 in mask for _, _, masks, *_ in kept for mask in masks)


def test_a_kept_rollout_has_its_own_reward_and_prompt(folder: str, tmp_path: Path) -> None:
    """Environments go on with the question, count calls and pay for them; all this stays together.

    The reward of the kept is what their own messages say of the calls that were made.
    """
    options = {"max_tool_calling_iterations": 1, "max_completion_length": 96, "max_steps": 2}
    trainer = build_turns(folder, tmp_path, "environment", **options)
    kept = spy(trainer, "_generate")
    rewards = spy(trainer, "_calculate_rewards")
    trainer.train()
    kept_rewards = [each for each in rewards if len(each) == 8]
    assert len(kept_rewards) == len(kept) == 2
    for (prompt_ids, _, _, completions, *_), own in zip(kept, kept_rewards, strict=True):
        calls = [sum(message["role"] == "tool" for message in each) for each in completions]
        column = trainer.reward_func_names.index("Counter")
        assert own[:, column].tolist() == calls
        assert len(set(calls)) > 1
        texts = trainer.processing_class.batch_decode(prompt_ids)
        assert all(re.search(r" \d+\.a ?$", text) for text in texts)  # the environment's number


def reward_of_length(completion_ids: list, **_: Any) -> list[float]:
    """Tenths of a token: seldom equal."""
    return [len(ids) / 10 for ids in completion_ids]


def reward_of_long_questions(completions: list, answer: list, **_: Any) -> list[float]:
    """1 for completions of even length; all those of a question of three letters get 1."""
    scored = zip(answer, even_reward(completions), strict=True)
    return [1.0 if length == "3" else reward for length, reward in scored]


CASES: dict[str, dict[str, Any]] = {
    "refilled": {"refill_constant_groups": 2, "reward": reward_of_long_questions},
    "in rounds": {
        "num_rollouts": 16,
        "sampling_rounds": 4,
        "sampling_rounds_enough": 2,
        "reward": even_reward,
    },
    "pooled": {"budget": "pooled"},
    "growing": {"num_generations_start": 2},
    "TRL's ways": {"fast_sampling": False, "packed_update": False},
    "off-policy": {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
    },
    "normalised": {"multi_objective_aggregation": "normalize_then_sum"},
    "own advantages": {"advantage_from": "all"},
    "own objective": {"objective": "agro"},
    "reference": {"objective": "qrpo", "num_reference_rollouts": 2},
    "divergence": {"objective": "tdpo2"},
}


@pytest.mark.parametrize("case", CASES)
def test_turns_go_with(folder: str, tmp_path: Path, case: str) -> None:
    """Every other part of the trainer, with tools and environment together."""
    options = dict(CASES[case])
    rewards = [options.pop("reward")] if "reward" in options else None
    trainer = build_turns(folder, tmp_path, "both", rewards=rewards, **options)
    kept = spy(trainer, "_generate")
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.global_step == 3
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    for _, completion_ids, tool_mask, completions, *_ in kept:
        assert [len(ids) for ids in completion_ids] == [len(mask) for mask in tool_mask]
        assert len(completions) == len(completion_ids)
    if case == "refilled":
        assert sum(logged(trainer, "pods/num_refill_rounds")) > 0
    if case == "in rounds":
        assert sum(logged(trainer, "pods/num_sampling_rounds")) > 3


WITH_TURNS = [name for name, each in OBJECTIVES.items() if not each.needs_prefixes]  # refused


@pytest.mark.parametrize("name", ["grpo", *WITH_TURNS])
def test_tokens_of_tools_get_no_gradient(folder: str, tmp_path: Path, name: str) -> None:
    """Of TRL's loss and of every objective: exactly 0 there, and not elsewhere."""
    options: dict[str, Any] = {"objective": name, "max_steps": 1}
    if name == "veripo":
        options |= {"veripo_policy_steps": 1, "veripo_pair_steps": 1, "max_steps": 2}
    if name == "sdpo":
        options["sdpo_segment"] = "fixed"
    if name in ("astar_po", "qrpo"):
        options["num_reference_rollouts"] = 4
    trainer = build_turns(folder, tmp_path, "tools", rewards=[reward_of_length], **options)
    log_probs, seen = trainer._get_per_token_logps_and_entropies, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = log_probs(*args, **kwargs)
        if found[0].requires_grad:
            found[0].retain_grad()
            seen.append((found[0], trainer._loss_inputs["tool_mask"]))
        return found

    trainer._get_per_token_logps_and_entropies = watched
    trainer.train()
    assert len(seen) == options["max_steps"]
    for values, tool_mask in seen:
        assert (tool_mask == 0).any()
        assert (values.grad[tool_mask == 0] == 0).all()
    assert any((values.grad != 0).any() for values, _ in seen)


def test_turns_are_no_more_than_asked_for(folder: str, tmp_path: Path) -> None:
    trainer = build_turns(folder, tmp_path, "tools", max_tool_calling_iterations=1, max_steps=1)
    kept = spy(trainer, "_generate")
    trainer.train()
    roles = [[message["role"] for message in each] for each in kept[0][3]]
    assert any("tool" in each for each in roles)
    assert all(each.count("assistant") <= 2 for each in roles)


def test_lora_trains_the_adapter_on_turns(folder: str, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build_turns(folder, tmp_path, "tools", peft_config=config)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("lora_" in name for name in changed)


def test_turns_resume_to_the_run_that_was_not_interrupted(folder: str, tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    weights = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole/checkpoint-2"))):
        trainer = build_turns(folder, tmp_path / name, "tools", **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        weights[name] = trainer.model.state_dict()
    for key, value in weights["whole"].items():
        assert torch.equal(value, weights["resumed"][key]), key


def test_the_rollout_log_has_what_environment_and_model_said(folder: str, tmp_path: Path) -> None:
    trainer = build_turns(folder, tmp_path, "environment", max_steps=1)
    attach_log(trainer, tmp_path)
    trainer.train()
    header, records = read_rollouts(tmp_path / FILE_NAME)
    records = list(records)
    assert header["reward_names"][-1] == "Counter" and len(records) == 2
    for record in records:
        assert record["question"].split()[-1].isdigit()  # the environment's number
        assert len(record["texts"]) == len(record["given"]) == 8 and any(record["given"])
        for text, parts in zip(record["texts"], record["given"], strict=True):
            # Counter's count, after the letter of a tool's role.
            assert all(re.match(r"t \d+ ", text[start:end]) for start, end in parts)


def test_evaluation_with_an_environment_is_trls(folder: str, tmp_path: Path) -> None:
    trainer = build_turns(folder, tmp_path, "environment", max_steps=1)
    trainer.train()
    assert "eval_rewards/Counter/mean" in trainer.evaluate()


def test_rows_without_a_question_are_refilled_by_their_other_columns(
    folder: str, tmp_path: Path
) -> None:
    """An environment may set the question itself; constant groups then give way all the same."""
    turns, rewards = {"environment_factory": Asker}, [reward_of_long_questions]
    trainer = build_turns(
        folder, tmp_path, "", turns=turns, rewards=rewards, refill_constant_groups=2
    )
    trainer.train_dataset = trainer.train_dataset.remove_columns("prompt")
    trainer.train()
    assert sum(logged(trainer, "pods/num_refill_rounds")) > 0


def test_a_rollout_function_must_roll_out_every_prompt(folder: str, tmp_path: Path) -> None:
    def half(prompts: list, trainer: GRPOTrainer) -> dict[str, Any]:
        return roll_out(prompts[::2], trainer)

    trainer = build_turns(folder, tmp_path, "rollout_func", turns={"rollout_func": half})
    with pytest.raises(ValueError, match=r"8 rollouts were sampled for 16 prompts.*num_rollouts"):
        trainer.train()


@pytest.mark.parametrize("name", ["tools", "environment_factory", "rollout_func"])
def test_early_stop_is_refused_with_turns_before_the_model_loads(tmp_path: Path, name: str) -> None:
    args = PODSConfig(
        str(tmp_path), use_cpu=True, bf16=False, early_stop=True, reward_bounds=[0.0, 1.0]
    )
    with pytest.raises(NotImplementedError, match=f"with {name} tokens end before the rollout"):
        PODSTrainer("no/such-model", even_reward, args, **{name: [max]})


def test_a_rollout_function_cannot_sample_from_the_reference(tmp_path: Path) -> None:
    args = PODSConfig(str(tmp_path), use_cpu=True, bf16=False, objective="qrpo")
    with pytest.raises(NotImplementedError, match="'qrpo' samples from the reference"):
        refuse_arguments({"args": args, "rollout_func": roll_out})


def test_two_processes_train_on_turns_and_images_as_trl_does(folder: str, tmp_path: Path) -> None:
    """n = m is stock's; groups that straddle train on what the other process sampled."""
    save_seeing(tmp_path / "seeing", "llava")
    launch("turns_processes.py", folder, tmp_path, timeout_seconds=900)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for how in (*TURNS, "images"):
        assert first[f"{how} ours"]["weights"] == first[f"{how} stock"]["weights"], how
        assert first[f"{how} ours"]["loss"] == first[f"{how} stock"]["loss"], how
        straddling, other = first[f"{how} straddling"], second[f"{how} straddling"]
        assert straddling["weights"] == other["weights"]
        for one, two in zip(straddling["kept"], other["kept"], strict=True):
            assert one["rewards"] == two["rewards"] and one["chosen"] == two["chosen"]
            # Of one prompt 8 are sampled, 4 here and 4 there; each process trains on 2 of 4 kept.
            assert one["texts"] + two["texts"] == [
                (one["sampled"] + two["sampled"])[row] for row in one["chosen"]
            ]
            assert len(one["texts"]) == len(two["texts"]) == 2
            assert one["masks"] == one["lengths"] and two["masks"] == two["lengths"]
