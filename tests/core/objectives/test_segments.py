"""Segments of a dialogue: which turn went wrong, how far it counts, and the loss over it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.pairs import dpo, sdpo
from podsrl.core.objectives.segments import largest_fall, num_until_recovered

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "turn"),
    [
        ([0.5, 0.75, 0.25, 0.0], 1),  # falls -1/4, 1/2, 1/4
        ([0.5, 0.25, 0.0, 0.0], 0),  # falls 1/4, 1/4, 0: the first of two
        ([1.0, 1.0, 1.0, 0.0], 2),  # the last turn alone
        ([0.5, 0.5, NAN, NAN], -1),  # one turn, over which nothing falls
        ([0.5, 0.25, NAN, NAN], 0),  # one turn of a rollout beside longer ones
        ([0.0, 0.25, 0.5, 1.0], -1),  # it gets better and better
        ([1.0, NAN, 0.5, 0.25], 2),  # what is next to an unknown value falls by nothing known
        ([NAN] * 4, -1),
    ],
)
def test_the_turn_of_the_largest_fall(values: list[float], turn: int) -> None:
    others = [[1.0, 0.0, 0.0, 0.0], values]  # beside another rollout, which changes nothing
    assert largest_fall(torch.tensor(others)).tolist() == [0, turn]


def test_of_one_turn_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\).*at least two turns"):
        largest_fall(torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize(
    ("values", "level", "most", "num"),
    [
        ([0.25, 0.5, 1.0], 0.5, 3, 2),  # back at 1/2 after two turns
        ([0.25, 0.5, 1.0], 0.5, 1, 1),  # the other rollout has one turn more
        ([0.5, 0.0, 0.0], 0.5, 3, 1),  # once back is back
        ([0.0, 0.25, 0.25], 0.5, 3, 3),  # never: to the end
        ([NAN, NAN, NAN], 0.5, 2, 2),  # not known: to the end
    ],
)
def test_how_far_a_segment_goes(values: list[float], level: float, most: int, num: int) -> None:
    found = num_until_recovered(
        torch.tensor([values, [1.0] * 3]), torch.tensor([level, 1.0]), torch.tensor([most, 3])
    )
    assert found.tolist() == [num, 1]


# Two groups of two rows and one more; three turns of a token each, what came back between them.
MASK = [[1, 0, 1, 0, 1]] * 4 + [[1, 0, 0, 0, 0]]
RATIOS = [
    [1.0, 9.0, 2.0, 9.0, 4.0],
    [1.0, 9.0, 0.5, 9.0, -1.0],
    [0.25, 9.0, 0.5, 9.0, 3.0],
    [2.0, 9.0, 1.0, 9.0, 8.0],
    [7.0, 9.0, 9.0, 9.0, 9.0],
]


def batch_of(**extras: list[int]) -> tuple[KeptBatch, Tensor]:
    """The rows above, whose reference has log-probs of 0; and their log-probs, for gradients."""
    log_probs_BT = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)
    found = KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=log_probs_BT.detach(),
        mask_BT=torch.tensor(MASK),
        rewards_B=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        advantages_B=torch.zeros(5),
        group_B=torch.tensor([7, 7, 3, 3, 3]),
        reference_log_probs_BT=torch.zeros(5, 5, dtype=torch.float64),
        extras={name: torch.tensor(values) for name, values in extras.items()},
    )
    return found, log_probs_BT


def softplus(number: float) -> float:
    return math.log(1 + math.exp(number))


def own(**options: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """`value_drop` with a segment for each pair: turn 1 on of the first, turn 0 of the second."""
    batch, log_probs_BT = batch_of(
        segment_pair=[1, 1, 3, 3, 4],
        segment_first=[1, 1, 0, 0, 0],
        segment_num=[2, 2, 1, 1, 0],
        **options,
    )
    loss, metrics = sdpo(batch, beta=0.5, sdpo_segment="value_drop")
    return loss, metrics, log_probs_BT


def test_each_pair_has_its_own_segment() -> None:
    # Margins (2 + 4) - (.5 - 1) = 6.5 and .25 - 2 = -1.75, of groups of 2 and 3 of 5 rows.
    loss, metrics, log_probs_BT = own()
    expected = (2 * softplus(-0.5 * 6.5) + 3 * softplus(0.5 * 1.75)) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["num_pairs"] == 2 and metrics["pair_accuracy"] == 0.5
    loss.backward()
    inside_BT = torch.zeros(5, 5, dtype=torch.bool)
    inside_BT[:2, [2, 4]] = inside_BT[2:4, 0] = True
    assert ((log_probs_BT.grad != 0) == inside_BT).all()


def test_the_shared_prefix_cancels_exactly() -> None:
    """The first pair shares turn 0: over all turns its loss is that of its segment, to the bit."""
    for segment in ({"sdpo_first_turn": 1}, {"sdpo_first_turn": 0}, {}):
        batch, _ = batch_of()
        batch.rewards_B[2] = 0.0  # so that the other group has no pair
        part = sdpo(batch, beta=0.5, **segment)[0]
        assert torch.equal(part, dpo(batch, beta=0.5)[0])
        assert part.item() == pytest.approx(2 * softplus(-0.5 * 6.5) / 5)


def test_equal_segments_of_all_pairs_are_the_fixed_one() -> None:
    rows = {"segment_pair": [1, 1, 3, 3, 4], "segment_first": [1] * 5, "segment_num": [1] * 5}
    batch, log_probs_BT = batch_of(**rows)
    one = sdpo(batch, beta=0.5, sdpo_segment="value_drop")
    two = sdpo(batch, beta=0.5, sdpo_first_turn=1, sdpo_num_turns=1)
    assert torch.equal(one[0], two[0])
    gradients = [torch.autograd.grad(loss, log_probs_BT)[0] for loss, _ in (one, two)]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


def test_a_pair_without_a_segment_is_none() -> None:
    batch, _ = batch_of(
        segment_pair=[1, 1, 2, 3, 4], segment_first=[2, 2, 0, 0, 0], segment_num=[1, 1, 0, 0, 0]
    )
    loss, metrics = sdpo(batch, beta=0.5, sdpo_segment="value_drop")
    # 4 - (-1) = 5 in the first; the second group could have had a pair, and has none
    assert loss.item() == pytest.approx(2 * softplus(-0.5 * 5) / 5)
    assert metrics["num_pairs"] == 1 and metrics["frac_no_pair"] == 0.5
