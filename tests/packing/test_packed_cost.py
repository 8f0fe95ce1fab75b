"""The choice between packed and padded rows, by counts of operations."""

import torch

from helpers.tiny import make_model
from podsrl.packing.cost import OperationCosts, operation_costs, packed_is_cheaper
from podsrl.packing.pack import PackedBatch, pack


def packed_batch(num_prompts: int, kept: int, width: int, length: int) -> PackedBatch:
    prompts = torch.arange(num_prompts).repeat_interleave(kept)[:, None].expand(-1, width)
    completions = torch.ones(num_prompts * kept, length, dtype=torch.long)
    return pack(prompts, torch.ones_like(prompts), completions, torch.ones_like(completions))


def test_costs_of_a_tiny_model() -> None:
    costs = operation_costs(make_model())
    # Two layers; each: q 32x32, k and v 32x16, o 32x32, MLP 3 x 32x64, two norms of 32.
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    assert costs.per_token == 2 * (2 * layer + 32)
    assert costs.per_scored_token == 2 * 48 * 32
    # 4 heads of 8, keys and values, 2 layers, weighted by the slowness of 2: 2 * 4 * 4 * 8 * 2.
    assert costs.per_pair == 512


def test_dense_loses_where_completions_are_long() -> None:
    costs = OperationCosts(per_token=3000, per_scored_token=0, per_pair=1)
    batch = packed_batch(1, 8, 150, 200)
    # Padded: 2800 * 3000 + 8 * 350**2 = 9.38 M. Dense: 1750 * 3000 + 1750**2 = 8.31 M.
    assert packed_is_cheaper(batch, costs, dense=True, padded_scores_all=False)
    # At 1000 a token: 3.78 M padded, 4.81 M dense, and 1.75 M + 22,500 + 8 * 200 * 350 = 2.33 M.
    cheap = OperationCosts(per_token=1000, per_scored_token=0, per_pair=1)
    assert not packed_is_cheaper(batch, cheap, dense=True, padded_scores_all=False)
    assert packed_is_cheaper(batch, cheap, dense=False, padded_scores_all=False)


def test_scoring_of_prompts_counts_against_padding() -> None:
    costs = OperationCosts(per_token=0, per_scored_token=1, per_pair=0)
    batch = packed_batch(1, 1, 10, 2)
    assert packed_is_cheaper(batch, costs, dense=True, padded_scores_all=True)
    assert not packed_is_cheaper(batch, costs, dense=True, padded_scores_all=False)
