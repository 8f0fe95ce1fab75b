"""Rows that are decoded together: started from read prompts, stepped, and retired as they end.

Shape letters: P prompts, B rows decoded together, L positions, V vocabulary, K holes.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.cache import Places, RolloutCache
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.shared_prompt import SharedPrompts, shared_prompt_mode
from podsrl.sampling.tap import Tap


@dataclass
class Prompts:
    """Prompts that were read together: their cache, next logits, lengths, and padded tokens."""

    cache: RolloutCache
    logits_PV: Tensor
    lengths_P: Tensor
    ids_PL: Tensor
    mask_PL: Tensor | None
    tap: Tap | None = None


@dataclass
class Rows:
    """State of the rows being decoded; `number_B` is a row's place in the chunk's results."""

    cache: RolloutCache
    number_B: Tensor
    source_B: Tensor
    position_B: Tensor
    ended_B: Tensor
    mask_BL: Tensor | None
    context_BL: Tensor | None
    shared: SharedPrompts | None
    num_before: int
    """Columns of the prompts, where the cache does not hold them."""
    places: Places | None = None
    """Where rows stand that have not begun together."""
    tap: Tap | None = None
    """Keeps their hidden states; None where nobody asks."""


def read(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    settings: SamplingSettings,
    tap: Tap | None = None,
) -> Prompts:
    """Run the prompts through the model once, padded on the left where lengths differ."""
    device, longest = model.device, max(map(len, prompt_ids))
    padded = [[settings.pad_token_id] * (longest - len(ids)) + ids for ids in prompt_ids]
    ids_PL = torch.tensor(padded, device=device)
    lengths_P = torch.tensor([len(ids) for ids in prompt_ids], device=device)
    position_PL = torch.arange(longest, device=device) - (longest - lengths_P)[:, None]
    # Without padding no mask is needed, and none is what the fastest attention kernels take.
    is_padded = any(len(ids) < longest for ids in prompt_ids)
    mask_PL = (position_PL >= 0).long() if is_padded else None
    cache = RolloutCache.for_prompts(model.config, longest)
    output = model(
        input_ids=ids_PL,
        attention_mask=mask_PL,
        position_ids=position_PL.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    if tap is not None:
        tap.read()
    return Prompts(cache, output.logits[:, -1], lengths_P, ids_PL, mask_PL, tap)


def start(prompts: Prompts, source_B: Tensor, settings: SamplingSettings, *, share: bool) -> Rows:
    """Rows that continue the prompts source_B, with room for every token to come.

    share: they read their prompts' keys and values where these are, instead of having copies.
    """
    num_new, width = settings.max_new_tokens, prompts.ids_PL.shape[1]
    if prompts.tap is not None:
        prompts.tap.begin(source_B, len(source_B))
    mask_BL = shared = None
    if share:
        shared = SharedPrompts(prompts.cache, prompts.lengths_P.tolist(), source_B)
        cache = prompts.cache.empty(num_new)
    else:
        cache = prompts.cache.repeated(source_B, width + num_new)
        if prompts.mask_PL is not None:
            mask_BL = torch.nn.functional.pad(prompts.mask_PL[source_B], (0, num_new), value=1)
    return Rows(
        cache,
        torch.arange(source_B.shape[0], device=source_B.device),
        source_B,
        prompts.lengths_P[source_B],
        torch.zeros_like(source_B, dtype=torch.bool),
        mask_BL,
        context_of(prompts, source_B, settings),
        shared,
        width if share else 0,
        tap=prompts.tap,
    )


def context_of(prompts: Prompts, source_B: Tensor, settings: SamplingSettings) -> Tensor | None:
    """The tokens that a repetition penalty concerns, with room for those to come; None without."""
    if settings.repetition_penalty == 1.0:
        return None
    # Places that hold no token yet repeat the prompt's last one: seen, so nothing changes.
    last_P1 = prompts.ids_PL[:, -1:]
    ids_PL = prompts.ids_PL
    if prompts.mask_PL is not None:
        ids_PL = torch.where(prompts.mask_PL.bool(), ids_PL, last_P1)
    return torch.cat([ids_PL, last_P1.expand(-1, settings.max_new_tokens)], 1)[source_B]


def retire(rows: Rows, token_B: Tensor) -> Tensor:
    """Take ended rows out, filling their places with living rows from the end of the batch.

    Returns the living rows' tokens, in their new order. A hole costs one row's copy, far less
    than decoding the ended row for one more step, so there is nothing to wait for.
    """
    num_living = int((~rows.ended_B).sum())
    if num_living == rows.ended_B.shape[0]:
        return token_B
    # The first num_living places stay. Their holes are as many as the living rows beyond them, so
    # each of those moves into a hole and the rest of the batch is cut off: the living rows in front
    # are not touched, and the cache stays one block that shrinks from its end.
    target_K = rows.ended_B[:num_living].nonzero().squeeze(1)
    source_K = (~rows.ended_B[num_living:]).nonzero().squeeze(1) + num_living
    rows.cache.move_rows(target_K, source_K, num_living)

    def moved(each_B: Tensor) -> Tensor:
        each_B[target_K] = each_B[source_K]
        return each_B[:num_living]

    rows.number_B, rows.position_B = moved(rows.number_B), moved(rows.position_B)
    rows.source_B = moved(rows.source_B)
    rows.mask_BL = None if rows.mask_BL is None else moved(rows.mask_BL)
    rows.context_BL = None if rows.context_BL is None else moved(rows.context_BL)
    rows.ended_B = torch.zeros_like(rows.number_B, dtype=torch.bool)
    if rows.places is not None:
        rows.places.set(moved(rows.places.place_B))
    if rows.shared is not None:
        rows.shared.assign(rows.source_B)
    return moved(token_B)


def next_logits(model: PreTrainedModel, rows: Rows, token_B: Tensor) -> Tensor:
    """Logits (B, V) after these tokens."""
    # Rows that began together have one length in the cache, since prompts are padded on the left:
    # one slice serves every row, and only positions differ.
    length = rows.num_before + rows.cache.get_seq_length() + 1
    if rows.context_BL is not None and rows.places is None:
        rows.context_BL[:, length - 1] = token_B
    elif rows.context_BL is not None and rows.places is not None:
        column_B1 = rows.num_before + rows.places.place_B[:, None]
        rows.context_BL.scatter_(1, column_B1, token_B[:, None])
    shared: dict[str, Any] = {} if rows.shared is None else {"shared_prompts": rows.shared}
    output = model(
        input_ids=token_B[:, None],
        attention_mask=None if rows.mask_BL is None else rows.mask_BL[:, :length],
        position_ids=rows.position_B[:, None],
        past_key_values=rows.cache,
        use_cache=True,
        **shared,
    )
    rows.position_B = rows.position_B + 1
    if rows.places is not None:
        rows.places.advance()
    if rows.tap is not None:
        rows.tap.stepped()
    return output.logits[:, -1]


def attention_mode(model: PreTrainedModel, *, share: bool) -> AbstractContextManager[None]:
    """The attention that rows started with `share` need."""
    return shared_prompt_mode(model) if share else nullcontext()
