"""The objective that docs/extending.md walks through works as written there."""

import re
from pathlib import Path

import pytest
import torch

from podsrl.core.objectives import OBJECTIVES, KeptBatch

DOCS = Path(__file__).resolve().parents[3] / "docs/extending.md"


def test_the_objective_of_the_walkthrough() -> None:
    text = DOCS.read_text()
    code = re.search(r"```python\n# my_objective.py\n(.*?)```", text, re.DOTALL)
    assert code is not None
    try:
        exec(code.group(1), {})
        objective = OBJECTIVES["centred"]
    finally:
        OBJECTIVES.pop("centred", None)
    zeros = torch.zeros(3, 1)
    batch = KeptBatch(
        log_probs_BT=torch.tensor([[1.0], [-2.0], [5.0]]),
        old_log_probs_BT=zeros,
        reference_log_probs_BT=zeros,
        mask_BT=torch.ones(3, 1),
        rewards_B=torch.tensor([1.0, 0.0, torch.nan]),
        advantages_B=torch.zeros(3),
        group_B=torch.tensor([4, 4, 4]),
    )
    loss, metrics = objective.function(batch, **objective.options)
    # beta 0.1: 0.05 * 1 - 0.5 * 1 = -0.45 and 0.05 * 4 - (-0.5) * (-2) = -0.8; the third row is
    # out, and three rows divide: -1.25 / 3
    assert loss.item() == pytest.approx(-1.25 / 3)
    assert metrics["log_ratio_squared"].item() == pytest.approx(5 / 3)
