"""Tokens of tools and environments: a mask with holes is the same rows without those tokens."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives import OBJECTIVES, KeptBatch
from podsrl.core.objectives.end_tokens import end_log_probs
from podsrl.core.objectives.sequential_kl import sequential_kl

H, V = 3, 5


def tokens(seed: int = 0) -> dict[str, Tensor]:
    """Two groups of four rows, 9 tokens each, about a third of them holes; one row has no hole."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.rand(8, 9, *shape, generator=generator, dtype=torch.float64)

    mask_BT = (random() > 1 / 3).long()
    mask_BT[:, 0] = mask_BT[3] = 1
    mask_BT[4, 6:] = 0  # padding behind the last token, as in every batch
    log_probs_BT = -3 * random()
    return {
        "log_probs_BT": log_probs_BT,
        "old_log_probs_BT": log_probs_BT + random() / 2,
        "reference_log_probs_BT": -3 * random(),
        "mask_BT": mask_BT,
        "behaviour_log_probs": log_probs_BT + random() / 2,
        "completion_ids": (6 * random()).long(),
        "policy_BTH": 4 * random(H) - 2,
        "reference_BTH": 4 * random(H) - 2,
    }


def without_holes(of: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each row's tokens that count, moved together; 0 behind them, where the mask is 0, too."""
    order_BT = (of["mask_BT"] == 0).long().argsort(dim=1, stable=True)
    moved = {}
    for name, value in of.items():
        index = order_BT.view(*order_BT.shape, *[1] * (value.ndim - 2)).expand_as(value)
        moved[name] = value.gather(1, index)
    keep = moved["mask_BT"] != 0
    return {k: v * keep.view(*keep.shape, *[1] * (v.ndim - 2)) for k, v in moved.items()}


def gradients(name: str, of: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, metrics, and the gradient of each token's log-prob and hidden state, (B, T, 1 + H)."""
    log_probs_BT = of["log_probs_BT"].clone().requires_grad_()
    policy_BTH = of["policy_BTH"].clone().requires_grad_()
    head = torch.linspace(-1, 1, H * V, dtype=torch.float64).view(H, V)
    mask_BT = of["mask_BT"]

    def project(hidden_LH: Tensor) -> Tensor:
        return hidden_LH @ head

    extras: dict[str, Any] = {
        "reference_rewards": torch.linspace(0, 1, 32).view(8, 4),
        "accuracy": torch.linspace(0, 1, 8),
        "end_log_probs": end_log_probs(policy_BTH, project, torch.tensor([1, 4]), mask_BT),
        "reference_end_log_probs": of["behaviour_log_probs"],
        "prefix_rewards": of["reference_log_probs_BT"],
        "behaviour_log_probs": of["behaviour_log_probs"],
        "completion_ids": of["completion_ids"],
        "segment_pair": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),
        "segment_first": torch.zeros(8, dtype=torch.int64),
        "segment_num": torch.full((8,), 9),
        "sequential_kl": sequential_kl(policy_BTH, project, of["reference_BTH"], project, mask_BT),
    }
    batch = KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=of["old_log_probs_BT"],
        reference_log_probs_BT=of["reference_log_probs_BT"],
        mask_BT=mask_BT,
        rewards_B=torch.tensor([0.0, 1.0, 0.25, 0.5, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        advantages_B=torch.tensor([-1.0, 1.0, -0.5, 0.5, 1.0, -1.0, 1.0, -1.0]).double(),
        group_B=torch.tensor([7, 7, 7, 7, 2, 2, 2, 2]),
        extras=extras,
    )
    objective = OBJECTIVES[name]
    own = {name: objective.options[name] for name in objective.of_function()}
    loss, metrics = objective.function(batch, **own)
    loss.backward()
    found = [log_probs_BT.grad, policy_BTH.grad]
    log_probs, hidden = (
        torch.zeros_like(x) if g is None else g
        for g, x in zip(found, (log_probs_BT, policy_BTH), strict=True)
    )
    return loss.detach(), metrics, torch.cat([log_probs[..., None], hidden], dim=-1)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_holes_teach_nothing_and_rows_without_them_are_the_same(name: str, seed: int) -> None:
    """Loss, metrics and the gradients of the other tokens are those of the shorter rows."""
    with_holes = tokens(seed)
    loss, metrics, gradient = gradients(name, with_holes)
    assert (gradient[with_holes["mask_BT"] == 0] == 0).all()
    assert gradient.abs().sum() > 0
    short = without_holes(with_holes)
    short_loss, short_metrics, short_gradient = gradients(name, short)
    assert loss.item() == pytest.approx(short_loss.item(), rel=1e-6)
    moved = without_holes({"mask_BT": with_holes["mask_BT"], "gradient": gradient})["gradient"]
    assert torch.allclose(moved, short_gradient, rtol=1e-5, atol=1e-9)
    for key, value in metrics.items():
        assert value.item() == pytest.approx(short_metrics[key].item(), rel=1e-6), key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_in_a_hole_is_not_read(name: str) -> None:
    plain = tokens()
    changed = {key: value.clone() for key, value in plain.items()}
    holes = plain["mask_BT"] == 0
    for key, value in changed.items():
        if key != "mask_BT":
            value[holes] = 4 if key == "completion_ids" else math.nan
    loss, _, gradient = gradients(name, plain)
    same_loss, _, same_gradient = gradients(name, changed)
    assert torch.equal(loss, same_loss) and torch.equal(gradient, same_gradient)
