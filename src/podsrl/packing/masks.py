"""Masks over a whole packed row, for attention that is not cut into problems: who sees whom.

Letters as in `pack`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from podsrl.packing.pack import PackedBatch


def visibility(packed: PackedBatch, window: int | None = None) -> Callable[..., Tensor]:
    """The rule `sees(query, key)` on packed token indices, broadcasting like its arguments.

    A query sees a key if both belong to one prompt, the key is not later, and the key is in the
    prompt or in the query's own completion; with a window, also only if it is fewer than `window`
    positions back. The signature is that of a flex attention `mask_mod`.
    """
    num_columns = packed.filled_BC.shape[1]
    row_S, column_S = packed.cell_of_token_S // num_columns, packed.position_ids_S
    # Columns are positions, so "not later" and the window are those of the padded batch.
    leader_S, in_prompt_S = packed.leader_B[row_S], column_S < packed.prompt_width

    def sees(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        near = leader_S[query] == leader_S[key]
        near = near & (column_S[key] <= column_S[query])
        near = near & (in_prompt_S[key] | (row_S[key] == row_S[query]))
        return near if window is None else near & (column_S[query] - column_S[key] < window)

    return sees


def dense_mask(packed: PackedBatch, window: int | None = None) -> Tensor:
    """`visibility` spelled out: bool, shape (1, 1, S, S), True where the query sees the key."""
    token_S = torch.arange(packed.num_tokens, device=packed.input_ids_S.device)
    return visibility(packed, window)(0, 0, token_S[:, None], token_S[None])[None, None]


def block_mask(packed: PackedBatch, window: int | None = None) -> BlockMask:
    """`visibility` as the block mask of flex attention."""
    device = packed.input_ids_S.device
    return create_block_mask(
        visibility(packed, window),
        B=None,
        H=None,
        Q_LEN=packed.num_tokens,
        KV_LEN=packed.num_tokens,
        device=device,
        _compile=device.type == "cuda",
    )


def layer_windows(config: Any) -> dict[str, int | None]:
    """Window of each kind of layer; None sees everything."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        in_use = getattr(config, "use_sliding_window", True)
        return {"full_attention": window if in_use else None}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


def attention_mask(
    model: PreTrainedModel, packed: PackedBatch, window: int | None
) -> Tensor | BlockMask:
    implementation = model.config.get_text_config()._attn_implementation
    if implementation == "flex_attention":
        return block_mask(packed, window)
    seen = dense_mask(packed, window)
    if implementation == "sdpa":
        return seen
    # Eager attention adds its mask. The lowest finite number: -inf in a whole row gives NaN.
    hidden = torch.finfo(model.dtype).min
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, hidden)
