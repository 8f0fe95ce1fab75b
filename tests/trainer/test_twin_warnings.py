"""One warning where a word of the recipe trains as another, and none where it is its own."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.harness import build
from helpers.tiny import even_reward, text_of
from podsrl import PODSConfig
from podsrl.trl.twins import sure_pairs, twin_of


def config(**options: Any) -> PODSConfig:
    return PODSConfig("unused", **{"num_generations": 4, "use_cpu": True, "bf16": False, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "sapg"}, "objective='sapg' trains as 'grpo' with loss_type='dapo'"),
        (
            {"objective": "sapg", "behaviours": [{"temperature": 1.0, "share": 1.0}]},
            "objective='sapg' trains as 'grpo'",
        ),
        ({"objective": "vargrad"}, "trains as 'agro': its loss is 200 times"),
        ({"objective": "vargrad", "beta": 0.5}, "its loss is 8 times"),
        ({"objective": "tdpo2", "tdpo_alpha": 0.0}, "trains as 'dpo': tdpo_alpha is 0"),
        ({"objective": "bmc", "bmc_delta": 0.0}, "trains as 'dpo': bmc_delta is 0"),
        ({"advantage": "rloo"}, "trains as 'dr_grpo': its advantages are 4/3"),
        ({"advantage": "rloo", "advantage_from": "all"}, "its advantages are 8/7"),
    ],
)
def test_a_word_that_is_another(options: dict[str, Any], words: str) -> None:
    assert words in (twin_of(config(**options)) or "")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"advantage": "dr_grpo"},
        {"advantage": "rloo", "budget": "pooled"},  # groups of several sizes, several factors
        {"objective": "sapg", "use_vllm": True},
        {"objective": "sapg", "behaviours": [{"temperature": 1.3, "share": 1.0}]},
        {"objective": "tdpo2"},
        {"objective": "bmc"},
        *({"objective": name} for name in ("agro", "qrpo", "rebel", "dpo", "tdpo1", "rbrm")),
    ],
    ids=str,
)
def test_a_word_of_its_own(options: dict[str, Any]) -> None:
    assert twin_of(config(**options)) is None


def test_pairs_that_are_sure() -> None:
    nan = math.nan
    # sigmoid(7.5 * 1) = 0.99945, sigmoid(7.5 * 0.5) = 0.977; a prompt of equal rewards says nothing
    assert "at least 0.9994" in (sure_pairs(torch.tensor([[0.0, 1.0, nan]]), alpha=7.5) or "")
    assert sure_pairs(torch.tensor([[0.0, 1.0], [0.5, 1.0]]), alpha=7.5) == ""
    assert sure_pairs(torch.tensor([[1.0, 1.0], [nan, 1.0]]), alpha=7.5) is None


def length(completions: list[Any], **_: Any) -> list[float]:
    return [len(text_of(each)) / 100 for each in completions]


@pytest.mark.parametrize(
    ("options", "num_told"),
    [
        ({"objective": "rbrm", "rewards": [even_reward]}, 1),
        ({"objective": "rbrm", "rewards": [length]}, 0),
        ({"objective": "vargrad"}, 1),
        ({"objective": "agro"}, 0),
    ],
    ids=["rbrm-sure", "rbrm", "vargrad", "agro"],
)
def test_it_is_told_once(
    options: dict[str, Any],
    num_told: int,
    tiny_folder: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="podsrl.trl.twins"):
        build(tiny_folder, tmp_path, max_steps=2, **options).train()
    told = [record for record in caplog.records if record.name == "podsrl.trl.twins"]
    assert len(told) == num_told
    assert all("trains as" in record.getMessage() for record in told)
