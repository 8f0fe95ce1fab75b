"""`rbrm_refresh_steps`: the head of `rbrm` fitted anew on the policy's own rollouts."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.harness import build, logged
from helpers.heads import about
from helpers.tiny import even_reward, make_model
from podsrl import PODSTrainer
from podsrl.probe.head import Head, model_digest, save_head
from podsrl.trl.head_refresh import STATES, HeadRefresh

RBRM: dict[str, Any] = {"objective": "rbrm", "rewards": [even_reward]}
N = 8


@pytest.fixture
def head(tmp_path: Path) -> str:
    weight = torch.randn(32, generator=torch.Generator().manual_seed(1)) / 2
    told = about(kind="bradley_terry", layers=[1], model_digest=model_digest(make_model()))
    path = tmp_path / "head.safetensors"
    save_head(path, Head(weight, 0.25, told))
    return str(path)


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def sampled(num_prompts: int, *, signal: float) -> tuple[list[dict[str, Any]], Any]:
    """Rows with states of which the first number says, by the signal, which rollouts are right."""
    generator = torch.Generator().manual_seed(0)
    states_SDH = torch.randn(num_prompts * N, 1, 32, generator=generator)
    chance_S = torch.sigmoid(signal * states_SDH[:, 0, 0])
    right_S = (torch.rand(num_prompts * N, generator=generator) < chance_S).float()
    right_S[0] = float("nan")  # without a reward: left out
    rows = [
        {"prompt": [{"role": "user", "content": f"question {i // N}"}], STATES: states_SDH[i]}
        for i in range(num_prompts * N)
    ]
    return rows, SimpleNamespace(rewards_per_func_PNF=right_S.view(num_prompts, N, 1))


def refresh_of(head: str, tiny_folder: str, tmp_path: Path) -> HeadRefresh:
    trainer = build(tiny_folder, tmp_path / "run", **RBRM, rbrm_head=head, rbrm_refresh_steps=1)
    found: HeadRefresh = trainer.objective_step.head.refresh
    return found


def test_a_head_that_is_better_than_chance_takes_the_standing_ones_place(
    head: str, tiny_folder: str, tmp_path: Path
) -> None:
    refresh = refresh_of(head, tiny_folder, tmp_path)
    metrics = refresh.add(*sampled(90, signal=3.0))
    assert metrics["head/fitted_auroc"] > 0.8 > metrics["head/standing_auroc"]
    assert metrics["head/num_refused"] == 0
    weight, told = refresh.head.weight, refresh.head.about
    assert weight.abs().argmax() == 0 and weight[0] > 0
    assert told.num_prompts_held_out == 30 and told.tells_within and told.kind == "bradley_terry"
    # It begins to collect anew, and the fitted head is the one that stands then.
    refresh.host.state.global_step = 1
    again = refresh.add(*sampled(90, signal=3.0))
    assert again["head/standing_auroc"] > 0.8


def test_one_that_is_not_better_or_has_seen_too_little_is_counted_and_left(
    head: str, tiny_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refresh = refresh_of(head, tiny_folder, tmp_path)
    before = refresh.head
    metrics = refresh.add(*sampled(90, signal=0.0))
    assert metrics["head/num_refused"] == 1 and 0.3 < metrics["head/fitted_auroc"] < 0.65
    refresh.host.state.global_step = 1
    with caplog.at_level(logging.WARNING, logger="podsrl"):
        metrics = refresh.add(*sampled(30, signal=3.0))
    assert metrics["head/num_refused"] == 2 and "head/fitted_auroc" not in metrics
    assert "stays as it was at step 2: 0.333333 of 30 prompts are 10 held out" in caplog.text
    assert refresh.head is before


def test_a_run_that_is_resumed_between_two_fits_is_the_whole_one_to_the_bit(
    head: str, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six questions are too few for a fit: what stands in its place depends on all collected."""

    def fitted(self: HeadRefresh) -> tuple[Head, float, float]:
        states = torch.cat(self._states)
        shift = states.mean() + self._items().right_K.sum() + len(set(self._questions))
        return replace(self.head, weight=self.head.weight + shift), 0.5, 0.75

    monkeypatch.setattr(HeadRefresh, "_fitted", fitted)
    options = {**RBRM, "rbrm_head": head, "rbrm_refresh_steps": 2, "max_steps": 5}
    options |= {"save_strategy": "steps", "save_steps": 3}
    whole = build(tiny_folder, tmp_path / "whole", **options)
    whole.train()
    assert len(logged(whole, "head/fitted_auroc")) == 2  # with steps 2 and 4
    resumed = build(tiny_folder, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    heads = [each.objective_step.head.head.weight for each in (whole, resumed)]
    assert torch.equal(*heads) and torch.equal(weights(resumed), weights(whole))
    fixed = build(tiny_folder, tmp_path / "fixed", **{**options, "rbrm_refresh_steps": None})
    fixed.train()
    assert not torch.equal(weights(fixed), weights(whole))
