"""Kept rows of advantage 0 cost nothing, and what is learned is what it would have been."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from helpers.harness import build, logged
from helpers.harness import reward_of_hard_questions as hard_only
from helpers.tiny import digit_reward
from podsrl import PODSConfig
from podsrl.packing.serve import LogProbs
from podsrl.trl import dealing
from podsrl.trl.checks import LOSSES_OF_ADVANTAGES
from podsrl.trl.dealing import deal, deal_by_prompt

SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}


def constant(completions: list, **_: Any) -> list[float]:
    return [1.0] * len(completions)


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def rows_with_log_probs(model: torch.nn.Module) -> list[int]:
    """Grows by the rows of every pass that asks for log-probs over padded rows."""
    rows: list[int] = []

    def hook(_: Any, args: tuple, kwargs: dict) -> None:
        if "labels" in kwargs:
            rows.append(len(args[0] if args else kwargs["input_ids"]))

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return rows


def both(folder: str, output: Path, **options: Any) -> list[Any]:
    """Trainers that have trained with dead rows in and out of their passes."""
    trained = []
    for skips in (False, True):
        trainer = build(
            folder, output / str(skips), rewards=[hard_only], skip_dead_rows=skips, **options
        )
        trainer.train()
        trained.append(trainer)
    return trained


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": loss_type} for loss_type in LOSSES_OF_ADVANTAGES),
        {"packed_update": False},
        {"num_iterations": 2, "max_steps": 4},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"gradient_checkpointing": True, "loss_type": "grpo"},
        {"peft_config": LORA},
        {"importance_sampling_level": "sequence", "num_iterations": 2, "max_steps": 4},
        {"objective": "sapg"},
        {"budget": "pooled", "advantage_from": "all"},
        {"mask_truncated_completions": True},
    ],
    ids=lambda options: " ".join(
        "lora" if name == "peft_config" else f"{name}={value}" for name, value in options.items()
    ),
)
def test_learns_the_same(tiny_folder: str, tmp_path: Path, options: dict[str, Any]) -> None:
    """Half of the questions give a constant reward, so that about half of the rows are dead."""
    everything, live = both(tiny_folder, tmp_path, **SGD, **options)
    dead = logged(live, "pods/frac_kept_zero_advantage")
    assert max(dead) > 0 or options.get("budget") == "pooled"
    assert logged(live, "loss") == pytest.approx(logged(everything, "loss"), abs=1e-5)
    start = build(tiny_folder, tmp_path / "start", peft_config=options.get("peft_config"))
    moved = (weights(live) - weights(start)).abs().max()
    assert moved > 1e-3
    # Another denominator or a missing row would be of the order of the move itself.
    assert (weights(live) - weights(everything)).abs().max() < 1e-4 * moved


def test_dead_rows_are_in_no_pass(tiny_folder: str, tmp_path: Path) -> None:
    """Each dead row is missing from the update's pass; a batch without a live one has one row."""
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[hard_only],
        packed_update=False,
        skip_dead_rows=True,
        max_steps=6,
        **SGD,
    )
    rows = rows_with_log_probs(trainer.model)
    trainer.train()
    dead = logged(trainer, "pods/frac_kept_zero_advantage")
    assert rows == [max(1, round(8 * (1 - share))) for share in dead]
    assert min(rows) < 8


@pytest.mark.parametrize("packed", [False, True])
def test_old_log_probs_are_of_live_rows(
    tiny_folder: str, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two iterations on each batch: one pass for old log-probs and two updates, as many rows."""
    passes: list[tuple[int, bool]] = []
    found = LogProbs._found

    def spy(self: LogProbs, padded: Any, model: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        passes.append((len(ids), torch.is_grad_enabled()))
        return found(self, padded, model, ids, *rest, **options)

    monkeypatch.setattr(LogProbs, "_found", spy)
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[hard_only],
        packed_update=packed,
        skip_dead_rows=True,
        num_iterations=2,
        max_steps=6,
        **SGD,
    )
    trainer.train()
    dead = logged(trainer, "pods/frac_kept_zero_advantage")
    assert len(dead) == 3 and max(dead) > 0
    expected = [max(1, round(8 * (1 - share))) for share in dead]
    assert passes == [(rows, is_update) for rows in expected for is_update in (False, True, True)]


def test_metrics_of_clipping_are_the_same_and_entropy_is_of_live_rows(
    tiny_folder: str, tmp_path: Path
) -> None:
    options = {"num_iterations": 2, "max_steps": 4, "epsilon": 0.01, "packed_update": False, **SGD}
    everything, live = both(tiny_folder, tmp_path, **options)
    for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max"):
        key = f"clip_ratio/{name}"
        assert logged(live, key) == pytest.approx(logged(everything, key), abs=1e-6), key
    assert sum(logged(live, "clip_ratio/region_mean")) > 0
    pairs = zip(logged(live, "entropy"), logged(everything, "entropy"), strict=True)
    dead = logged(live, "pods/frac_kept_zero_advantage")
    differs = [abs(a - b) > 1e-4 for a, b in pairs]
    # An iteration on a batch logs the share of its batch only where it was sampled.
    assert any(differs) == (max(dead) > 0)


def test_where_nothing_is_dead_every_bit_is_the_same(tiny_folder: str, tmp_path: Path) -> None:
    trained = []
    for skips in (False, True):
        trainer = build(
            tiny_folder,
            tmp_path / str(skips),
            rewards=[digit_reward],
            skip_dead_rows=skips,
            gradient_accumulation_steps=2,
        )
        trainer.train()
        trained.append(trainer)
        assert logged(trainer, "pods/frac_kept_zero_advantage") == [0.0] * 3
    assert torch.equal(weights(trained[0]), weights(trained[1]))
    assert logged(trained[0], "loss") == logged(trained[1], "loss")


def test_where_all_rows_are_dead_the_optimizer_moves_as_it_would(
    tiny_folder: str, tmp_path: Path
) -> None:
    """One step that teaches, then steps of constant rewards: momentum and weight decay go on."""
    found = []
    for skips in (False, True):
        calls = []

        def once(completions: list, calls: list = calls, **_: Any) -> list[float]:
            calls.append(completions)
            return digit_reward(completions) if len(calls) == 1 else constant(completions)

        trainer = build(
            tiny_folder,
            tmp_path / str(skips),
            rewards=[once],
            skip_dead_rows=skips,
            weight_decay=0.1,
            max_steps=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
        )
        states = []
        trainer.create_optimizer_and_scheduler(4)
        step = trainer.optimizer.step

        def spy(*args: Any, of: Any = (step, states, trainer), **kwargs: Any) -> Any:
            step, states, trainer = of
            result = step(*args, **kwargs)
            states.append(weights(trainer).clone())
            return result

        trainer.optimizer.step = spy
        trainer.train()
        assert logged(trainer, "pods/frac_kept_zero_advantage") == [0.0, 1.0, 1.0, 1.0]
        found.append(states)
    everything, live = found
    assert len(live) == 4
    for step in range(4):
        torch.testing.assert_close(live[step], everything[step], rtol=0, atol=1e-6)
    assert (live[3] - live[2]).abs().max() > 1e-5  # momentum


def test_live_rows_are_dealt_evenly(tiny_folder: str, tmp_path: Path) -> None:
    """Four prompts in two micro-batches, two of them easy: each micro-batch has one that lives."""
    trainer = build(
        tiny_folder,
        tmp_path,
        rewards=[hard_only],
        gradient_accumulation_steps=2,
        num_rollouts=16,
        max_steps=4,
    )
    seen = []
    original = trainer._compute_loss

    def spy(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(int((inputs["advantages"] != 0).sum()))
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    pairs = [seen[step : step + 2] for step in range(0, 8, 2)]
    groups = [sum(pair) // 4 for pair in pairs]
    assert any(groups)
    for (first, second), live in zip(pairs, groups, strict=True):
        assert abs(first - second) <= 4 * (live % 2), pairs


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"beta": 0.1}, "beta=0.1 pulls every row"),
        ({"entropy_coef": 0.1}, "the entropy bonus counts every row"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5 ranks"),
        ({"loss_type": "vespo"}, "loss_type='vespo' is not known"),
        ({"objective": "rebel", "per_device_train_batch_size": 8}, "objective='rebel' learns"),
    ],
)
def test_off_and_refused_where_dead_rows_matter(options: dict[str, Any], reason: str) -> None:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False, **options}
    assert PODSConfig("unused", **settings).skip_dead_rows is False
    with pytest.raises(ValueError, match=f"skip_dead_rows is True, but {reason}.* out."):
        PODSConfig("unused", skip_dead_rows=True, **settings)


def test_on_where_rows_are_packed_and_so_not_where_n_is_m() -> None:
    settings = {"num_generations": 4, "use_cpu": True, "bf16": False}
    assert PODSConfig("unused", num_rollouts=4, **settings).skip_dead_rows is False
    assert PODSConfig("unused", num_rollouts=8, **settings).skip_dead_rows is True
    # As arms of a comparison are: GRPO has what PODS has.
    assert PODSConfig("unused", num_rollouts=4, packed_update=True, **settings).skip_dead_rows


def test_advantages_per_token_are_dealt_by_rows() -> None:
    """Subclasses of GRPOTrainer may give one advantage a token; rows come two a prompt."""
    advantages_BT = torch.tensor([[0.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    rows = torch.arange(8)
    batch = {
        "prompt_ids": rows.div(2, rounding_mode="floor")[:, None] + 5,
        "prompt_mask": torch.ones(8, 1, dtype=torch.long),
        "completion_mask": torch.ones(8, 2, dtype=torch.long),
        "advantages": advantages_BT,
    }
    halves = [{key: value[part] for key, value in batch.items()} for part in (rows[:4], rows[4:])]
    dealt = deal_by_prompt(halves, whole=False, skips_dead=True)
    # Two prompts live and two do not: each micro-batch has one of each.
    assert [int(each["advantages"].any(1).sum()) for each in dealt] == [2, 2]


@pytest.mark.parametrize("dead", [False, True])
def test_rows_stay_where_they_are_unless_one_is_dead(
    dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has 9 tokens a completion and this one 1: uneven, but not by dead rows."""
    rows = torch.arange(4)
    batch = {
        "prompt_ids": torch.full((4, 1), 5),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_mask": (torch.arange(9) < 1).long().expand(4, 9),
        "advantages": torch.tensor([1.0, -1.0, 1.0, 0.0 if dead else -1.0]),
    }
    halves = [{key: value[part] for key, value in batch.items()} for part in (rows[:2], rows[2:])]
    theirs = torch.tensor([[1, 9, 4, 1]] * 4)
    state = SimpleNamespace(num_processes=2, process_index=0)
    monkeypatch.setattr(dealing, "PartialState", lambda: state)
    monkeypatch.setattr(dealing, "gather", lambda mine: torch.cat([mine, theirs]))
    travelled: list[int] = []

    def rows_of_all(batch: dict[str, Any]) -> dict[str, Any]:
        travelled.append(len(batch["advantages"]))
        return {key: torch.cat([value, value]) for key, value in batch.items()}

    monkeypatch.setattr(dealing, "rows_of_all", rows_of_all)
    config = PODSConfig("unused", num_generations=4, use_cpu=True, bf16=False)
    assert config.skip_dead_rows
    dealt = deal(halves, config, whole=False)
    assert travelled == ([4] if dead else [])
    assert [len(each["advantages"]) for each in dealt] == [2, 2]
