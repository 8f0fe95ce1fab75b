"""Sample N rollouts of each prompt with a transformers model, reading each prompt once.

`generate` on repeated prompts computes every prompt N times, decodes ended rows until the last
one ends, copies the whole cache at every step and draws one random number per vocabulary entry.
Shape letters: P prompts, N rollouts per prompt, B rows decoded together, T new tokens, L
positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.blocked_weights import blocked_weights
from podsrl.sampling.cache import computing_dtype
from podsrl.sampling.logits import next_tokens, uniform_numbers
from podsrl.sampling.memory import (
    SHARE_OF_FREE_MEMORY,
    bytes_per_row,
    cache_bytes_per_row,
    free_bytes,
    plan_chunks,
    rows_within,
)
from podsrl.sampling.modes import autocast, evaluation, merged_adapters
from podsrl.sampling.monitor import Monitor, Watch, length_until_end
from podsrl.sampling.refill import decode_refilling
from podsrl.sampling.rows import Prompts, attention_mode, next_logits, read, retire, start
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.shared_prompt import can_share_prompts, sharing_pays
from podsrl.sampling.tap import States, Tap, tapped

# Looking whether rows have ended makes the host wait for a CUDA device; a CPU knows anyway.
STEPS_BETWEEN_CHECKS_CUDA = 8

Row = tuple[list[int], list[float], Tensor | None]
"""Tokens of a rollout, their log-probs, and the states (D, H) of its last token where tapped."""


@dataclass(frozen=True)
class SampledRollouts:
    """The rollouts of P prompts, N each, prompt by prompt: P*N lists of token ids."""

    completion_ids: list[list[int]]
    """Tokens up to and with the first end token, at most `max_new_tokens`."""
    log_probs: list[list[float]] | None
    """Of each token under the distribution it was drawn from; None when not asked for."""
    states: States | None = None
    """Hidden states of `tap_layers`, rollouts prompt by prompt; None without."""


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
    tap_layers: Sequence[int] = (),
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
    the others do not depend on it. tap_layers: layers whose hidden states are kept on the way, at
    each prompt's last token and where each rollout's last token was drawn (see `tap`); draws and
    tokens are the same bits with and without.
    Rollouts of a long prompt read one copy of its keys and values where that pays, which moves
    log-probs by rounding (see `shared_prompt`); first tokens do not change.
    The repetition penalty concerns the prompt's and the rollout's own tokens; `generate` also
    penalises the padding token in prompts that it pads.

    Raises `ValueError` for no prompt, an empty prompt, `num_rollouts` or `max_rows` below 1, or a
    layer that the model does not have.
    Example: 2 prompts and `num_rollouts=3` give 6 lists, the first 3 of them for prompt 0.
    """
    if not prompt_ids or not all(prompt_ids):
        raise ValueError(f"prompt_ids={prompt_ids} must be one or more prompts of 1 token or more")
    if num_rollouts < 1:
        raise ValueError(f"num_rollouts={num_rollouts} must be at least 1")
    rows: list[Row] = []
    prompt_states: list[Tensor] = []
    with (
        evaluation(model),
        torch.no_grad(),
        merged_adapters(model, autocast_dtype, num_steps=settings.max_new_tokens),
        autocast(model.device, autocast_dtype),
        blocked_weights(model, num_steps=settings.max_new_tokens),
        tapped(model, tap_layers) as tap,
    ):
        max_rows, share = _plan_rows(model, prompt_ids, num_rollouts, settings, max_rows)
        chunks = plan_chunks(len(prompt_ids), num_rollouts, max_rows)
        if share and len(chunks) > 1 and len(prompt_ids) <= max_rows:
            chunks = [(range(len(prompt_ids)), [num_rollouts])]
        for prompts_range, counts in chunks:
            chosen = [prompt_ids[i] for i in prompts_range]
            watch = Watch(monitor, prompts_range.start * num_rollouts, num_rollouts)
            common = (model, chosen, settings, generator)
            if share and len(chosen) * num_rollouts > max_rows:
                rows += _sample_refilling(
                    *common, num_rollouts=num_rollouts, max_rows=max_rows, watch=watch, tap=tap
                )
            else:
                rows += _sample_prompts(*common, counts=counts, watch=watch, tap=tap, share=share)
            if tap is not None:
                prompt_states.append(tap.prompt_PDH)
    last_states = [states for _, _, states in rows if states is not None]
    return SampledRollouts(
        [tokens for tokens, _, _ in rows],
        [log_probs for _, log_probs, _ in rows] if return_log_probs else None,
        States(torch.cat(prompt_states), torch.stack(last_states)) if tap is not None else None,
    )


def _plan_rows(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    num_rollouts: int,
    settings: SamplingSettings,
    max_rows: int | None,
) -> tuple[int, bool]:
    """How many rows are decoded at once, and whether they share their prompts' keys and values."""
    lengths, config = [len(ids) for ids in prompt_ids], model.config
    dtype = computing_dtype(model.device, model.dtype)
    position_bytes = cache_bytes_per_row(config, 1, dtype=dtype) // config.num_hidden_layers
    can_share = can_share_prompts(model)
    share = can_share and sharing_pays(
        num_rollouts,
        sum(lengths) / len(lengths),
        position_bytes,
        cuda=model.device.type == "cuda",
    )
    if max_rows is not None:
        return max_rows, share
    usable = int(SHARE_OF_FREE_MEMORY * free_bytes(model.device))
    row_bytes = [
        bytes_per_row(config, max(lengths), settings=settings, dtype=dtype, num_sharing=count)
        for count in (1, num_rollouts)
    ]
    # Where copies would not fit, sharing saves whole runs over the rollouts, whatever it costs.
    share = share or (can_share and usable < row_bytes[0] * num_rollouts * len(lengths))
    rows = rows_within(usable, row_bytes[share])
    if share and rows < num_rollouts * len(lengths):
        # Rollouts will begin as others end, of any prompt: all prompts stay.
        prompt_bytes = max(lengths) * cache_bytes_per_row(config, 1, dtype=dtype)
        own_bytes = row_bytes[1] - prompt_bytes // num_rollouts
        with_all = (usable - len(lengths) * prompt_bytes) // own_bytes
        rows = with_all if with_all >= len(lengths) else max(1, min(rows, len(lengths) - 1))
    return rows, share


def _sample_prompts(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    settings: SamplingSettings,
    generator: torch.Generator | None,
    *,
    counts: list[int],
    watch: Watch,
    tap: Tap | None,
    share: bool,
) -> list[Row]:
    """sum(counts) rollouts of each prompt, prompt by prompt."""
    prompts = read(model, prompt_ids, settings, tap)
    by_prompt: list[list[Row]] = [[] for _ in prompt_ids]
    for count in counts:
        source_B = torch.arange(len(prompt_ids), device=model.device).repeat_interleave(count)
        # All numbers in advance, by row and step: what a row draws depends neither on when others
        # end nor on which are stopped.
        uniform_BT = uniform_numbers(source_B, settings, generator)
        watch.begin(count, len(by_prompt[0]), settings.eos_token_ids)
        with attention_mode(model, share=share):
            tokens_BT, log_probs_BT = _decode(
                model, prompts, source_B, uniform_BT, settings, watch=watch, share=share
            )
        rows = _unpad(tokens_BT, log_probs_BT, settings, watch.length_of_stopped, tap)
        for i, rollouts in enumerate(by_prompt):
            rollouts += rows[i * count : (i + 1) * count]
    return [row for rollouts in by_prompt for row in rollouts]


def _sample_refilling(
    model: PreTrainedModel,
    prompt_ids: list[list[int]],
    settings: SamplingSettings,
    generator: torch.Generator | None,
    *,
    num_rollouts: int,
    max_rows: int,
    watch: Watch,
    tap: Tap | None,
) -> list[Row]:
    """`_sample_prompts` of more rollouts than `max_rows`: the rest begin as others end."""
    source_A = torch.arange(len(prompt_ids), device=model.device).repeat_interleave(num_rollouts)
    prompts = read(model, prompt_ids, settings, tap)
    watch.begin(num_rollouts, 0, settings.eos_token_ids)
    with attention_mode(model, share=True):
        found = decode_refilling(
            model,
            prompts,
            source_A,
            uniform_numbers(source_A, settings, generator),
            settings,
            max_rows=max_rows,
            steps_between_checks=STEPS_BETWEEN_CHECKS_CUDA if source_A.is_cuda else 1,
            watch=watch,
        )
    return _unpad(*found, settings, watch.length_of_stopped, tap)


def _decode(
    model: PreTrainedModel,
    prompts: Prompts,
    source_B: Tensor,
    uniform_BT: Tensor,
    settings: SamplingSettings,
    *,
    watch: Watch,
    share: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs (B, T) of one rollout per entry of source_B, padded after the end."""
    tokens_BT = torch.full_like(uniform_BT, settings.pad_token_id, dtype=torch.long)
    log_probs_BT = torch.zeros_like(uniform_BT, dtype=torch.float32)
    eos_E = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=source_B.device)
    steps_between_checks = STEPS_BETWEEN_CHECKS_CUDA if source_B.is_cuda else 1
    rows = start(prompts, source_B, settings, share=share)
    logits_BV = prompts.logits_PV[source_B]
    for step in range(settings.max_new_tokens):
        token_B, log_prob_B = next_tokens(
            logits_BV,
            settings,
            uniform_B=uniform_BT[rows.number_B, step],
            context_BL=rows.context_BL,
        )
        if rows.tap is not None:
            rows.tap.drawn(rows.number_B, rows.ended_B)
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
            token_B = retire(rows, token_B)
            if token_B.shape[0] == 0:
                break
        logits_BV = next_logits(model, rows, token_B)
    watch.report(rows.number_B, tokens_BT)
    return tokens_BT, log_probs_BT


def _unpad(
    tokens_BT: Tensor,
    log_probs_BT: Tensor,
    settings: SamplingSettings,
    length_of_stopped: dict[int, int],
    tap: Tap | None,
) -> list[Row]:
    """Each row up to its first end token or to where it was stopped."""
    eos = set(settings.eos_token_ids)
    rows: list[Row] = []
    pairs = zip(tokens_BT.tolist(), log_probs_BT.tolist(), strict=True)
    for number, (tokens, log_probs) in enumerate(pairs):
        length = length_of_stopped.get(number) or length_until_end(tokens, eos)
        states = None if tap is None else tap.last_BDH[number]
        rows.append((tokens[:length], log_probs[:length], states))
    return rows
