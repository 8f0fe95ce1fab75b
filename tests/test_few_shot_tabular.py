"""examples/few_shot_tabular.py: the flow's identities, board and table by hand, the study small."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.commands import run_python

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import few_shot_tabular as study  # noqa: E402


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def normal_rows() -> Tensor:
    """400 rows of two columns that go together: correlation 0.8."""
    x = torch.randn(400, 2, generator=random(0))
    return torch.stack([x[:, 0], 0.8 * x[:, 0] + 0.6 * x[:, 1]], dim=1)


@pytest.fixture(scope="module")
def flow(normal_rows: Tensor) -> study.Flow:
    return study.fit_flow(normal_rows, torch.ones(2), random(1), 400)


def test_a_flow_of_normal_rows_has_their_mean_and_covariance(
    flow: study.Flow, normal_rows: Tensor
) -> None:
    made = flow.run(torch.randn(4000, 2, generator=random(2)), 50)
    # Sampling errors of 400 rows are .05 in a mean and .07 in a variance; the rest is the fit.
    torch.testing.assert_close(made.mean(dim=0), normal_rows.mean(dim=0), rtol=0, atol=0.15)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(normal_rows.T), rtol=0, atol=0.2)


def test_euler_steps_converge_and_lead_back(flow: study.Flow) -> None:
    noise = torch.randn(200, 2, generator=random(3))
    ends = {steps: flow.run(noise, steps) for steps in (10, 100, 1000)}
    errors = [(ends[steps] - ends[1000]).abs().max().item() for steps in (10, 100)]
    assert errors[1] < errors[0] / 3 and errors[1] < 0.1
    back = flow.run(ends[1000], 1000, backwards=True)
    torch.testing.assert_close(back, noise, rtol=0, atol=0.05)


def test_equal_weights_are_plain_flow_matching(normal_rows: Tensor) -> None:
    """Any number in all columns alike: to the bit as 1 does, but for the optimizer's epsilon."""
    point = torch.randn(5, 2, generator=random(4)), torch.full((5, 1), 0.5)
    found = [
        study.fit_flow(normal_rows, weight * torch.ones(2), random(1), 20)(*point)
        for weight in (1.0, 1.0, 4.0)
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-3)
    other = study.fit_flow(normal_rows, torch.tensor([0.1, 1.9]), random(1), 20)(*point)
    assert (other - found[0]).abs().max() > 1e-3


def test_the_forest_finds_the_column_that_matters() -> None:
    x = torch.randn(60, 4, generator=random(5))
    found = study.importances(x, 3 * x[:, 2] + 0.1 * x[:, 0], random(6), trees=10)
    assert found.sum().item() == pytest.approx(1.0) and found[2] > 0.7
    weights = study.weights_of(study.transitions(60, random(7)), random(8))
    assert weights.mean().item() == pytest.approx(1.0) and weights[4] == 1.0
    constant = study.importances(x, torch.ones(60), random(6), trees=2)
    assert constant.tolist() == [0.0] * 4  # nothing to explain


def test_bootstrapped_latents_have_the_moments_of_the_real_ones(normal_rows: Tensor) -> None:
    made = study.bootstrapped(normal_rows, 5000, random(9))
    assert made.shape == (5000, 2)
    torch.testing.assert_close(torch.cov(made.T), torch.cov(normal_rows.T), rtol=0, atol=0.15)


def test_the_board_by_hand() -> None:
    board = study.Board(2, random(0))
    board.load, board.temperature = torch.ones(2), torch.tensor([45.0, 90.0])
    reward = board.step(torch.tensor([7, 7]))
    # 2 GHz, and 1 GHz where it is too hot: 1 + 1.5 x 8 + .02 x 20 = 13.4 and 1 + 1.5 + 1.3 = 3.8 W
    assert board.power.tolist() == pytest.approx([13.4, 3.8])
    # a tenth of the way to 25 + 5 x 13.4 = 92 and to 44
    assert board.temperature.tolist() == pytest.approx([49.7, 85.4])
    # still above 80: 1 less
    fps = board.fps
    expected = fps / 60 - board.power / 20 - torch.tensor([0.0, 1.0])
    torch.testing.assert_close(reward, expected)


def test_a_table_of_one_row_by_hand() -> None:
    # At 50 fps and 50 degrees, level 3, reward 1, back to the same cell: 1 / (1 - .9) = 10.
    row = torch.tensor([[50.0, 3.0, 50.0, 3.2, 1.0, 50.0, 3.0, 50.0]])
    table = study.fit_table(row)
    place = study.cells(row[:, 0], row[:, 2])
    assert table[place, 3].item() == pytest.approx(10 * (1 - 0.9**50), rel=1e-4)
    assert (table != 0).sum() == 1


def test_the_study_at_a_reduced_size(tmp_path: Path) -> None:
    words = ["--seeds", "2", "--real", "12", "--steps", "20"]
    told = run_python(EXAMPLES / "few_shot_tabular.py", *words, cwd=tmp_path).splitlines()
    assert told[0].startswith("reward a step over 2 seeds, 12 real rows")
    assert [line.split()[0] for line in told[1:]] == list(study.KINDS)
    assert told[1].endswith("+0.000 +- 0.000")  # of itself
    # Real rows are worth most where a table has seen little of what it must choose from.
    found = study.study(3, num_real=12, num_rows=500, num_steps=5)
    assert sum(found["real"]) > sum(found["none"])
