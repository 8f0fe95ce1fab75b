"""What stopping saved, by hand and against lengths that are known."""

import pytest
import torch

from podsrl.sampling.early_stop_metrics import early_stop_metrics, tokens_to_come


def test_metrics_by_hand() -> None:
    """Lengths 2, 4, 3 stopped, 3; at most 8 tokens; the last one's grading failed."""
    metrics = early_stop_metrics(
        torch.tensor([[0.0, 1.0, torch.nan, torch.nan]]),
        torch.tensor([[0, 1]]),
        has_ended_PN=torch.tensor([[True, True, False, True]]),
        length_PN=torch.tensor([[2.0, 4.0, 3.0, 3.0]]),
        max_length=8,
    )
    assert {name: float(value) for name, value in metrics.items()} == {
        "pods/frac_rollouts_stopped": 0.25,
        "pods/frac_tokens_saved": pytest.approx(1 / 13),  # all with more than 3 ended with 4
        "pods/frac_tokens_saved_at_most": pytest.approx(5 / 17),
        "pods/finished_mean_length": 3.0,  # 2, 4, 3
        "pods/kept_mean_length": 3.0,  # 2, 4
        "pods/frac_no_reward": pytest.approx(1 / 3),
    }


def test_tokens_to_come_by_hand() -> None:
    """Ended with 1, 3, 5; stopped after 2 and after 4, in groups of any shape.

    Had s or more: 5, 4, 3, 2, 1 for s = 1..5. S(1) = 4/5, S(2) = 4/5, S(3) = 4/5 x 2/3 = S(4),
    S(5) = 0. After 2: 1 + 2/3 + 2/3; after 4: 1.
    """
    length_PN = torch.tensor([[1, 3, 5, 2, 4]])
    has_ended_PN = torch.tensor([[True, True, True, False, False]])
    to_come = tokens_to_come(length_PN, has_ended_PN, max_length=9)
    torch.testing.assert_close(to_come, torch.tensor([[0.0, 0.0, 0.0, 7 / 3, 1.0]]).double())
    # With the limit at 4 no rollout of 5 is possible, and the last one would not have gone on.
    to_come = tokens_to_come(length_PN.clamp(max=4), has_ended_PN, max_length=4)
    torch.testing.assert_close(to_come[0, 3], torch.tensor(5 / 3).double())


def test_nothing_known_about_longer_rollouts_counts_up_to_the_limit() -> None:
    to_come = tokens_to_come(torch.tensor([[2, 6]]), torch.tensor([[True, False]]), max_length=10)
    assert to_come.tolist() == [[0.0, 4.0]]
    nobody = tokens_to_come(torch.tensor([[3, 3]]), torch.zeros(1, 2).bool(), max_length=10)
    assert nobody.tolist() == [[7.0, 7.0]]


def test_estimate_meets_the_truth_when_stopping_has_nothing_to_do_with_length() -> None:
    generator = torch.Generator().manual_seed(0)
    whole_PN = (30 * torch.rand(500, 16, generator=generator) + 1).floor()
    stop_PN = (40 * torch.rand(500, 16, generator=generator) + 1).floor()
    has_ended_PN = whole_PN <= stop_PN
    drawn_PN = torch.minimum(whole_PN, stop_PN)
    to_come = tokens_to_come(drawn_PN, has_ended_PN, max_length=30)
    assert float(to_come.sum() / (whole_PN - drawn_PN).sum()) == pytest.approx(1, abs=0.02)
