"""Rollouts beyond what memory holds begin in the places of those that have ended.

Cut into parts that are decoded one after another, each part would take as many steps as its longest
rollout. Here a rollout begins as soon as another has ended, so that rows stand at different steps.
Only where prompts are shared: rows then have nothing of their own but their own tokens.

Shape letters: P prompts, N rollouts of each, B rows decoded together, T new tokens, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.cache import Places, RolloutCache
from podsrl.sampling.logits import next_tokens
from podsrl.sampling.monitor import Watch
from podsrl.sampling.rows import Prompts, Rows, context_of, next_logits, retire
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.shared_prompt import SharedPrompts


def decode_refilling(
    model: PreTrainedModel,
    prompts: Prompts,
    source_A: Tensor,
    uniform_AT: Tensor,
    settings: SamplingSettings,
    *,
    max_rows: int,
    steps_between_checks: int,
    watch: Watch,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs (A, T) of one rollout per entry of source_A, at most `max_rows` at once.

    Letter A: all rollouts. Each draws by its own row of uniform_AT, so that when it began changes
    nothing but the rounding of matrix products. A rollout that a monitor stops before it has begun
    still draws its first token, which comes with the prompt.
    """
    num_all, last = source_A.shape[0], settings.max_new_tokens - 1
    tokens_AT = torch.full_like(uniform_AT, settings.pad_token_id, dtype=torch.long)
    log_probs_AT = torch.zeros_like(uniform_AT, dtype=torch.float32)
    eos_E = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=source_A.device)
    rows, num_begun = _begin(prompts, source_A, settings, max_rows=max_rows), max_rows
    logits_BV = prompts.logits_PV[rows.source_B]
    step = 0
    while True:
        places = rows.places
        assert places is not None
        token_B, log_prob_B = next_tokens(
            logits_BV,
            settings,
            uniform_B=uniform_AT[rows.number_B, places.place_B],
            context_BL=rows.context_BL,
        )
        if rows.tap is not None:
            rows.tap.drawn(rows.number_B, rows.ended_B)
        token_B = torch.where(rows.ended_B, settings.pad_token_id, token_B)
        tokens_AT[rows.number_B, places.place_B] = token_B
        log_probs_AT[rows.number_B, places.place_B] = log_prob_B
        ends_B = torch.isin(token_B, eos_E) | (places.place_B == last)
        rows.ended_B = rows.ended_B | ends_B
        # A row that may have reached the limit must leave before its next token.
        at_limit = places.num_columns == settings.max_new_tokens
        if at_limit or (step + 1) % steps_between_checks == 0 or (watch.is_on and step == 0):
            rows.ended_B = watch.after_step(
                step, tokens_AT, rows.number_B, rows.ended_B, length_B=places.place_B + 1
            )
            token_B = retire(rows, token_B)
        step += 1
        num_living = token_B.shape[0]
        if num_living:
            logits_BV = next_logits(model, rows, token_B)
        elif num_begun == num_all:
            return tokens_AT, log_probs_AT
        if num_living < max_rows and num_begun < num_all:
            number_K = torch.arange(
                num_begun, min(num_all, num_begun + max_rows - num_living), device=source_A.device
            )
            num_begun += len(number_K)
            admit(rows, prompts, source_A[number_K], number_K, settings)
            new_logits_KV = prompts.logits_PV[source_A[number_K]]
            logits_BV = torch.cat([logits_BV[:num_living], new_logits_KV])


def _begin(
    prompts: Prompts, source_A: Tensor, settings: SamplingSettings, *, max_rows: int
) -> Rows:
    """The first rows, and a cache with room for as many at any time."""
    source_B = source_A[:max_rows].clone()
    if prompts.tap is not None:
        prompts.tap.begin(source_B, len(source_A))
    places = Places(torch.zeros_like(source_B))
    return Rows(
        RolloutCache.at_places(prompts.cache, settings.max_new_tokens, max_rows, places),
        torch.arange(source_B.shape[0], device=source_B.device),
        source_B,
        prompts.lengths_P[source_B],
        torch.zeros_like(source_B, dtype=torch.bool),
        None,
        context_of(prompts, source_B, settings),
        SharedPrompts(prompts.cache, prompts.lengths_P.tolist(), source_B, places),
        prompts.ids_PL.shape[1],
        places,
        prompts.tap,
    )


def admit(
    rows: Rows, prompts: Prompts, source_K: Tensor, number_K: Tensor, settings: SamplingSettings
) -> None:
    """Rows that begin now, behind the living ones, where the cache has room."""
    assert rows.places is not None and rows.shared is not None
    if rows.tap is not None:
        rows.tap.admitted(source_K, num_living=len(rows.source_B))
    rows.source_B = torch.cat([rows.source_B, source_K])
    rows.number_B = torch.cat([rows.number_B, number_K])
    rows.position_B = torch.cat([rows.position_B, prompts.lengths_P[source_K]])
    rows.ended_B = torch.cat([rows.ended_B, torch.zeros_like(source_K, dtype=torch.bool)])
    rows.places.set(torch.cat([rows.places.place_B, torch.zeros_like(source_K)]))
    if rows.context_BL is not None:
        context_KL = context_of(prompts, source_K, settings)
        assert context_KL is not None
        rows.context_BL = torch.cat([rows.context_BL, context_KL])
    rows.shared.assign(rows.source_B)
