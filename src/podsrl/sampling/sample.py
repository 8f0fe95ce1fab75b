"""Sample N rollouts of each prompt with a transformers model, reading each prompt once.

`generate` on repeated prompts computes every prompt N times, decodes ended rows until the last
one ends, copies the whole cache at every step and draws one random number per vocabulary entry.
Shape letters: P prompts, N rollouts per prompt, B rows decoded together, T new tokens, L
positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.cache import RolloutCache
from podsrl.sampling.logits import next_tokens
from podsrl.sampling.memory import (
    SHARE_OF_FREE_MEMORY,
    bytes_per_row,
    free_bytes,
    plan_chunks,
    rows_within,
)
from podsrl.sampling.modes import autocast, evaluation, merged_adapters
from podsrl.sampling.monitor import Monitor, Watch, length_until_end
from podsrl.sampling.settings import SamplingSettings

# Looking whether rows have ended makes the host wait for a CUDA device; a CPU knows anyway.
STEPS_BETWEEN_CHECKS_CUDA = 8


@dataclass(frozen=True)
class SampledRollouts:
    """The rollouts of P prompts, N each, prompt by prompt: P*N lists of token ids."""

    completion_ids: list[list[int]]
    """Tokens up to and with the first end token, at most `max_new_tokens`."""
    log_probs: list[list[float]] | None
    """Of each token under the distribution it was drawn from; None when not asked for."""


@dataclass
class _Prompts:
    """Prompts that were read together: their cache, next logits, lengths, and padded tokens."""

    cache: RolloutCache
    logits_PV: Tensor
    lengths_P: Tensor
    ids_PL: Tensor
    mask_PL: Tensor | None


@dataclass
class _Rows:
    """State of the rows being decoded; `number_B` is a row's place in the chunk's results."""

    cache: RolloutCache
    number_B: Tensor
    position_B: Tensor
    ended_B: Tensor
    mask_BL: Tensor | None
    context_BL: Tensor | None


def sample(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    num_rollouts: int,
    *,
    settings: SamplingSettings,
    generator: torch.Generator | None = None,
    max_rows: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    return_log_probs: bool = False,
    monitor: Monitor | None = None,
) -> SampledRollouts:
    """`num_rollouts` rollouts of each prompt, distributed as `model.generate` would sample them.

    model: as `can_sample` accepts it; runs in evaluation mode with its LoRA adapters merged, and
    every submodule's mode and every weight is put back (see `modes`). prompt_ids: P distinct
    prompts, token ids without padding. generator: seeds the draws (default: torch's own for the
    model's device); the same seed gives the same rollouts, on CPU for any `max_rows`. max_rows:
    most rollouts decoded at once; default: what fits into half of the free memory. autocast_dtype:
    run under autocast in this dtype, weights that require a gradient being cast once per call
    instead of once per step; default: no autocast of ours. monitor: hears of each rollout that
    ends and may stop others, which then have the tokens drawn so far, at least one; the draws of
    the others do not depend on it.
    The repetition penalty concerns the prompt's and the rollout's own tokens; `generate` also
    penalises the padding token in prompts that it pads.

    Raises `ValueError` for no prompt, an empty prompt, or `num_rollouts` or `max_rows` below 1.
    Example: 2 prompts and `num_rollouts=3` give 6 lists, the first 3 of them for prompt 0.
    """
    if not prompt_ids or not all(prompt_ids):
        raise ValueError(f"prompt_ids={prompt_ids} must be one or more prompts of 1 token or more")
    if num_rollouts < 1:
        raise ValueError(f"num_rollouts={num_rollouts} must be at least 1")
    rows: list[tuple[list[int], list[float]]] = []
    with (
        evaluation(model),
        torch.no_grad(),
        merged_adapters(model, autocast_dtype),
        autocast(model.device, autocast_dtype),
    ):
        if max_rows is None:
            max_rows = _rows_in_free_memory(model, max(map(len, prompt_ids)), settings)
        for prompts_range, counts in plan_chunks(len(prompt_ids), num_rollouts, max_rows):
            chosen = [prompt_ids[i] for i in prompts_range]
            watch = Watch(monitor, prompts_range.start * num_rollouts, num_rollouts)
            rows += _sample_prompts(model, chosen, counts, settings, generator, watch=watch)
    return SampledRollouts(
        [tokens for tokens, _ in rows], [each for _, each in rows] if return_log_probs else None
    )


def _rows_in_free_memory(
    model: PreTrainedModel, longest_prompt: int, settings: SamplingSettings
) -> int:
    num_tokens = longest_prompt + settings.max_new_tokens
    row_bytes = bytes_per_row(model.config, num_tokens, dtype=model.dtype)
    return rows_within(int(SHARE_OF_FREE_MEMORY * free_bytes(model.device)), row_bytes)


def _sample_prompts(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    counts: list[int],
    settings: SamplingSettings,
    generator: torch.Generator | None,
    *,
    watch: Watch,
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probs of sum(counts) rollouts of each prompt, prompt by prompt."""
    prompts = _read(model, prompt_ids, settings)
    by_prompt: list[list[tuple[list[int], list[float]]]] = [[] for _ in prompt_ids]
    for count in counts:
        source_B = torch.arange(len(prompt_ids), device=model.device).repeat_interleave(count)
        # All numbers in advance, by row and step: what a row draws depends neither on when others
        # end nor on which are stopped.
        uniform_BT = _uniform(source_B, settings, generator)
        watch.begin(count, len(by_prompt[0]), settings.eos_token_ids)
        tokens_BT, log_probs_BT = _decode(
            model, prompts, source_B, uniform_BT, settings, watch=watch
        )
        rows = _unpad(tokens_BT, log_probs_BT, settings, watch.length_of_stopped)
        for i, rollouts in enumerate(by_prompt):
            rollouts += rows[i * count : (i + 1) * count]
    return [row for rollouts in by_prompt for row in rollouts]


def _read(
    model: PreTrainedModel, prompt_ids: list[list[int]], settings: SamplingSettings
) -> _Prompts:
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
    return _Prompts(cache, output.logits[:, -1], lengths_P, ids_PL, mask_PL)


def _uniform(
    source_B: Tensor, settings: SamplingSettings, generator: torch.Generator | None
) -> Tensor:
    """One number in [0, 1) for each row and step, float64 (B, T)."""
    shape = (source_B.shape[0], settings.max_new_tokens)
    if not settings.do_sample:
        return torch.zeros(shape, dtype=torch.float64, device=source_B.device)
    # A generator draws on its own device only; from a CPU's, every device gets the same rollouts.
    device = source_B.device if generator is None else generator.device
    uniform_BT = torch.rand(shape, dtype=torch.float64, generator=generator, device=device)
    return uniform_BT.to(source_B.device)


def _decode(
    model: PreTrainedModel,
    prompts: _Prompts,
    source_B: Tensor,
    uniform_BT: Tensor,
    settings: SamplingSettings,
    *,
    watch: Watch,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs (B, T) of one rollout per entry of source_B, padded after the end."""
    tokens_BT = torch.full_like(uniform_BT, settings.pad_token_id, dtype=torch.long)
    log_probs_BT = torch.zeros_like(uniform_BT, dtype=torch.float32)
    eos_E = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=source_B.device)
    steps_between_checks = STEPS_BETWEEN_CHECKS_CUDA if source_B.is_cuda else 1
    rows, logits_BV = _start(prompts, source_B, settings), prompts.logits_PV[source_B]
    for step in range(settings.max_new_tokens):
        token_B, log_prob_B = next_tokens(
            logits_BV,
            settings,
            uniform_B=uniform_BT[rows.number_B, step],
            context_BL=rows.context_BL,
        )
        # On CUDA ended rows go on until the next check: what they draw is not theirs any more.
        token_B = torch.where(rows.ended_B, settings.pad_token_id, token_B)
        tokens_BT[rows.number_B, step] = token_B
        log_probs_BT[rows.number_B, step] = log_prob_B
        rows.ended_B = rows.ended_B | torch.isin(token_B, eos_E)
        if step + 1 == settings.max_new_tokens:
            break
        # After step 0 a monitor is asked even on CUDA: a rollout may not have to be begun at all.
        if (step + 1) % steps_between_checks == 0 or (watch.is_on and step == 0):
            rows.ended_B = watch.after_step(step, tokens_BT, rows.number_B, rows.ended_B)
            token_B = _retire(rows, token_B)
            if token_B.shape[0] == 0:
                break
        logits_BV = _step(model, rows, token_B)
    watch.report(rows.number_B, tokens_BT)
    return tokens_BT, log_probs_BT


def _start(prompts: _Prompts, source_B: Tensor, settings: SamplingSettings) -> _Rows:
    """Rows that continue the prompts source_B, with room for every token to come."""
    num_new = settings.max_new_tokens
    mask_BL = context_BL = None
    if prompts.mask_PL is not None:
        mask_BL = torch.nn.functional.pad(prompts.mask_PL[source_B], (0, num_new), value=1)
    if settings.repetition_penalty != 1.0:
        # Places that hold no token yet repeat the prompt's last one: seen, so nothing changes.
        last_P1 = prompts.ids_PL[:, -1:]
        ids_PL = prompts.ids_PL
        if prompts.mask_PL is not None:
            ids_PL = torch.where(prompts.mask_PL.bool(), ids_PL, last_P1)
        context_BL = torch.cat([ids_PL, last_P1.expand(-1, num_new)], 1)[source_B]
    return _Rows(
        prompts.cache.repeated(source_B, prompts.ids_PL.shape[1] + num_new),
        torch.arange(source_B.shape[0], device=source_B.device),
        prompts.lengths_P[source_B],
        torch.zeros_like(source_B, dtype=torch.bool),
        mask_BL,
        context_BL,
    )


def _retire(rows: _Rows, token_B: Tensor) -> Tensor:
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
    rows.mask_BL = None if rows.mask_BL is None else moved(rows.mask_BL)
    rows.context_BL = None if rows.context_BL is None else moved(rows.context_BL)
    rows.ended_B = torch.zeros_like(rows.number_B, dtype=torch.bool)
    return moved(token_B)


def _step(model: PreTrainedModel, rows: _Rows, token_B: Tensor) -> Tensor:
    """Logits (B, V) after these tokens."""
    # All rows have one length in the cache, since prompts are padded on the left: one slice serves
    # every row, and only positions differ.
    length = rows.cache.get_seq_length() + 1
    if rows.context_BL is not None:
        rows.context_BL[:, length - 1] = token_B
    output = model(
        input_ids=token_B[:, None],
        attention_mask=None if rows.mask_BL is None else rows.mask_BL[:, :length],
        position_ids=rows.position_B[:, None],
        past_key_values=rows.cache,
        use_cache=True,
    )
    rows.position_B = rows.position_B + 1
    return output.logits[:, -1]


def _unpad(
    tokens_BT: Tensor,
    log_probs_BT: Tensor,
    settings: SamplingSettings,
    length_of_stopped: dict[int, int],
) -> list[tuple[list[int], list[float]]]:
    """Each row's tokens and log-probs up to its first end token or to where it was stopped."""
    eos = set(settings.eos_token_ids)
    rows = []
    pairs = zip(tokens_BT.tolist(), log_probs_BT.tolist(), strict=True)
    for number, (tokens, log_probs) in enumerate(pairs):
        length = length_of_stopped.get(number) or length_until_end(tokens, eos)
        rows.append((tokens[:length], log_probs[:length]))
    return rows
