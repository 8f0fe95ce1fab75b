"""How likely a model is to end at each place, in flat memory.

Shape letters: B rows, T completion tokens, H hidden size, V vocabulary, L tokens of one chunk, E
end tokens.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from podsrl.core.objectives.sequential_kl import TOKENS_PER_CHUNK, Head


def end_log_probs(
    hidden_BTH: Tensor,
    head: Head,
    end_ids_E: Tensor,
    mask_BT: Tensor,
    *,
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> Tensor:
    """Return log sum_E p(end token | s_t), with gradients, in the place of each token.

    Logits exist for one chunk of tokens at a time, and again in the backward pass, as in
    `sequential_kl`.

    Args:
        hidden_BTH: hidden states that predict each completion token, (B, T, H).
        head: maps hidden states (L, H) to logits (L, V), temperature included.
        end_ids_E: the tokens of which each ends a rollout, one or more.
        mask_BT: nonzero on completion tokens.
        tokens_per_chunk: L; at least 1.

    Returns:
        (B, T) float32, nats, at most 0; 0 where the mask is.

    Raises:
        ValueError: shapes that do not fit, or no end token.

    Example: logits (0, 0, log 2), end tokens 0 and 2: log(3 / 4) = -0.2877.
    """
    if hidden_BTH.shape[:2] != mask_BT.shape or not len(end_ids_E):
        raise ValueError(
            f"hidden states have shape {tuple(hidden_BTH.shape)}, the mask {tuple(mask_BT.shape)} "
            f"and there are {len(end_ids_E)} end tokens; pass (B, T, H), (B, T) and at least one."
        )
    place_L = mask_BT.flatten().nonzero().squeeze(1)
    hidden = hidden_BTH.flatten(0, 1)
    found = hidden.new_zeros(len(hidden), dtype=torch.float32)
    for chunk_L in place_L.split(tokens_per_chunk):
        ends_L = checkpoint(
            _ends,
            hidden[chunk_L],
            head,
            end_ids_E,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        found = found.index_copy(0, chunk_L, ends_L)
    return found.unflatten(0, mask_BT.shape)


def _ends(hidden_LH: Tensor, head: Head, end_ids_E: Tensor) -> Tensor:
    log_probs_LV = head(hidden_LH).float().log_softmax(-1)
    return log_probs_LV[:, end_ids_E].logsumexp(-1)
