"""Pooled budgets, schedules and refilling through trainer.train() on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.harness import EASY, build, logged, question_of, recorded, spy
from helpers.harness import reward_of_hard_questions as hard_only
from helpers.tiny import even_reward, text_of
from podsrl import PODSConfig, select
from podsrl.core.budget import pooled
from podsrl.trl.refusals import refuse_trainer


def own_advantages(rewards_PN: torch.Tensor, kept_PN: torch.Tensor) -> list[float]:
    """(r - mean) / (std + 1e-4) of each group's kept rewards, group by group."""
    result: list[float] = []
    for rewards_N, kept_N in zip(rewards_PN, kept_PN, strict=True):
        kept = rewards_N[kept_N]
        if len(kept):
            result += ((kept - kept.mean()) / (kept.std() + 1e-4)).tolist()
    return result


def test_pooled_keeps_what_pooled_names_and_learns_from_whole_groups(
    tiny_folder: str, tmp_path: Path
) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[hard_only],
        budget="pooled",
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        num_rollouts=10,
        max_steps=2,
    )
    recorder, kept = recorded(trainer), spy(trainer, "_generate")
    outputs = spy(trainer, "_generate_and_score_completions")
    trainer.train()
    assert len(recorder.selections) == 2
    for selection, generated, output in zip(recorder.selections, kept, outputs, strict=True):
        rewards_PN = selection.rewards_PN
        assert rewards_PN.shape == (6, 10)  # 24 kept rows at m = 4
        counts = selection.kept_PN.sum(1).tolist()
        assert sum(counts) == 24 == len(output["advantages"])
        varied_P = rewards_PN.amax(1) > rewards_PN.amin(1)
        assert all(count == 0 for count, varied in zip(counts, varied_P, strict=True) if not varied)
        assert max(counts) > 4
        expected = own_advantages(rewards_PN, selection.kept_PN)
        assert output["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
        rewards = rewards_PN[selection.kept_PN]
        texts = [float(len(text_of(completion)) % 2 == 0) for completion in generated[3]]
        assert texts == rewards.tolist()  # kept groups are all of hard questions
    prompts = [question_of(prompt) for prompt in trainer._logs["prompt"]]
    rows = trainer.processing_class.batch_decode(kept[-1][0])
    assert all(question in row for question, row in zip(prompts, rows, strict=True))
    assert not set(prompts) & EASY
    assert logged(trainer, "pods/frac_kept_zero_advantage") == [0.0, 0.0]
    assert logged(trainer, "pods/min_kept_per_prompt") == [0.0, 0.0]
    assert logged(trainer, "loss")[0] != 0.0


def test_pooled_seed_and_budget_are_those_of_the_step(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, budget="pooled", budget_floor=2, budget_cap=5)
    recorder, seeds = recorded(trainer), spy(trainer, "_selection_seed")
    trainer.train()
    for selection, seed in zip(recorder.selections, seeds, strict=True):
        expected = pooled(selection.rewards_PN, 8, floor=2, cap=5, seed=seed)
        assert selection.kept_PN.sum(1).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {
            "steps_per_generation": 4,
            "per_device_train_batch_size": 4,
            "beta": 0.1,
            "advantage_from": "all",
        },
        {
            "num_generations_start": 2,
            "per_device_train_batch_size": 12,
            "refill_constant_groups": 1,
        },
    ],
    ids=["micro-batches", "with a schedule and refilling"],
)
def test_pooled_trains_with(tiny_folder: str, tmp_path: Path, options: dict) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[hard_only], budget="pooled", **options)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(value).all() for value in after.values())


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_packed_and_padded_rows_of_ragged_groups_give_the_same_training(
    tiny_folder: str, tmp_path: Path, loss_type: str
) -> None:
    states = []
    for packed in (True, False):
        trainer = build(
            tiny_folder,
            tmp_path / str(packed),
            rewards=[hard_only],
            budget="pooled",
            per_device_train_batch_size=24,
            packed_update=packed,
            loss_type=loss_type,
            max_steps=1,
        )
        trainer.train()
        states.append(trainer.model.state_dict())
        assert trainer.state.log_history[0]["loss"] != 0.0
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-5)


def test_a_schedule_keeps_fewer_rows_first_and_all_in_the_end(
    tiny_folder: str, tmp_path: Path
) -> None:
    trainer = build(
        tiny_folder,
        tmp_path,
        num_generations_start=2,
        max_steps=6,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    )
    outputs = spy(trainer, "_generate_and_score_completions")
    losses = spy(trainer, "_compute_loss")
    rows = []
    original = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (
        rows.append(len(a[1])) or original(*a, **k)
    )
    trainer.train()
    # 2 prompts a step keep 2, 2, 3, 3, 4 and 4 each; micro-batches are half of that.
    assert [len(output["advantages"]) for output in outputs] == [4, 4, 6, 6, 8, 8]
    assert rows == [2] * 4 + [3] * 4 + [4] * 4
    assert len(losses) == 12
    assert logged(trainer, "pods/max_kept_per_prompt") == [2, 2, 3, 3, 4, 4]
    for output in outputs:
        assert output["num_items_in_batch"] == output["completion_mask"].sum()
    assert len(trainer._logs["prompt"]) == len(trainer._logs["advantages"]) == 8


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_a_step_of_the_schedule_is_the_step_of_a_constant_m(
    tiny_folder: str, tmp_path: Path, loss_type: str
) -> None:
    """The first step keeps 2 of 8 for each of 2 prompts: as with m = 2 and 4 rows throughout."""
    states, losses = [], []
    options: dict[str, Any] = {"max_steps": 1, "loss_type": loss_type, "num_rollouts": 8}
    for name, more in {
        "schedule": {"num_generations_start": 2, "per_device_train_batch_size": 8},
        "constant": {"num_generations": 2, "per_device_train_batch_size": 4},
    }.items():
        trainer = build(tiny_folder, tmp_path / name, **options, **more)
        trainer.train()
        states.append(trainer.model.state_dict())
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]
    for key in states[0]:
        assert torch.equal(states[0][key], states[1][key]), key


def test_refilling_replaces_constant_groups_by_other_prompts(
    tiny_folder: str, tmp_path: Path
) -> None:
    """Half of the questions always give 1. With up to five rounds none of them is trained on."""
    options = {"rewards": [hard_only], "refill_constant_groups": 5, "num_rollouts": 16}
    trainer = build(tiny_folder, tmp_path, log_completions=False, **options)
    recorder, kept = recorded(trainer), spy(trainer, "_generate")
    sampled, scored = spy(trainer, "_generate_single_turn"), spy(trainer, "_calculate_rewards")
    trainer.train()
    assert len(recorder.selections) == 3
    refilled = logged(trainer, "pods/frac_groups_refilled")
    assert sum(refilled) > 0 and set(refilled) <= {0.0, 0.5, 1.0}
    rounds = logged(trainer, "pods/num_refill_rounds")
    assert len(sampled) == 3 + sum(rounds)
    for selection, generated in zip(recorder.selections, kept, strict=True):
        assert (selection.rewards_PN.amax(1) > selection.rewards_PN.amin(1)).all()
        texts = torch.tensor(even_reward(generated[3]))
        assert texts.tolist() == selection.rewards_PN[selection.kept_PN].tolist()
        rows = trainer.processing_class.batch_decode(generated[0])
        assert not any(f" {question}." in row for question in EASY for row in rows)
    prompts = {question_of(prompt) for prompt in trainer._logs["prompt"]}
    assert len(prompts) == 2 and not prompts & EASY
    # The policy's reward is that of the prompts drawn first: 1 for each easy one.
    # A step scores what it sampled, then each round's, and hands TRL the rewards of the kept.
    firsts = [sum(2 + int(round_) for round_ in rounds[:step]) for step in range(3)]
    first = [scored[place].mean().item() for place in firsts]
    assert logged(trainer, "reward") == pytest.approx(first)
    assert logged(trainer, "frac_reward_zero_std") == pytest.approx(refilled)
    assert all(seconds > 0 for seconds in logged(trainer, "time/sampling_seconds"))


def test_refilling_draws_the_same_prompts_again_after_a_resume(
    tiny_folder: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "rewards": [hard_only],
        "refill_constant_groups": 2,
        "num_generations_start": 2,
        "budget": "pooled",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    drawn: dict[str, list[Any]] = {}
    states = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole/checkpoint-2"))):
        trainer = build(tiny_folder, tmp_path / name, **options)
        drawn[name] = recorded(trainer).batches
        trainer.train(resume_from_checkpoint=checkpoint)
        states[name] = trainer.model.state_dict()
    prompts = {
        name: [[row["prompt"] for row in batch.rows] for batch in batches]
        for name, batches in drawn.items()
    }
    assert prompts["resumed"] == prompts["whole"][2:]
    for key, value in states["whole"].items():
        assert torch.equal(value, states["resumed"][key]), key


def test_refilling_stops_when_the_training_set_has_no_other_prompt(
    tiny_folder: str, tmp_path: Path
) -> None:
    def same(completions: list, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = build(tiny_folder, tmp_path, rewards=[same], refill_constant_groups=9, max_steps=1)
    trainer.train()
    # 6 questions, 2 in the batch: 2 rounds of 2 new ones, then there are none.
    assert logged(trainer, "pods/num_refill_rounds") == [2.0]
    assert logged(trainer, "pods/frac_groups_refilled") == [0.0]
    assert logged(trainer, "pods/frac_kept_zero_advantage") == [1.0]


def test_a_streamed_training_set_cannot_be_refilled_from(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, refill_constant_groups=1, max_steps=1)
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match="it is a IterableDataset"):
        refuse_trainer(trainer)


def test_defaults_select_as_before(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, max_steps=1)
    recorder, seeds = recorded(trainer), spy(trainer, "_selection_seed")
    trainer.train()
    kept_PM = select(recorder.selections[0].rewards_PN, 4, seed=seeds[0])
    assert torch.equal(recorder.selections[0].kept_PM, kept_PM)
    assert recorder.selections[0].group_B.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "shared"}, "'shared'; choose one of per_prompt, pooled"),
        ({"budget_floor": 1}, "budget_floor is 1; choose 0 or 2"),
        ({"budget_cap": 7}, "budget_cap is 7, but must lie between num_generations = 8"),
        ({"refill_constant_groups": -1}, "refill_constant_groups is -1"),
        (
            {"budget": "pooled", "multi_objective_aggregation": "normalize_then_sum"},
            "groups of equal size",
        ),
        ({"num_generations_start": 9}, "between 2 and num_generations = 8"),
        ({"num_generations_start": 1}, "num_generations_start is 1"),
        (
            {"num_generations_start": 2, "per_device_train_batch_size": 2},
            "be a multiple of 4, .* that is a multiple of 8 allows any",
        ),
    ],
)
def test_config_errors(tmp_path: Path, options: dict, words: str) -> None:
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, **options}
    with pytest.raises(ValueError, match=words):
        PODSConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8, **settings)
