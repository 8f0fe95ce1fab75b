"""The token-level divergence: literal values, against the whole logits, and its memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from podsrl.core.objectives.sequential_kl import sequential_kl


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def case(num_rows=3, num_tokens=5, hidden=4, vocabulary=7, dtype=torch.float64):
    torch.manual_seed(0)
    policy = nn.Linear(hidden, vocabulary, dtype=dtype)
    reference = nn.Linear(hidden + 1, vocabulary, dtype=dtype)
    policy_BTH = torch.randn(num_rows, num_tokens, hidden, dtype=dtype, requires_grad=True)
    reference_BTH = torch.randn(num_rows, num_tokens, hidden + 1, dtype=dtype)
    mask_BT = (torch.arange(num_tokens) < torch.arange(1, num_rows + 1)[:, None] * 2).long()
    return policy_BTH, policy, reference_BTH, reference, mask_BT


def unchunked(policy_BTH, policy, reference_BTH, reference, mask_BT):
    policy_BTV = policy(policy_BTH).float().log_softmax(-1)
    reference_BTV = reference(reference_BTH).float().log_softmax(-1).detach()
    kl_BT = F.kl_div(policy_BTV, reference_BTV, log_target=True, reduction="none").sum(-1)
    return (kl_BT * mask_BT).sum(1)


def test_literal_value():
    # log(1/2 : 1/4)/2 + log(1/2 : 3/4)/2 = log(2)/2 + log(2/3)/2, for each of two tokens
    policy_BTH = torch.tensor([1 / 4, 3 / 4]).log().expand(1, 3, 2)
    reference_BTH = torch.tensor([0.0, 0.0]).expand(1, 3, 2)
    mask_BT = torch.tensor([[1, 1, 0]])
    value = sequential_kl(policy_BTH, nn.Identity(), reference_BTH, nn.Identity(), mask_BT)
    assert value.tolist() == pytest.approx([2 * (math.log(2) + math.log(2 / 3)) / 2], abs=1e-6)


def test_zero_for_the_same_distribution():
    policy_BTH, policy, *_, mask_BT = case(dtype=torch.float32)
    value = sequential_kl(policy_BTH, policy, policy_BTH.clone(), policy, mask_BT)
    assert value.abs().max() < 1e-6


@pytest.mark.parametrize("tokens_per_chunk", [1, 2, 100])
def test_equals_the_whole_logits_in_value_and_gradient(tokens_per_chunk):
    arguments = case(dtype=torch.float32)
    sources = [arguments[0], *arguments[1].parameters()]
    weights_B = torch.tensor([1.0, -2.0, 0.5])
    chunked = sequential_kl(*arguments, tokens_per_chunk=tokens_per_chunk)
    whole = unchunked(*arguments)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(chunked @ weights_B, sources)
    expected = torch.autograd.grad(whole @ weights_B, sources)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert other.abs().max() > 0.01


def test_reference_receives_no_gradient():
    policy_BTH, policy, reference_BTH, reference, mask_BT = case()
    reference_BTH.requires_grad_()
    sequential_kl(policy_BTH, policy, reference_BTH, reference, mask_BT).sum().backward()
    assert policy_BTH.grad is not None and policy.weight.grad is not None
    assert reference_BTH.grad is None and reference.weight.grad is None


def measured(num_tokens):
    """Largest tensor of forward and backward, and numbers kept between the two."""
    arguments = case(num_rows=2, num_tokens=num_tokens, vocabulary=1000, dtype=torch.float32)
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            value = sequential_kl(*arguments[:4], torch.ones(2, num_tokens), tokens_per_chunk=8)
        value.sum().backward()
    return largest.numel, sum(kept.values())


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    short, long = measured(32), measured(128)
    assert short[0] == long[0] == 8 * 1000  # one chunk of logits, forward and backward
    # Kept for the backward pass: hidden states of 4 numbers and an index or two per token, no
    # logits, which would be 1000 per token.
    assert (long[1] - short[1]) / (2 * 96) < 20


def test_a_batch_without_tokens_keeps_a_graph():
    policy_BTH, policy, reference_BTH, reference, mask_BT = case()
    value = sequential_kl(policy_BTH, policy, reference_BTH, reference, 0 * mask_BT)
    assert value.tolist() == [0.0, 0.0, 0.0]
    value.sum().backward()
    assert policy_BTH.grad.abs().sum() == 0


def test_wrong_arguments_say_what_to_do():
    policy_BTH, policy, reference_BTH, reference, mask_BT = case()
    with pytest.raises(ValueError, match=r"the mask \(3, 4\)"):
        sequential_kl(policy_BTH, policy, reference_BTH, reference, mask_BT[:, 1:])
    with pytest.raises(ValueError, match="tokens_per_chunk is 0"):
        sequential_kl(policy_BTH, policy, reference_BTH, reference, mask_BT, tokens_per_chunk=0)
