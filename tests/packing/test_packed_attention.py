"""Reading rows of a packed batch: the values, and gradients that do not change from run to run."""

from collections.abc import Iterator

import pytest
import torch

from podsrl.packing.attention import rows_at


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_rows_at_reads_and_adds_up() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    found = rows_at(values, torch.tensor([[0, 0], [2, 0]]))
    assert found.tolist() == [[[1.0], [1.0]], [[3.0], [1.0]]]
    (found * torch.tensor([[[1.0], [10.0]], [[100.0], [1000.0]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1011.0], [0.0], [100.0]]  # 1 + 10 + 1000, never, 100


@pytest.mark.usefixtures("two_threads")
def test_gradients_of_a_shared_prompt_are_the_same_in_every_run() -> None:
    """16 completions of 24 tokens read the keys of one prompt of 48; `values[index]` fails here."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(48 + 16 * 24, 3, 64, generator=generator, requires_grad=True)
    own = 48 + torch.arange(16 * 24).view(16, 24)
    index = torch.cat([torch.arange(48).expand(16, -1), own], 1)
    weights = torch.randn(16, 72, 3, 64, generator=generator)
    runs = [torch.autograd.grad(rows_at(keys, index), keys, weights)[0] for _ in range(20)]
    assert all(torch.equal(runs[0], run) for run in runs)
    expected = torch.cat([weights[:, :48].sum(0), weights[:, 48:].flatten(0, 1)])
    torch.testing.assert_close(runs[0], expected, rtol=0, atol=1e-5)
