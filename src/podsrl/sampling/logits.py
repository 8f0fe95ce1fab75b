"""From logits to the next token: same rules and order as `generate`, without sorting.

Order: repetition penalty, temperature, top_k, top_p, min_p, draw. A token is drawn by inverting
the cumulative distribution at one uniform number per row: a draw then depends on the row's number
alone, not on which rows are decoded beside it, and needs no random number per vocabulary entry.
Shape letters: B rows, T steps, V vocabulary, L context positions, K candidates, G blocks of a row.
"""

import torch
from torch import Tensor

from podsrl.sampling.settings import SamplingSettings

# Near the square root of common vocabularies (50,000 to 150,000 tokens), so that neither level of
# `_draw` is long.
BLOCK = 256
# Few enough to be cheap to sort. Where they do not reach top_p, the whole vocabulary is sorted.
TOP_P_CANDIDATES = 1024


def uniform_numbers(
    source_B: Tensor, settings: SamplingSettings, generator: torch.Generator | None
) -> Tensor:
    """One number in [0, 1) for each row and step, float64 (B, T), on the rows' device.

    generator: None: torch's own for that device. Zeros, and nothing drawn, where `settings` are
    greedy.
    """
    shape = (source_B.shape[0], settings.max_new_tokens)
    if not settings.do_sample:
        return torch.zeros(shape, dtype=torch.float64, device=source_B.device)
    # A generator draws on its own device only; from a CPU's, every device gets the same rollouts.
    device = source_B.device if generator is None else generator.device
    uniform_BT = torch.rand(shape, dtype=torch.float64, generator=generator, device=device)
    return uniform_BT.to(source_B.device)


def next_tokens(
    logits_BV: Tensor,
    settings: SamplingSettings,
    *,
    uniform_B: Tensor,
    context_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens drawn from the processed logits, int64 (B,), and their log-probs, float32 (B,).

    logits_BV: any float dtype, worked on in float32. uniform_B: float64 in [0, 1), unused when
    greedy. context_BL: the tokens that the repetition penalty concerns, needed when it is not 1.
    A log-prob is that of the processed distribution: after penalty, temperature and cuts; when
    greedy, after the penalty alone, as nothing else is applied.
    Example: logits [[0, log 3]] at temperature 1 have probabilities 1/4, 3/4: uniform 0.2 draws
    token 0 with log-prob log(1/4), uniform 0.3 token 1.
    """
    scores_BV = logits_BV.float()
    if settings.repetition_penalty != 1.0:
        assert context_BL is not None
        scores_BV = _penalise(scores_BV, context_BL, settings.repetition_penalty)
    if not settings.do_sample:
        token_B = scores_BV.argmax(-1)
        log_probs_BV = scores_BV.log_softmax(-1)
        return token_B, log_probs_BV.gather(1, token_B[:, None]).squeeze(1)
    # The largest score becomes 0, so that its weight is 1 and cuts are comparisons of weights. In
    # place where the scores are not the caller's logits: one tensor of this size less to write.
    largest_B1 = scores_BV.amax(-1, keepdim=True)
    is_copy = scores_BV.data_ptr() != logits_BV.data_ptr()
    scores_BV = scores_BV.sub_(largest_B1) if is_copy else scores_BV - largest_B1
    if settings.temperature != 1.0:
        scores_BV.div_(settings.temperature)
    weights_BV = _cut(scores_BV.exp_(), settings)
    return _draw(weights_BV, uniform_B)


def _penalise(scores_BV: Tensor, context_BL: Tensor, penalty: float) -> Tensor:
    """Scores of tokens in the context divided by the penalty where positive, else multiplied."""
    # A token seen twice is written twice with the same score: penalised once, as in `generate`.
    seen_BL = scores_BV.gather(1, context_BL)
    seen_BL = torch.where(seen_BL < 0, seen_BL * penalty, seen_BL / penalty)
    return scores_BV.scatter(1, context_BL, seen_BL)


def _cut(weights_BV: Tensor, settings: SamplingSettings) -> Tensor:
    """Weights with 0 for the tokens that top_k, top_p and min_p exclude, in this order."""
    if 0 < settings.top_k < weights_BV.shape[1]:
        least_B1 = weights_BV.topk(settings.top_k, sorted=False).values.amin(-1, keepdim=True)
        weights_BV = weights_BV.masked_fill_(weights_BV < least_B1, 0)
    if settings.top_p < 1.0:
        weights_BV = _cut_top_p(weights_BV, settings.top_p)
    if settings.min_p > 0.0:
        # The likeliest token always stays, with weight 1, so min_p itself is the threshold.
        weights_BV = weights_BV.masked_fill_(weights_BV < settings.min_p, 0)
    return weights_BV


def _cut_top_p(weights_BV: Tensor, top_p: float) -> Tensor:
    """Weights of the fewest likeliest tokens that reach the share top_p of the mass, else 0."""
    # float64: the sum of 150,000 small weights must not move a token across the limit.
    total_B1 = weights_BV.sum(-1, keepdim=True, dtype=torch.float64)
    top_BK, index_BK = weights_BV.topk(_num_candidates(weights_BV))
    reached_B1 = top_BK.sum(-1, keepdim=True, dtype=torch.float64)
    if top_BK.shape[1] < weights_BV.shape[1] and bool((reached_B1 < top_p * total_B1).any()):
        top_BK, index_BK = weights_BV.sort(descending=True)
    # A token stays when the likelier ones before it do not reach top_p yet; the first always.
    # In place, as all of the vocabulary may be here: at most 36 bytes per entry live at once.
    before_BK = top_BK.cumsum(-1, dtype=torch.float64).sub_(top_BK)
    drop_BK = before_BK >= top_p * total_B1
    drop_BK[:, 0] = False
    return weights_BV.zero_().scatter_(1, index_BK, top_BK.masked_fill_(drop_BK, 0))


def _num_candidates(weights_BV: Tensor) -> int:
    """Tokens to sort for top_p; all on CUDA, which would have to wait to see if fewer suffice."""
    size = weights_BV.shape[1]
    return size if weights_BV.is_cuda else min(size, TOP_P_CANDIDATES)


def _draw(weights_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Token and log-prob at the given points of each row's cumulative distribution.

    Two levels: the block in which the point lies, then the token in it, so that the vocabulary
    is read once. Sums across blocks and within one are float64, exact enough for any vocabulary.
    """
    # A cumulative sum over all V in float64 would write 8 bytes per entry, 2 to 4 times the logits,
    # and searching it would read them again. Sums of blocks are read once, and only one block of
    # each row is looked into.
    num_rows, size = weights_BV.shape
    padded = weights_BV
    if size % BLOCK:
        padded = torch.nn.functional.pad(weights_BV, (0, -size % BLOCK))
    blocks_BGK = padded.view(num_rows, -1, BLOCK)
    upto_BG = blocks_BGK.sum(-1).cumsum(-1, dtype=torch.float64)
    # The point's place inside its block is again uniform in [0, 1): no second number is needed.
    block_B1, rest_B1 = _invert(upto_BG, uniform_B[:, None])
    chosen_BK = blocks_BGK.gather(1, block_B1[:, :, None].expand(-1, 1, BLOCK)).squeeze(1)
    within_B1, _ = _invert(chosen_BK.cumsum(-1, dtype=torch.float64), rest_B1)
    weight_B1 = chosen_BK.gather(1, within_B1)
    token_B = (block_B1 * BLOCK + within_B1).squeeze(1)
    # The last block sum is the sum of all weights, which the log-prob divides by.
    return token_B, (weight_B1.double().log() - upto_BG[:, -1:].log()).squeeze(1).float()


def _invert(upto_BK: Tensor, uniform_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first sum beyond the uniform share of the last one, and the share inside it.

    A uniform number of 1, which should not be, or a share rounded to 1 still finds the last weight.
    """
    uniform_B1 = uniform_B1.clamp(max=1 - 1e-12)
    point_B1 = uniform_B1 * upto_BK[:, -1:]
    # right=True passes over sums equal to the point: a token of weight 0 can then never be drawn.
    index_B1 = torch.searchsorted(upto_BK, point_B1, right=True)
    upper_B1 = upto_BK.gather(1, index_B1)
    lower_B1 = upto_BK.gather(1, (index_B1 - 1).clamp(min=0)).where(index_B1 > 0, 0.0)
    return index_B1, (point_B1 - lower_B1) / (upper_B1 - lower_B1)
