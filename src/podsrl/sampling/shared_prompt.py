"""Attention of rollouts over one copy of their prompt's keys and values and over their own.

A rollout's copy of its prompt's keys and values would take most of the cache of a long prompt, and
would be read from memory for each of its tokens. Here a prompt's are stored once, and the queries
of all its rollouts go through them in one matrix product.

Shape letters: P prompts, B rows decoded together, H key heads, G queries per key head, W tokens of
one prompt, T own tokens of a row so far, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from podsrl.sampling.cache import Places, RolloutCache

SHARED_PROMPT = "podsrl_shared_prompt"

# Below this many positions of a prompt that copies would store and read again, products of their
# own and the joining cost as much as they save (benchmarks/shared_prompt.py).
MIN_SAVED_POSITIONS_CPU = 1024
# On CUDA some 90 microseconds of kernel launches per prompt and layer stand against reading at 2 to
# 3 TB/s: on paper, by no measurement.
MIN_SAVED_BYTES_CUDA = 1 << 28

# Scores of a block of rows: 4 MB stay in a CPU's caches between the steps of the softmax.
NUM_SCORES_CPU, NUM_SCORES_CUDA = 1 << 20, 1 << 27


class SharedPrompts:
    """Keys and values (H, W, D) of P prompts in every layer, and which rows continue which prompt.

    Padding is left out, so that no mask is needed: what a query may not see is not read.
    """

    def __init__(
        self,
        cache: RolloutCache,
        lengths: list[int],
        source_B: Tensor,
        places: Places | None = None,
    ) -> None:
        self.windows = [layer.window for layer in cache.layers]
        self.lengths, self.places = lengths, places
        self.keys_and_values = [
            [layer.of_prompt(prompt, length) for prompt, length in enumerate(lengths)]
            for layer in cache.layers
        ]
        self.assign(source_B)

    def assign(self, source_B: Tensor) -> None:
        """Row b now continues prompt source_B[b]."""
        self.num_rows_P: list[int] = torch.bincount(source_B, minlength=len(self.lengths)).tolist()
        self.order_B = source_B.argsort(stable=True)
        self.place_B = self.order_B.argsort()


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prompts: SharedPrompts,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output (B, 1, heads, D) of one query per row over its prompt and its own keys.

    query: (B, heads, 1, D). key, value: the rows' own, (B, H, T, D), the query's among them. One
    softmax over both parts, in float32. Equal to attention over copies up to rounding.
    """
    if unknown := [name for name in REFUSED if kwargs.get(name) is not None]:
        raise ValueError(f"{', '.join(unknown)} is not implemented in {SHARED_PROMPT} attention")
    layer: int = module.layer_idx  # type: ignore[assignment]
    window, num_own = shared_prompts.windows[layer], key.shape[2]
    places = shared_prompts.places
    if window is not None and places is None:
        key, value = key[:, :, -window:], value[:, :, -window:]
    queries_BHGD = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
    queries_BHGD = queries_BHGD * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    own_BHGT = queries_BHGD @ key.transpose(2, 3)
    if places is not None:
        own_BHGT.masked_fill_(places.hidden(window)[:, None, None], -torch.inf)
    # Rows of one prompt side by side: queries and scores are moved, which are small, not the cache.
    order_B = shared_prompts.order_B
    queries_BHGD, own_BHGT = queries_BHGD[order_B], own_BHGT[order_B]
    counts, outputs = shared_prompts.num_rows_P, []
    rows_of = zip(queries_BHGD.split(counts), own_BHGT.split(counts), strict=True)
    if window is not None and places is not None:
        places_of = places.place_B[order_B].split(counts)
    for prompt, (queries, own) in enumerate(rows_of):
        keys_HWD, values_HWD = shared_prompts.keys_and_values[layer][prompt]
        length, hidden_BW = shared_prompts.lengths[prompt], None
        if window is not None and places is None:
            # The query stands at position W + T - 1 and sees positions from W + T - window on.
            first = max(0, length + num_own - window)
            keys_HWD, values_HWD = keys_HWD[:, first:], values_HWD[:, first:]
        elif window is not None:
            position_W = torch.arange(length, device=key.device)
            hidden_BW = position_W <= length + places_of[prompt][:, None] - window
        outputs += _blocks(queries, own, keys_HWD, values_HWD, hidden_BW)
    from_prompt_BHGD = torch.cat([each for each, _ in outputs])[shared_prompts.place_B]
    weights_BHGT = torch.cat([each for _, each in outputs])[shared_prompts.place_B]
    output_BHGD = from_prompt_BHGD + weights_BHGT @ value
    return output_BHGD.flatten(1, 2)[:, None], None


# What other attentions add to scores, and this one does not.
REFUSED = ("softcap", "s_aux", "position_bias")


def _blocks(
    queries_BHGD: Tensor,
    own_BHGT: Tensor,
    keys_HWD: Tensor,
    values_HWD: Tensor,
    hidden_BW: Tensor | None,
) -> list[tuple[Tensor, Tensor]]:
    """Per block of rows, what they draw from their prompt, and their weights on their own keys."""
    num_heads, num_queries, num_own = own_BHGT.shape[1:]
    num_scores = num_heads * num_queries * (keys_HWD.shape[1] + num_own)
    largest = NUM_SCORES_CUDA if own_BHGT.is_cuda else NUM_SCORES_CPU
    size = max(1, largest // num_scores)
    blocks = []
    for start in range(0, len(queries_BHGD), size):
        queries, own = queries_BHGD[start : start + size], own_BHGT[start : start + size]
        # All rows' queries of a key head as the rows of one matrix.
        scores = queries.transpose(0, 1).flatten(1, 2) @ keys_HWD.transpose(1, 2)
        if hidden_BW is not None:
            hidden = hidden_BW[start : start + size].repeat_interleave(num_queries, 0)
            scores.masked_fill_(hidden, -torch.inf)
        scores = torch.cat([scores, own.transpose(0, 1).flatten(1, 2)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
        of_prompt, of_own = weights.split([keys_HWD.shape[1], num_own], -1)
        shape = (len(queries), num_queries)
        blocks.append(
            (
                (of_prompt @ values_HWD).unflatten(1, shape).transpose(0, 1),
                of_own.unflatten(1, shape).transpose(0, 1),
            )
        )
    return blocks


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)
AttentionMaskInterface.register(SHARED_PROMPT, _no_mask)


@contextmanager
def shared_prompt_mode(model: Any) -> Iterator[None]:
    """The model attends by `shared_prompt_attention`, then as before."""
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation(SHARED_PROMPT)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def can_share_prompts(model: Any) -> bool:
    """Whether the model's attention can be exchanged for `shared_prompt_attention`.

    It must take its attention from transformers' interface, be on sdpa (eager attention has forms
    of its own), and see everything or a window; chunks are not windows.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    kinds = set(getattr(base.config, "layer_types", None) or ())
    return (
        bool(base._supports_attention_backend)
        and base.config._attn_implementation in ("sdpa", "podsrl_sdpa")
        and kinds <= {"full_attention", "sliding_attention"}
    )


def sharing_pays(
    num_rollouts: int, prompt_length: float, bytes_per_position: int, *, cuda: bool
) -> bool:
    """Whether one copy of a prompt's keys saves more time than the extra operations cost.

    num_rollouts: of each prompt, decoded together. prompt_length: the mean over the prompts.
    bytes_per_position: keys and values of one token in one layer.
    Example: 16 rollouts of a prompt of 200 tokens would store and read 15 * 200 = 3,000 positions
    more, which pays on a CPU; of 45 tokens 675, which does not.
    """
    num_saved = (num_rollouts - 1) * prompt_length
    if cuda:
        return num_saved * bytes_per_position >= MIN_SAVED_BYTES_CUDA
    return num_saved >= MIN_SAVED_POSITIONS_CPU
