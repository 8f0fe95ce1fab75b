"""Estimators, weights and rules that need lengths, through PODSTrainer on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.harness import build, recorded
from helpers.tiny import digit_reward
from podsrl import PODSConfig
from podsrl.core.advantage import advantages
from podsrl.core.stratified import frac_unrepresented


def run_one_step(folder: str, output: Path, **options: Any) -> tuple[Any, Any]:
    """The trainer after a step, and what it selected."""
    trainer = build(folder, output, max_steps=1, **options)
    recorder = recorded(trainer)
    trainer.train()
    return trainer, recorder.selections[0]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"advantage": "rloo"}, {"estimator": "rloo"}),
        (
            {"advantage": "krpo", "krpo_observation_variance": 0.5, "krpo_innovation": True},
            {
                "estimator": "krpo",
                "source": "all",
                "observation_variance": 0.5,
                "innovation": True,
            },
        ),
        (
            {"advantage_weights": "stratified", "scale_rewards": "batch"},
            {"source": "all", "weights": "stratified", "scale": "batch"},
        ),
    ],
)
def test_the_trainer_uses_the_estimator(
    tiny_folder: str, tmp_path: Path, options: dict, arguments: dict
) -> None:
    trainer, selection = run_one_step(tiny_folder, tmp_path, rewards=[digit_reward], **options)
    expected = advantages(selection.rewards_PN, selection.kept_PM, **arguments).flatten()
    assert torch.tensor(list(trainer._logs["advantages"])) == pytest.approx(expected, abs=1e-6)
    assert expected.abs().sum() > 0
    shares = [
        entry["pods/frac_unrepresented"]
        for entry in trainer.state.log_history
        if "pods/frac_unrepresented" in entry
    ]
    if arguments.get("weights") == "stratified":
        share = frac_unrepresented(selection.rewards_PN, selection.kept_PN)
        assert shares == [pytest.approx(share.item())]
    else:
        assert shares == []


@pytest.mark.parametrize("budget", ["per_prompt", "pooled"])
def test_a_rule_by_length_keeps_the_shortest(tiny_folder: str, tmp_path: Path, budget: str) -> None:
    texts: list[str] = []

    def remember(completions: list, completion_ids: list, **_: Any) -> list[float]:
        texts.extend(str(len(ids)) for ids in completion_ids)
        return digit_reward(completions)

    _, selection = run_one_step(
        tiny_folder, tmp_path, rewards=[remember], selection_rule="shortest", budget=budget
    )
    lengths_PN = torch.tensor([int(text) for text in texts]).view(-1, 8)
    assert lengths_PN.unique().numel() > 1
    for lengths_N, kept_N in zip(lengths_PN, selection.kept_PN, strict=True):
        num_kept = int(kept_N.sum())
        assert lengths_N[kept_N].sort().values.equal(lengths_N.sort().values[:num_kept])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"advantage": "ppo"}, "advantage is 'ppo'; choose one of grpo, dr_grpo, rloo, krpo"),
        ({"advantage_weights": "all"}, "advantage_weights is 'all'; choose one of none, strat"),
        (
            {"advantage": "krpo", "advantage_from": "kept"},
            "advantage='krpo' counts the rewards of all n rollouts.*leave advantage_from out",
        ),
        (
            {"advantage_weights": "stratified", "advantage_from": "kept"},
            "advantage_weights='stratified' counts the rewards of all n",
        ),
        ({"advantage": "rloo", "scale_rewards": "batch"}, "no effect with advantage='rloo'"),
        (
            {"advantage": "krpo", "krpo_observation_variance": 0.0},
            "krpo_observation_variance is 0.0; it must be finite and > 0",
        ),
        ({"advantage": "krpo", "krpo_order": "best"}, "krpo_order is 'best'; choose one of"),
        (
            {"advantage": "rloo", "multi_objective_aggregation": "normalize_then_sum"},
            "advantage='rloo', .* needs multi_objective_aggregation='sum_then_normalize'",
        ),
    ],
)
def test_config_refuses_what_has_no_meaning(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PODSConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=8, **options)


def test_the_source_follows_from_the_estimator(tmp_path: Path) -> None:
    def source(**options: Any) -> str | None:
        return PODSConfig(str(tmp_path), use_cpu=True, bf16=False, **options).advantage_from

    assert source() == "kept"
    assert source(advantage="rloo") == "kept"
    assert source(advantage="rloo", advantage_from="all") == "all"
    assert source(advantage="krpo") == "all"
    assert source(advantage_weights="stratified") == "all"
