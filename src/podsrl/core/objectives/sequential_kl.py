"""Token-level divergence between two models over the whole vocabulary, in flat memory.

Shape letters: B rows, T completion tokens, H hidden size, V vocabulary, L tokens of one chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states (L, H) to logits (L, V)."""

TOKENS_PER_CHUNK = 128


def sequential_kl(
    policy_hidden_BTH: Tensor,
    policy_head: Head,
    reference_hidden_BTH: Tensor,
    reference_head: Head,
    mask_BT: Tensor,
    *,
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> Tensor:
    """Return sum_t KL(pi_ref(.|s_t) || pi_theta(.|s_t)) of each row, with gradients of the policy.

    The sequential forward divergence of TDPO (arXiv 2404.11999). Logits exist for one chunk of
    tokens at a time, and again in the backward pass, which computes them anew: beyond the hidden
    states, memory is a few times `tokens_per_chunk` x V float32 numbers, whatever B and T are.
    Softmax is taken in float32 whatever the heads return. Padding costs nothing, for which one
    count is read back from the device.

    Args:
        policy_hidden_BTH: hidden states that predict each completion token, (B, T, H), with graph.
        policy_head: maps hidden states (L, H) to logits (L, V), temperature included. Parameters it
            uses receive gradients.
        reference_hidden_BTH, reference_head: the same of the reference; H may differ, V not. They
            receive no gradient.
        mask_BT: nonzero on completion tokens.
        tokens_per_chunk: L; at least 1.

    Returns:
        (B,) float32, nats, at least 0 up to rounding; 0 for a row without tokens.

    Raises:
        ValueError: shapes that do not fit, or `tokens_per_chunk` below 1.

    Example: V = 2, reference (1/2, 1/2), policy (1/4, 3/4): each token adds
    log(2)/2 + log(2/3)/2 = 0.1438.
    """
    _check(policy_hidden_BTH, reference_hidden_BTH, mask_BT, tokens_per_chunk)
    place_L = mask_BT.flatten().nonzero().squeeze(1)
    policy = policy_hidden_BTH.flatten(0, 1)
    reference = reference_hidden_BTH.detach().flatten(0, 1)
    sum_B = policy.new_zeros(len(mask_BT), dtype=torch.float32)
    for chunk_L in place_L.split(tokens_per_chunk):
        kl_L = checkpoint(
            _token_kl,
            policy[chunk_L],
            policy_head,
            reference[chunk_L],
            reference_head,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        sum_B = sum_B.index_add(0, chunk_L // mask_BT.shape[1], kl_L)
    # An empty sum that keeps a batch without tokens connected to the policy.
    return sum_B + policy[:0].sum()


def _token_kl(
    policy_LH: Tensor, policy_head: Head, reference_LH: Tensor, reference_head: Head
) -> Tensor:
    with torch.no_grad():
        reference_LV = reference_head(reference_LH).float().log_softmax(-1)
    policy_LV = policy_head(policy_LH).float().log_softmax(-1)
    return (reference_LV.exp() * (reference_LV - policy_LV)).sum(-1)


def _check(policy_BTH: Tensor, reference_BTH: Tensor, mask_BT: Tensor, num_tokens: int) -> None:
    if policy_BTH.shape[:2] != mask_BT.shape or reference_BTH.shape[:2] != mask_BT.shape:
        raise ValueError(
            f"hidden states have shapes {tuple(policy_BTH.shape)} (policy) and "
            f"{tuple(reference_BTH.shape)} (reference), the mask {tuple(mask_BT.shape)}; pass "
            "(B, T, H) and (B, T) with the same B and T."
        )
    if num_tokens < 1:
        raise ValueError(f"tokens_per_chunk is {num_tokens}; choose at least 1.")
