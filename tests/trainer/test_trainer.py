"""PODSTrainer through trainer.train() on a tiny model: what it samples, keeps, spends and logs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from helpers.harness import build, logged, recorded, spy
from helpers.tiny import digit_reward, even_reward, text_of
from podsrl import PODSConfig, PODSTrainer, select

TRL_PATHS = {"fast_sampling": False, "packed_update": False}


class Rewards:
    """Rewards that remember their calls: 1 for an even number of characters."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: list, completions: list, answer: list, **_: Any) -> list[float]:
        self.calls.append({"prompts": prompts, "completions": completions, "answer": answer})
        return even_reward(completions)


def count_rows(model: torch.nn.Module) -> list[tuple[int, bool]]:
    """Rows and whether log-probs were asked for, of every forward call of the model."""
    calls: list[tuple[int, bool]] = []

    def hook(_: Any, args: tuple, kwargs: dict) -> None:
        rows = (args[0] if args else kwargs["input_ids"]).shape[0]
        calls.append((rows, "labels" in kwargs))

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return calls


def parameters_changed(trainer: GRPOTrainer, folder: str) -> bool:
    fresh = type(trainer.model).from_pretrained(folder, dtype="float32").state_dict()
    return any(not torch.equal(v, fresh[k]) for k, v in trainer.model.state_dict().items())


def test_rewards_run_once_on_all_sampled_rollouts(tiny_folder: str, tmp_path: Path) -> None:
    recorder = Rewards()
    trainer = build(tiny_folder, tmp_path, rewards=[recorder])
    trainer.train()
    assert len(recorder.calls) == 3  # one generation batch per step
    for call in recorder.calls:
        assert len(call["completions"]) == 2 * 8  # 2 prompts x n = 8
        assert all(prompt == call["prompts"][0] for prompt in call["prompts"][:8])
        assert call["prompts"][0] != call["prompts"][8]
        questions = [prompt[0]["content"] for prompt in call["prompts"]]
        assert call["answer"] == [str(len(question)) for question in questions]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_dropped_rollouts_cost_no_forward_pass(
    tiny_folder: str, tmp_path: Path, beta: float
) -> None:
    """8 kept rows a step through the policy, and through the reference model if beta > 0."""
    trainer = build(tiny_folder, tmp_path, num_rollouts=16, beta=beta, **TRL_PATHS)
    policy = count_rows(trainer.model)
    reference = count_rows(trainer.ref_model) if beta else []
    trainer.train()
    assert sum(rows for rows, log_probs in policy if log_probs) == 3 * 8
    assert max(rows for rows, log_probs in policy if not log_probs) == 2 * 16  # sampling
    assert sum(rows for rows, _ in reference) == (3 * 8 if beta else 0)


def test_old_log_probs_are_computed_for_kept_rows_only(tiny_folder: str, tmp_path: Path) -> None:
    """With two iterations TRL forwards the batch once more for the old log-probs: 8 + 2 x 8."""
    options = {"num_rollouts": 16, "num_iterations": 2, "max_steps": 2, **TRL_PATHS}
    trainer = build(tiny_folder, tmp_path, **options)
    policy = count_rows(trainer.model)
    trainer.train()
    assert sum(rows for rows, log_probs in policy if log_probs) == 8 + 2 * 8


def test_kept_rollouts_are_those_that_select_names(tiny_folder: str, tmp_path: Path) -> None:
    recorder = Rewards()
    trainer = build(tiny_folder, tmp_path, rewards=[recorder], max_steps=1)
    kept = spy(trainer, "_generate")
    seeds = spy(trainer, "_selection_seed")
    trainer.train()
    completions = recorder.calls[0]["completions"]
    rewards_PN = torch.tensor(even_reward(completions)).view(2, 8)
    indices_PM = select(rewards_PN, 4, seed=seeds[0])
    expected = [completions[p * 8 + i] for p in range(2) for i in indices_PM[p].tolist()]
    assert kept[0][3] == expected


def test_reward_metrics_are_over_all_and_pods_metrics_over_kept(
    tiny_folder: str, tmp_path: Path
) -> None:
    recorder = Rewards()
    trainer = build(tiny_folder, tmp_path, rewards=[recorder])
    kept = spy(trainer, "_generate")
    trainer.train()
    for step in range(3):
        rewards = torch.tensor(even_reward(recorder.calls[step]["completions"])).double()
        groups = rewards.view(2, 8)
        kept_groups = torch.tensor(even_reward(kept[step][3])).double().view(2, 4)
        expected = {
            "reward": rewards.mean(),
            "reward_std": rewards.std(),
            "rewards/recorder/mean": rewards.mean(),
            "rewards/recorder/std": rewards.std(),
            "frac_reward_zero_std": (groups.std(dim=1) == 0).double().mean(),
            "pods/kept_reward_mean": kept_groups.mean(),
            "pods/kept_reward_variance": kept_groups.var(dim=1, unbiased=False).mean(),
            "pods/frac_kept_zero_variance": (kept_groups.std(dim=1) == 0).double().mean(),
            "pods/frac_no_reward": 0.0,
        }
        for key, value in expected.items():
            assert logged(trainer, key)[step] == pytest.approx(float(value), abs=1e-9), key
        share = logged(trainer, "pods/frac_best_variance")[step]
        assert share is None or share == pytest.approx(1.0)  # None: both groups are constant


def test_every_phase_is_timed_and_memory_reported(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, steps_per_generation=2, per_device_train_batch_size=4)
    trainer.train()
    for phase in ("sampling", "rewards", "selection", "update"):
        assert len(logged(trainer, f"time/{phase}_seconds")) == 3
    assert all(seconds > 0 for seconds in logged(trainer, "time/update_seconds"))
    sampling = logged(trainer, "time/sampling_seconds")
    assert sampling[0] > 0 and sampling[1] == 0  # the second step reuses the generation batch
    assert all(0.01 < gib < 1000 for gib in logged(trainer, "memory/peak_gib"))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"steps_per_generation": 4, "per_device_train_batch_size": 2},
        {"num_iterations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4},
        {"gradient_checkpointing": True},
        {"mask_truncated_completions": True},
        {"num_rollouts": 6, "num_generations": 4},
        {"num_rollouts": None},
        {"advantage_from": "all"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"reward_weights": [1.0, 0.1]},
        {"log_completions": True},
        {"loss_type": "cispo"},
        {"top_entropy_quantile": 0.5},
        *[{"selection_rule": rule} for rule in ("max_reward", "random", "percentile")],
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_trains_with(tiny_folder: str, tmp_path: Path, options: dict) -> None:
    trainer = build(tiny_folder, tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == 3
    assert parameters_changed(trainer, tiny_folder)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_continuous_batching_samples_after_a_packed_update(
    tiny_folder: str, tmp_path: Path
) -> None:
    """The packed update switches the model's attention, which that engine would not know."""
    options = {"use_transformers_continuous_batching": True, "max_completion_length": 6}
    config = {"block_size": 16, "num_blocks": 64, "max_batch_tokens": 64}
    trainer = build(
        tiny_folder,
        tmp_path,
        **options,
        transformers_continuous_batching_config=config,
        max_steps=2,
    )
    attention = []
    update = trainer._compute_loss

    def watched(*args: Any) -> Any:
        attention.append(trainer.model.config._attn_implementation)
        loss = update(*args)
        attention.append(trainer.model.config._attn_implementation)
        return loss

    trainer._compute_loss = watched
    trainer.train()
    assert attention == ["sdpa", "podsrl_sdpa", "podsrl_sdpa", "podsrl_sdpa"]
    assert logged(trainer, "loss")[1] != 0


def test_lora_trains_the_adapter_only(tiny_folder: str, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(tiny_folder, tmp_path, peft_config=config, beta=0.1)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("lora_" in name for name in changed)


def test_several_prompts_are_selected_group_by_group(tiny_folder: str, tmp_path: Path) -> None:
    """Four prompts on one device: each keeps its own m, none crowds out another."""
    trainer = build(tiny_folder, tmp_path, per_device_train_batch_size=16, max_steps=1)
    kept = spy(trainer, "_generate")
    trainer.train()
    prompt_ids = kept[0][0]
    assert len(prompt_ids) == 16
    groups = [prompt_ids[i : i + 4] for i in range(0, 16, 4)]
    assert all(prompt == group[0] for group in groups for prompt in group)
    assert len({tuple(group[0]) for group in groups}) == 4


def test_weighted_rewards_decide_the_choice(tiny_folder: str, tmp_path: Path) -> None:
    """With weights (0, 1) the kept set is that of the second reward alone."""
    both = build(tiny_folder, tmp_path / "both", max_steps=1, reward_weights=[0.0, 1.0])
    kept_both = spy(both, "_generate")
    both.train()
    alone = build(tiny_folder, tmp_path / "alone", rewards=[even_reward], max_steps=1)
    kept_alone = spy(alone, "_generate")
    alone.train()
    assert kept_both[0][1] == kept_alone[0][1]


def test_a_rollout_without_reward_is_never_kept_while_a_scored_one_is_left(
    tiny_folder: str, tmp_path: Path
) -> None:
    def failing(completions: list, **_: Any) -> list[float | None]:
        return [None if i % 8 < 3 else float(i % 2) for i in range(len(completions))]

    trainer = build(tiny_folder, tmp_path, rewards=[failing])
    chosen = recorded(trainer)
    trainer.train()
    assert len(chosen.selections) == 3
    for selection in chosen.selections:
        assert selection.kept_PM.min() >= 3
    assert logged(trainer, "pods/frac_no_reward") == [pytest.approx(3 / 8)] * 3
    assert logged(trainer, "reward") == [pytest.approx(3 / 5)] * 3  # members 3, 5, 7 of 3..7


def test_a_reward_that_is_none_for_some_rows_adds_nothing_there(
    tiny_folder: str, tmp_path: Path
) -> None:
    def sometimes(completions: list, **_: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    trainer = build(tiny_folder, tmp_path, rewards=[even_reward, sometimes], max_steps=1)
    trainer.train()
    assert logged(trainer, "rewards/sometimes/mean") == [1.0]
    assert logged(trainer, "pods/frac_no_reward") == [0.0]


def test_advantages_from_all_use_the_mean_of_all(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(
        tiny_folder, tmp_path, rewards=[digit_reward], advantage_from="all", max_steps=1
    )
    chosen = recorded(trainer)
    trainer.train()
    rewards_PN = chosen.selections[0].rewards_PN
    kept = rewards_PN.gather(1, chosen.selections[0].kept_PM)
    mean, std = rewards_PN.mean(1, keepdim=True), rewards_PN.std(1, keepdim=True)
    expected = ((kept - mean) / (std + 1e-4)).flatten()
    assert torch.tensor(list(trainer._logs["advantages"])) == pytest.approx(expected, abs=1e-5)


def test_extra_columns_of_rewards_are_trimmed_to_the_kept_rows(
    tiny_folder: str, tmp_path: Path
) -> None:
    def logging_reward(completions: list, log_extra: Any, **_: Any) -> list[float]:
        log_extra("text", [text_of(completion) for completion in completions])
        return even_reward(completions)

    trainer = build(tiny_folder, tmp_path, rewards=[logging_reward], max_steps=1)
    trainer.train()
    texts = [text_of(completion) for completion in trainer._logs["completion"]]
    assert list(trainer._logs["extra"]["text"]) == texts
    assert len(texts) == 8


def test_evaluation_samples_and_scores_as_trl_does(tiny_folder: str, tmp_path: Path) -> None:
    recorder = Rewards()
    trainer = build(tiny_folder, tmp_path, rewards=[recorder], num_generations_eval=2)
    metrics = trainer.evaluate()
    assert sum(len(call["completions"]) for call in recorder.calls) == 6 * 2
    assert "eval_reward" in metrics


def test_resuming_gives_the_run_that_was_not_interrupted(tiny_folder: str, tmp_path: Path) -> None:
    """Steps 3 and 4 after a resume are those of the whole run: same choices, same parameters."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    seeds: dict[str, list[int]] = {}
    states = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole/checkpoint-2"))):
        trainer = build(tiny_folder, tmp_path / name, **options)
        seeds[name] = spy(trainer, "_selection_seed")
        trainer.train(resume_from_checkpoint=checkpoint)
        states[name] = trainer.model.state_dict()
    assert seeds["resumed"] == seeds["whole"][2:]
    for key, value in states["whole"].items():
        assert torch.equal(value, states["resumed"][key]), key


def test_a_grpo_config_is_refused_with_the_remedy(tmp_path: Path) -> None:
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8)
    with pytest.raises(TypeError, match="needs a PODSConfig"):
        PODSTrainer("no/such-model", even_reward, args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_rollouts": 4}, r"num_rollouts \(n\) is 4, less than num_generations \(m\) = 8"),
        ({"selection_rule": "best"}, "'best'; choose one of max_variance"),
        ({"advantage_from": "both"}, "advantage_from is 'both'; choose one of all, kept"),
        (
            {"advantage_from": "all", "multi_objective_aggregation": "normalize_then_sum"},
            "but it is 'normalize_then_sum'",
        ),
    ],
)
def test_config_errors_name_value_and_remedy(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PODSConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8, **options)


def test_config_defaults(tmp_path: Path) -> None:
    config = PODSConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8)
    assert (config.num_rollouts, config.selection_rule, config.advantage_from) == (
        16,
        "max_variance",
        "kept",
    )
    assert config.fast_sampling and config.packed_update
    equal = PODSConfig(str(tmp_path), use_cpu=True, bf16=False, num_rollouts=8)
    assert not equal.fast_sampling and not equal.packed_update


def test_every_metric_of_ours_is_defined_in_the_docs(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, max_steps=1)
    trainer.train()
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    keys = {key for entry in trainer.state.log_history for key in entry}
    ours = {key for key in keys if key.startswith(("pods/", "time/", "memory/"))}
    assert len(ours) == 14
    assert [key for key in sorted(ours) if f"`{key}`" not in text] == []
