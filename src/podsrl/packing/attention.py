"""Attention over a packed row: who sees whom, in the form each attention implementation takes.

- `podsrl_sdpa` (sdpa, switched on by `use_shared_prefix`): queries, keys and values are read into
  one small problem per prompt and per completion, so cost follows the kept tokens; any device.
- `flex_attention`: a block mask; blocks that see nothing are not computed.
- `eager`, and sdpa without the switch: a dense S x S mask, right everywhere, quadratic in S.

Letters as in `packing`, and H heads, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from podsrl.packing.pack import PackedBatch

SHARED_PREFIX = "podsrl_sdpa"


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


@dataclass(frozen=True)
class SharedPrefix:
    """Where attention finds the tokens of each prompt and of each completion in the packed row."""

    packed: PackedBatch
    prompt_PW: Tensor
    place_S: Tensor
    """Row of each packed token in the stacked outputs: P * W of prompts, B * T of completions."""
    masks: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def mask(self, window: int | None) -> tuple[Tensor, Tensor]:
        """Bool masks (P, 1, W, W) of the prompts and (B, 1, T, C) of the completions."""
        if window not in self.masks:
            width, filled_BC = self.packed.prompt_width, self.packed.filled_BC
            column_C = torch.arange(filled_BC.shape[1], device=filled_BC.device)
            back_CC = column_C[:, None] - column_C
            near_CC = back_CC >= 0 if window is None else (back_CC >= 0) & (back_CC < window)
            # A query of padding sees itself: a row that sees nothing is NaN in some kernels.
            mask_BCC = (near_CC & filled_BC[:, None]) | (back_CC == 0)
            prompts = mask_BCC[self.packed.leaders_P, :width, :width]
            self.masks[window] = (prompts[:, None], mask_BCC[:, None, width:])
        return self.masks[window]


def shared_prefix(packed: PackedBatch) -> SharedPrefix:
    """The index tensors of `podsrl_sdpa` for one packed batch."""
    width, num_columns = packed.prompt_width, packed.filled_BC.shape[1]
    num_prompts, length = len(packed.leaders_P), num_columns - width
    row_S, column_S = packed.cell_of_token_S // num_columns, packed.position_ids_S
    # Outputs come as P * W rows of prompts, then B * T rows of completions; a packed token is found
    # among them by its cell, a prompt token by its owner's rank among the leaders.
    rank_B = torch.zeros_like(packed.leader_B)
    rank_B[packed.leaders_P] = torch.arange(num_prompts, device=rank_B.device)
    in_prompts = rank_B[row_S] * width + column_S
    in_completions = num_prompts * width + row_S * length + column_S - width
    return SharedPrefix(
        packed,
        prompt_PW=packed.token_of_cell_BC[packed.leaders_P, :width],
        place_S=torch.where(column_S < width, in_prompts, in_completions),
    )


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output of a packed row (1, H, S, D), as (1, S, H, D); plain sdpa without one.

    Prompts attend to themselves; completions attend to a copy of their prompt's keys and values
    and to their own. Only keys and values are repeated, never the rest of the layer.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    # Transformers hands over (1, H, S, D); tokens first, so that cells can be read as rows.
    query_SHD, key_SHD, value_SHD = (x[0].transpose(0, 1) for x in (query, key, value))
    cells_BC, width = shared_prefix.packed.token_of_cell_BC, shared_prefix.packed.prompt_width
    prompt_mask, completion_mask = shared_prefix.mask(kwargs.get("sliding_window"))

    def attend(query_index: Tensor, key_index: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            rows_at(x, index).transpose(1, 2)
            for x, index in (
                (query_SHD, query_index),
                (key_SHD, key_index),
                (value_SHD, key_index),
            )
        )
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0].flatten(0, 1)

    prompts = attend(shared_prefix.prompt_PW, shared_prefix.prompt_PW, prompt_mask)
    completions = attend(cells_BC[:, width:], cells_BC, completion_mask)
    return rows_at(torch.cat([prompts, completions]), shared_prefix.place_S)[None], None


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, with a gradient that is faster and the same in every run.

    On a CPU the gradient of `values[index]` is summed by all threads at once, in any order; a
    prompt's keys, which every completion reads, collide. index_select adds row by row, and on CUDA
    under `torch.use_deterministic_algorithms`.
    """
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)


def use_shared_prefix(model: PreTrainedModel) -> bool:
    """Switch a transformers model from sdpa to `podsrl_sdpa`; True if it now uses that.

    The switch is for good: gradient checkpointing runs a layer again after the forward pass has
    returned, and it must find the same attention. Unpacked batches and generation compute what
    they computed before.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SHARED_PREFIX)
    return bool(model.config._attn_implementation == SHARED_PREFIX)


def attention_inputs(model: PreTrainedModel, packed: PackedBatch) -> dict[str, Any]:
    """The keyword arguments that tell a transformers model who sees whom in a packed row.

    Args:
        model: the transformers model itself, not a wrapper around it.
        packed: what the model is about to read.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if implementation == SHARED_PREFIX:
        # A 4-D mask is passed on unread by transformers; of size 0, it fails if anyone reads it.
        unread = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=packed.input_ids_S.device)
        return {"attention_mask": unread, "shared_prefix": shared_prefix(packed)}
    masks = {kind: _mask(model, packed, window) for kind, window in layer_windows(config).items()}
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}


def layer_windows(config: Any) -> dict[str, int | None]:
    """Window of each kind of layer; None sees everything."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        in_use = getattr(config, "use_sliding_window", True)
        return {"full_attention": window if in_use else None}
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}


def _mask(model: PreTrainedModel, packed: PackedBatch, window: int | None) -> Tensor | BlockMask:
    implementation = model.config.get_text_config()._attn_implementation
    if implementation == "flex_attention":
        return block_mask(packed, window)
    seen = dense_mask(packed, window)
    if implementation == "sdpa":
        return seen
    # Eager attention adds its mask. The lowest finite number: -inf in a whole row gives NaN.
    hidden = torch.finfo(model.dtype).min
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, hidden)
