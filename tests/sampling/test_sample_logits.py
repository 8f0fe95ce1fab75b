"""Drawing tokens: the same processed distribution as `generate`, drawn with its probabilities."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from helpers.tiny import make_model
from podsrl.sampling import logits as drawing
from podsrl.sampling.logits import next_tokens
from podsrl.sampling.memory import bytes_per_row, cache_bytes_per_row
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "penalty": {"repetition_penalty": 1.8},
    "reward": {"repetition_penalty": 0.6},
    "all": {
        "temperature": 1.3,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
}


def settings_with(**changes: Any) -> SamplingSettings:
    return SamplingSettings(
        **{"max_new_tokens": 3, "eos_token_ids": (1,), "pad_token_id": 0, **changes}
    )


def reference(settings: SamplingSettings) -> LogitsProcessorList:
    """The processors that `generate` would build for these settings, in its order."""
    chain = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(MinPLogitsWarper(settings.min_p))
    return chain


def sweep(logits_V: Tensor, settings: SamplingSettings, context: list[int], num: int) -> Any:
    """Tokens and log-probs at `num` evenly spaced points of the distribution."""
    uniform_B = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return next_tokens(
        logits_V.expand(num, -1).clone(),
        settings,
        uniform_B=uniform_B,
        context_BL=torch.tensor(context).expand(num, -1),
    )


def test_two_tokens_by_hand() -> None:
    # exp(0) = 1 and exp(log 3) = 3: probabilities 1/4 and 3/4.
    logits_BV = torch.tensor([[0.0, 3.0]]).expand(3, -1).clone()
    logits_BV[:, 1] = torch.tensor(3.0).log()
    uniform_B = torch.tensor([0.2, 0.3, 0.999], dtype=torch.float64)
    tokens, log_probs = next_tokens(logits_BV, settings_with(), uniform_B=uniform_B)
    assert tokens.tolist() == [0, 1, 1]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.25, 0.75, 0.75]))


@pytest.mark.parametrize("size", [7, 256, 700])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_of_evenly_spaced_points_are_the_probabilities(variant: str, size: int) -> None:
    settings = settings_with(**VARIANTS[variant])
    logits_V = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 3
    context = [0, 3, 3, 5]
    scores = reference(settings)(torch.tensor([context]), logits_V[None].clone())[0]
    expected = scores.double().softmax(-1)
    tokens, log_probs = sweep(logits_V, settings, context, 4_000)
    shares = torch.bincount(tokens, minlength=size).double() / 4_000
    # One point more or less at either end of a token's interval: 2/4,000, and float32 logits.
    assert (shares - expected).abs().max() < 6e-4
    assert set(tokens.tolist()) <= set((expected > 0).nonzero().flatten().tolist())
    torch.testing.assert_close(log_probs.double(), expected[tokens].log(), atol=1e-5, rtol=0)


def test_top_p_by_partial_and_by_full_sort_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nearly uniform: 0.9 of the mass takes about 0.9 * 2048 = 1843 tokens, more than candidates.
    logits_V = torch.randn(2048, generator=torch.Generator().manual_seed(0)) * 0.1
    settings = settings_with(top_p=0.9)
    by_fallback = sweep(logits_V, settings, [0], 2_000)[0]
    monkeypatch.setattr(drawing, "TOP_P_CANDIDATES", 2048)
    assert torch.equal(by_fallback, sweep(logits_V, settings, [0], 2_000)[0])
    assert by_fallback.unique().numel() > 1200


def test_ties_at_the_last_of_top_k_are_all_kept() -> None:
    # 2 > 1 = 1 = 1 > 0: top_k = 2 ends within the tie, so four tokens stay and one goes.
    tokens, _ = sweep(torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0]), settings_with(top_k=2), [0], 1000)
    assert set(tokens.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2})])
def test_top_p_by_hand(top_p: float, kept: set[int]) -> None:
    # 0.5, 0.5 + 0.3 = 0.8, 1.0: the first sums to reach 0.4, 0.6 and 0.9.
    logits_V = torch.tensor([0.5, 0.3, 0.2]).log()
    tokens, _ = sweep(logits_V, settings_with(top_p=top_p), [0], 1000)
    assert set(tokens.tolist()) == kept


def test_top_p_of_zero_keeps_the_likeliest() -> None:
    tokens, log_probs = sweep(torch.tensor([0.0, 2.0, 1.0]), settings_with(top_p=0.0), [0], 100)
    assert set(tokens.tolist()) == {1}
    assert log_probs.abs().max() == 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_impossible_tokens_are_never_drawn(uniform: float) -> None:
    logits_BV = torch.full((4, 600), -float("inf"))
    for row, token in enumerate((0, 255, 256, 599)):
        logits_BV[row, token] = 1e4
    uniform_B = torch.full((4,), uniform, dtype=torch.float64)
    tokens, log_probs = next_tokens(logits_BV, settings_with(), uniform_B=uniform_B)
    assert tokens.tolist() == [0, 255, 256, 599]
    assert log_probs.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_callers_logits_stay_as_they_are(dtype: torch.dtype) -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 3.0]], dtype=dtype)
    uniform_B = torch.tensor([0.3], dtype=torch.float64)
    next_tokens(logits_BV, settings_with(temperature=0.5), uniform_B=uniform_B)
    assert logits_BV.tolist() == [[0.0, 1.0, 3.0]]


def test_half_precision_logits_are_worked_on_in_float32() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    uniform_B = torch.tensor([0.9], dtype=torch.float64)
    _, log_probs = next_tokens(logits_BV, settings_with(temperature=0.7), uniform_B=uniform_B)
    expected = (logits_BV.float() / 0.7).log_softmax(-1)[:, 3]
    torch.testing.assert_close(log_probs, expected, atol=1e-6, rtol=0)


def sequence_probabilities(
    model: Any, prompt: list[int], settings: SamplingSettings
) -> dict[tuple[int, ...], float]:
    """Every possible completion and its probability, from forward passes and the processors."""
    chain, found = reference(settings), {}
    open_ones: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for _ in range(settings.max_new_tokens):
        ids = torch.tensor([prompt + list(tokens) for tokens, _ in open_ones])
        with torch.no_grad():
            logits = model(ids).logits[:, -1]
        probabilities = chain(ids, logits).double().softmax(-1).tolist()
        longer = [
            ((*tokens, token), mass * p)
            for (tokens, mass), row in zip(open_ones, probabilities, strict=True)
            for token, p in enumerate(row)
            if p > 0
        ]
        found |= {each: p for each, p in longer if each[-1] in settings.eos_token_ids}
        open_ones = [(each, p) for each, p in longer if each[-1] not in settings.eos_token_ids]
    return found | dict(open_ones)


def chi_square(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> Any:
    """Statistic and degrees of freedom, cells that expect fewer than 8 draws being one cell."""
    num_draws = sum(counts.values())
    large = [each for each, p in expected.items() if p * num_draws >= 8]
    cells = [(counts.get(each, 0), expected[each] * num_draws) for each in large]
    rest = num_draws - sum(seen for seen, _ in cells)
    rest_expected = num_draws - sum(mean for _, mean in cells)
    if rest_expected > 1:
        cells.append((rest, rest_expected))
    return sum((seen - mean) ** 2 / mean for seen, mean in cells), len(cells) - 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_are_drawn_with_their_exact_probabilities(variant: str) -> None:
    model = make_model("llama", vocab_size=6, initializer_range=0.4, seed=5).eval()
    settings = settings_with(**VARIANTS[variant])
    prompts, num_rollouts = [[4, 2], [3, 5, 2, 2]], 6000
    generator = torch.Generator().manual_seed(11)
    rollouts = sample(
        model, prompts, num_rollouts, settings=settings, generator=generator
    ).completion_ids
    for i, prompt in enumerate(prompts):
        expected = sequence_probabilities(model, prompt, settings)
        assert sum(expected.values()) == pytest.approx(1, abs=1e-9)
        drawn = rollouts[i * num_rollouts : (i + 1) * num_rollouts]
        counts = Counter(tuple(row) for row in drawn)
        assert set(counts) <= set(expected)
        statistic, freedom = chi_square(counts, expected)
        # Mean `freedom`, variance twice that: five deviations above it is about 1 in a million.
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5
        assert freedom >= 4


class Living(TorchDispatchMode):
    """The most bytes of results that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for each in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self.storages[StorageWeakRef(storage)] = storage.nbytes()
        self.storages = {k: v for k, v in self.storages.items() if not k.expired()}
        self.peak = max(self.peak, sum(self.storages.values()))
        return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [65536, 65537])
def test_a_draw_needs_no_more_memory_than_planned(
    monkeypatch: pytest.MonkeyPatch, variant: str, dtype: torch.dtype, size: int
) -> None:
    """All of the vocabulary sorted, as on CUDA; sizes that are and are no multiple of a block.

    The plan counts whole arrays: what is planned is used at least to a half.
    """
    monkeypatch.setattr(drawing, "TOP_P_CANDIDATES", size)
    settings = settings_with(**VARIANTS[variant])
    logits, context = torch.randn(4, size).to(dtype), torch.zeros(4, 5, dtype=torch.long)
    with Living() as living:
        next_tokens(
            logits,
            settings,
            uniform_B=torch.rand(4, dtype=torch.float64),
            context_BL=context,
        )
    config = make_model(vocab_size=size).config
    options: dict[str, Any] = {"settings": settings, "dtype": dtype}
    cache = cache_bytes_per_row(config, settings.max_new_tokens, dtype=dtype)
    planned = 4 * (bytes_per_row(config, 0, **options) - cache)
    used = living.peak + logits.nbytes
    assert planned / 2 < used <= 1.02 * planned
