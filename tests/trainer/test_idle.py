"""A run whose gradient is exactly 0 for many steps stops with the reason; others go on."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.harness import build
from helpers.tiny import even_reward
from podsrl import PODSConfig
from podsrl.trl.idle import GradientWatch, NothingLearned, idle_in_words


class Rewards:
    """0/1 by the length's parity in the calls that are named, 1 for all rollouts in the others."""

    __name__ = "rewards"

    def __init__(self, *calls: int) -> None:
        self.calls, self.num = calls, 0

    def __call__(self, completions: list, **_: Any) -> list[float]:
        self.num += 1
        return even_reward(completions) if self.num in self.calls else [1.0] * len(completions)


# Adam's momentum moves weights on; plain descent shows that nothing else does.
STOPS: dict[str, Any] = {"stop_after_idle_steps": 2, "max_steps": 6, "optim": "sgd"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"objective='grpo' had a gradient of exactly 0 in 2 steps in a row.*reward 1\b"),
        ({"objective": "dpo"}, "objective='dpo'.*objective/num_pairs 0,.*were equal"),
        ({"objective": "rebel"}, "objective='rebel'"),
        ({"num_rollouts": 4}, "objective='grpo'"),  # n = m, where it is asked for
        ({"packed_update": False, "skip_dead_rows": False}, "objective='grpo'"),
        ({"logging_steps": 2, "max_grad_norm": 0.0}, "in 2 steps in a row"),
    ],
    ids=str,
)
def test_a_run_that_never_had_a_gradient_fails_with_the_reason(
    options: dict[str, Any], words: str, tiny_folder: str, tmp_path: Path
) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[Rewards()], **STOPS, **options)
    with pytest.raises(NothingLearned, match=words):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_run_that_has_learned_ends_in_order(
    tiny_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards differ in step 1 alone: steps 2 and 3 have no gradient."""
    trainer = build(tiny_folder, tmp_path, rewards=[Rewards(1)], **STOPS)
    with caplog.at_level(logging.WARNING, logger="podsrl.trl.idle"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert "training ends at step 3" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"rewards": [Rewards(2, 4, 6)]},  # dead for a step now and then
        {"rewards": [Rewards()], "stop_after_idle_steps": 0},
        {"rewards": [Rewards()], "stop_after_idle_steps": None, "num_rollouts": 4},
        {"rewards": [Rewards()], "stop_after_idle_steps": 7},
    ],
    ids=["dead at times", "off", "n = m", "later"],
)
def test_others_go_on(options: dict[str, Any], tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, **{**STOPS, **options})
    trainer.train()
    assert trainer.state.global_step == 6


def test_a_resumed_run_may_have_learned_before(tiny_folder: str, tmp_path: Path) -> None:
    """What is known of it begins with the resume, so that it ends in order."""
    saves = {**STOPS, "save_strategy": "steps", "save_steps": 1}
    build(tiny_folder, tmp_path, rewards=[Rewards(1)], **{**saves, "max_steps": 1}).train()
    resumed = build(tiny_folder, tmp_path, rewards=[Rewards()], **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 3


def watched(limit: int, norms: list[float | None]) -> GradientWatch:
    """A watch that has seen these norms, each in a step that was logged."""
    host = SimpleNamespace(
        args=SimpleNamespace(stop_after_idle_steps=limit, objective="dpo"),
        state=SimpleNamespace(global_step=0),
        control=SimpleNamespace(should_training_stop=False),
        accelerator=SimpleNamespace(is_main_process=True),
    )
    watch = GradientWatch(host)
    for norm in norms:
        host.state.global_step += 1
        if norm is not None:
            watch.norms.append(norm)
        watch.check({"grad_norm": norm or 0.0})
    return watch


def test_only_steps_in_a_row_and_only_zeros_count() -> None:
    assert watched(9, [0.0, 0.0, 1e-30, 0.0]).num_idle == 1
    assert watched(9, [0.0, math.nan, 0.0, 0.0]).num_idle == 2
    assert watched(1, [None, None]).num_idle == 0  # an engine that gives no norm
    assert watched(2, [1.0, 0.0, 0.0]).host.control.should_training_stop
    with pytest.raises(NothingLearned):
        watched(2, [0.0, 0.0])
    watch = watched(9, [])
    watch.norms += [torch.tensor(0.0), torch.tensor(0.0)]
    watch.check({"eval_loss": 1.0})  # no log of a step
    assert watch.num_idle == 0
    watch.check({"grad_norm": 0.0})
    assert watch.num_idle == 2


def test_the_remedy_follows_what_was_seen() -> None:
    told = {
        "pods/frac_no_reward": "look at the reward functions",
        "pods/frac_kept_zero_variance": "take easier or harder questions",
        "reward": "look at what the loss leaves out",
    }
    for name, words in told.items():
        text = idle_in_words("dpo", 20, {name: 1.0})
        assert words in text and f"{name} 1" in text and len(text) < 500


def test_the_number_is_the_settings_own(tmp_path: Path) -> None:
    def config(**options: Any) -> PODSConfig:
        plain = {"use_cpu": True, "bf16": False, "num_generations": 4}
        return PODSConfig(str(tmp_path), **plain, **options)

    assert config().stop_after_idle_steps == 20
    assert config(num_rollouts=4).stop_after_idle_steps == 0
    assert config(num_rollouts=4, objective="dpo").stop_after_idle_steps == 20
    with pytest.raises(ValueError, match="stop_after_idle_steps is -1; give a number of steps"):
        config(stop_after_idle_steps=-1)
