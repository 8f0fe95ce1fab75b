"""Attention over a packed row: who sees whom, in the form each attention implementation takes.

- `podsrl_sdpa` (sdpa, switched on by `use_shared_prefix`): queries, keys and values are read into
  small problems, per length of prompts one of prompts and one of completions, so that cost follows
  the kept tokens and causal order takes the place of a mask; any device.
- `flash_attention_2`: the same problems, by its kernel.
- `flex_attention`: a block mask; blocks that see nothing are not computed.
- `eager`, and sdpa without the switch: a dense S x S mask, right everywhere, quadratic in S.

Letters as in `packing`, and H heads, D head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from podsrl.packing.masks import attention_mask, layer_windows
from podsrl.packing.pack import PackedBatch
from podsrl.packing.precision import in_faster_precision

SHARED_PREFIX = "podsrl_sdpa"
FLASH = "flash_attention_2"

# Each length of prompts costs a layer two calls of attention; beyond this many, a mask is cheaper.
MAX_LENGTHS = 8


@dataclass(frozen=True)
class Problem:
    """Prompts, or completions with their prompts' keys; the queries are the last of the keys."""

    num_rows: int
    num_queries: int
    num_keys: int
    filled_BK: Tensor | None = None
    """Where keys are, if padding is among them; else a query sees the keys up to its own place."""


@dataclass(frozen=True)
class SharedPrefix:
    """A packed row as small problems of attention, and the way back."""

    problems: list[Problem]
    query_index: Tensor
    """Packed tokens that are queries, problem by problem and row by row."""
    key_index: Tensor
    place_S: Tensor
    """Where in the problems' outputs, one after the other, each packed token's is."""
    windows: set[int | None] = field(default_factory=set)
    """What the layers have asked for so far."""
    masks: dict[tuple[Any, ...], Tensor | None] = field(default_factory=dict)

    def mask(self, number: int, window: int | None, like: Tensor) -> Tensor | None:
        """The mask of a problem, made once for all layers; None where causal order says it all.

        A bool mask would be turned into a float one by every layer, which keeps it for its
        backward pass: rows x queries x keys x 4 bytes a layer. So it is a float mask, without rows
        where all rows are alike, and on CUDA none at all but for windows and padding, so that the
        flash kernel, which takes no mask, can be chosen.
        """
        problem = self.problems[number]
        if window is not None and window >= problem.num_keys:
            window = None
        alike = problem.filled_BK is None
        rows = None if alike else number
        key = (rows, problem.num_queries, problem.num_keys, window, like.dtype)
        if key not in self.masks:
            self.masks[key] = _problem_mask(problem, window, like)
        return self.masks[key]


def _problem_mask(problem: Problem, window: int | None, like: Tensor) -> Tensor | None:
    num_queries, num_keys = problem.num_queries, problem.num_keys
    if problem.filled_BK is None and window is None:
        # A square is what is_causal means, and a single query, the last, sees all.
        if num_queries in (1, num_keys):
            return None
        if _has_flash(like):
            return causal_lower_right(num_queries, num_keys)
    key_K = torch.arange(num_keys, device=like.device)
    back_QK = key_K[num_keys - num_queries :, None] - key_K
    sees = back_QK >= 0 if window is None else (back_QK >= 0) & (back_QK < window)
    if problem.filled_BK is not None:
        # A query of padding sees itself: a row that sees nothing is NaN in some kernels.
        sees = (sees & problem.filled_BK[:, None]) | (back_QK == 0)
    hidden = torch.zeros(sees.shape, dtype=like.dtype, device=like.device)
    return hidden.masked_fill_(~sees, -torch.inf).view(-1, 1, num_queries, num_keys)


def _has_flash(like: Tensor) -> bool:
    """Whether a kernel knows causal order from the lower right; a CPU would spell out a mask."""
    return like.is_cuda


def shared_prefix(packed: PackedBatch, max_lengths: int | None = MAX_LENGTHS) -> SharedPrefix:
    """The problems and index tensors of one packed batch.

    Rows whose prompts have one length make two problems, prompts and completions, in which no
    padding comes before a query: padding of completions stands behind them. With more than
    `max_lengths` lengths (None: never) all rows make the two, with masks that hide the padding.
    """
    num_rows, num_columns = packed.filled_BC.shape
    width, device = packed.prompt_width, packed.filled_BC.device
    # From lists on the host: to ask the device for rows of a length would be to wait for it.
    lengths = packed.prompt_lengths
    padded = max_lengths is not None and len(set(lengths)) > max_lengths
    length_of = [width] * num_rows if padded else lengths
    order = sorted(range(num_rows), key=lambda row: length_of[row])
    owners = [row for row in order if packed.leaders[row] == row]
    order_B, owner_P = (torch.tensor(rows, device=device) for rows in (order, owners))
    place_BC = torch.zeros(num_rows, num_columns, dtype=torch.long, device=device)
    problems, queries, keys, num_placed = [], [], [], 0
    for length in sorted(set(length_of)):
        prompts = owner_P[[i for i, row in enumerate(owners) if length_of[row] == length]]
        rows = order_B[[i for i, row in enumerate(order) if length_of[row] == length]]
        # (rows, first column of the keys, of the queries, end): a prompt's tokens are both.
        for rows_K, first, start, stop in (
            (prompts, width - length, width - length, width),
            (rows, width - length, width, num_columns),
        ):
            shape = (len(rows_K), stop - start)
            if start == stop:
                continue
            filled = packed.filled_BC[rows_K, first:stop] if padded else None
            problems.append(Problem(*shape, stop - first, filled))
            queries.append(packed.token_of_cell_BC[rows_K, start:stop].flatten())
            keys.append(packed.token_of_cell_BC[rows_K, first:stop].flatten())
            size = shape[0] * shape[1]
            places = torch.arange(num_placed, num_placed + size, device=device)
            place_BC[rows_K, start:stop] = places.view(shape)
            num_placed += size
    return SharedPrefix(
        problems,
        torch.cat(queries),
        torch.cat(keys),
        place_BC.flatten()[packed.cell_of_token_S],
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
    window = kwargs.get("sliding_window")
    shared_prefix.windows.add(window)

    def attend(number: int, *states: Tensor) -> Tensor:
        def attend_to(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = shared_prefix.mask(number, window, q)
            return sdpa_attention_forward(module, q, k, v, mask, **kwargs | {"is_causal": True})[0]

        return in_faster_precision(attend_to, *states)

    return _by_problem(shared_prefix, query, key, value, attend), None


def shared_prefix_flash_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`shared_prefix_attention` for flash_attention_2; transformers' own without a packed row.

    The kernel needs no mask: its causal order is that from the lower right, its windows likewise.
    """
    if shared_prefix is None:
        return flash_attention_forward(module, query, key, value, attention_mask, **kwargs)
    shared_prefix.windows.add(kwargs.get("sliding_window"))
    # Positions of the packed row start again at every completion: read as another kind of packing.
    options = {name: each for name, each in kwargs.items() if name != "position_ids"}
    options["is_causal"] = True

    def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention_forward(module, q, k, v, None, **options)[0]

    return _by_problem(shared_prefix, query, key, value, attend), None


def _by_problem(
    shared_prefix: SharedPrefix,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Outputs (1, S, H, D) of a packed row whose problems `attend` solves one by one."""
    problems = shared_prefix.problems
    num_queries = [each.num_rows * each.num_queries for each in problems]
    num_keys = [each.num_rows * each.num_keys for each in problems]
    # Transformers hands over (1, H, S, D); tokens first, so that cells can be read as rows. All
    # problems are read at once: each reading has a gradient as long as the packed row.
    parts = zip(
        problems,
        rows_at(query[0].transpose(0, 1), shared_prefix.query_index).split(num_queries),
        rows_at(key[0].transpose(0, 1), shared_prefix.key_index).split(num_keys),
        rows_at(value[0].transpose(0, 1), shared_prefix.key_index).split(num_keys),
        strict=True,
    )
    outputs = [
        attend(number, *(x.unflatten(0, (problem.num_rows, -1)).transpose(1, 2) for x in (q, k, v)))
        for number, (problem, q, k, v) in enumerate(parts)
    ]
    flat = torch.cat([output.flatten(0, 1) for output in outputs])
    return rows_at(flat, shared_prefix.place_S)[None]


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """`values[index]`, with a gradient that is faster and the same in every run.

    On a CPU the gradient of `values[index]` is summed by all threads at once, in any order; a
    prompt's keys, which every completion reads, collide. index_select adds row by row, and on CUDA
    under `torch.use_deterministic_algorithms`.
    """
    return values.index_select(0, index.flatten()).unflatten(0, index.shape)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
# Under its own name, by which transformers finds the kernel and knows that it is a flash attention.
AttentionInterface.register(FLASH, shared_prefix_flash_attention)


def use_shared_prefix(model: PreTrainedModel) -> bool:
    """Switch a transformers model from sdpa to `podsrl_sdpa`; True if it now uses that.

    The switch is for good: gradient checkpointing runs a layer again after the forward pass has
    returned, and it must find the same attention. Unpacked batches and generation compute what
    they computed before.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SHARED_PREFIX)
    return bool(model.config._attn_implementation == SHARED_PREFIX)


@contextmanager
def without_shared_prefix(model: PreTrainedModel) -> Iterator[None]:
    """In the enclosed block a model on `podsrl_sdpa` is on sdpa, for engines that know that name.

    No backward pass may be under way: see `use_shared_prefix`.
    """
    is_switched = model.config._attn_implementation == SHARED_PREFIX
    if is_switched:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if is_switched:
            model.set_attn_implementation(SHARED_PREFIX)


def attention_inputs(model: PreTrainedModel, packed: PackedBatch) -> dict[str, Any]:
    """The keyword arguments that tell a transformers model who sees whom in a packed row.

    Args:
        model: the transformers model itself, not a wrapper around it.
        packed: what the model is about to read.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if implementation in (SHARED_PREFIX, FLASH):
        # A 4-D mask is passed on unread by transformers; of size 0, it fails if anyone reads it.
        unread = torch.ones(1, 1, 0, 0, dtype=torch.bool, device=packed.input_ids_S.device)
        max_lengths = None if implementation == FLASH else MAX_LENGTHS
        return {"attention_mask": unread, "shared_prefix": shared_prefix(packed, max_lengths)}
    masks = {
        kind: attention_mask(model, packed, window)
        for kind, window in layer_windows(config).items()
    }
    return {"attention_mask": masks if len(masks) > 1 else next(iter(masks.values()))}
