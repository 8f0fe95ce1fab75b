"""Rows that teach nothing: which a pass is made of, and what stands in the places of the others."""

from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.packing.live import live_rows, mean_of, spread, teaching
from podsrl.packing.serve import LogProbs


def test_live_rows_are_those_that_teach_or_all_or_the_shortest():
    mask_BT = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]])
    assert live_rows(torch.tensor([False, True, False, True]), mask_BT).tolist() == [1, 3]
    assert live_rows(torch.ones(4, dtype=torch.bool), mask_BT) is None
    assert live_rows(torch.zeros(4, dtype=torch.bool), mask_BT).tolist() == [2]  # first of shortest
    # A row that is all there is: nothing could be left out.
    assert live_rows(torch.tensor([False]), mask_BT[:1]).tolist() == [0]


def test_a_row_teaches_where_any_of_its_advantages_is_not_0():
    assert teaching(torch.tensor([0.0, -1.0, 2.0])).tolist() == [False, True, True]
    per_token_BT = torch.tensor([[0.0, 0.0], [0.0, -1.0], [2.0, 0.0]])
    assert teaching(per_token_BT).tolist() == [False, True, True]


def test_spread_puts_values_back_and_sends_gradients_to_them_alone():
    found_LT = torch.tensor([[5.0, 6.0]], requires_grad=True)
    filler_BT = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    result_BT = spread(found_LT, torch.tensor([1]), filler_BT)
    assert result_BT.tolist() == [[1, 2], [5, 6]] and result_BT.dtype == torch.float32
    (result_BT * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert found_LT.grad.tolist() == [[100.0, 1000.0]]


def test_the_mean_of_live_tokens_as_filler_leaves_it_the_mean_of_all():
    values_LT, mask_LT = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])
    mean = mean_of(values_LT, mask_LT)  # (1 + 2) / 2
    assert mean == 1.5
    all_BT = spread(values_LT, torch.tensor([0]), torch.zeros(2, 3) + mean)
    mask_BT = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert mean_of(all_BT, mask_BT) == 1.5
    assert mean_of(values_LT, torch.zeros(1, 3)) == 0.0


class Padded:
    """A host's pass: log-probs are the tokens, entropies ten times that; rows are counted."""

    def __init__(self) -> None:
        self.rows: list[list[list[int]]] = []

    def __call__(
        self, model: Any, input_ids: Tensor, mask: Tensor, num_completion: int, **options: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        self.rows.append(input_ids.tolist())
        found_BT = input_ids[:, -num_completion:].float()
        return found_BT, 10 * found_BT if options["compute_entropy"] else None, None


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_a_pass_is_made_of_live_rows_alone(known: bool, per_token: bool) -> None:
    host, compute = Padded(), LogProbs(torch.no_grad, packs=False)
    input_ids = torch.tensor([[7, 1, 2], [8, 3, 4], [9, 5, 6]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    advantages = torch.tensor([0.0, -1.0, 2.0])
    if per_token:  # a row lives where any of its tokens does
        advantages = torch.stack([torch.zeros(3), advantages], dim=1)
    known_BT = torch.full((3, 2), -7.0) if known else None
    log_probs, entropies = compute(
        host, None, input_ids, mask, 2, advantages=advantages, known_BT=known_BT,
        compute_entropy=True,
    )  # fmt: skip
    assert host.rows == [[[8, 3, 4], [9, 5, 6]]]
    left_out = [-7.0, -7.0] if known else [0.0, 0.0]
    assert log_probs.tolist() == [left_out, [3, 4], [5, 6]]
    # Tokens 3, 4 and 5 are real, 6 is padding: their entropies' mean is 40.
    assert entropies is not None and entropies.tolist() == [[40, 40], [30, 40], [50, 60]]


def test_nothing_is_left_out_where_all_rows_teach_or_nothing_is_said() -> None:
    host, compute = Padded(), LogProbs(torch.no_grad, packs=False)
    input_ids, mask = torch.tensor([[7, 1], [8, 3]]), torch.ones(2, 2, dtype=torch.long)
    for advantages in (None, torch.tensor([1.0, -1.0])):
        log_probs, entropies = compute(host, None, input_ids, mask, 1, advantages=advantages)
        assert log_probs.tolist() == [[1], [3]] and entropies is None
    assert host.rows == [input_ids.tolist()] * 2
