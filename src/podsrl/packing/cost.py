"""Whether a packed row or the padded rows cost less, by counting operations."""

from dataclasses import dataclass
from typing import Any

from podsrl.packing.pack import PackedBatch

# On CPU an operation of masked attention takes about this many times as long as one of a large
# matrix product (benchmarks/packed.py); score matrices are read and written, not only multiplied.
ATTENTION_SLOWDOWN = 2.0


@dataclass(frozen=True)
class OperationCosts:
    """Floating-point operations of a forward pass, attention weighted by its slowness."""

    per_token: float
    per_scored_token: float
    per_pair: float

    def total(self, num_tokens: int, num_scored: int, num_pairs: int) -> float:
        """Cost of reading tokens, scoring some over the vocabulary, and comparing pairs."""
        return (
            num_tokens * self.per_token
            + num_scored * self.per_scored_token
            + num_pairs * self.per_pair
        )


def operation_costs(causal_lm: Any) -> OperationCosts:
    """Costs of a transformers causal LM, from its configuration and its parameter count.

    Example: one layer of hidden size 64 with 4 heads of 16 compares a pair of tokens in
    4 * 4 * 16 = 256 operations (products with keys and with values), weighted by 2: 512.
    """
    config = causal_lm.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    head_weights = causal_lm.get_output_embeddings().weight.numel()
    embedding_weights = causal_lm.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in causal_lm.base_model.parameters()) - embedding_weights
    pair = 4 * heads * head_size * config.num_hidden_layers
    return OperationCosts(2.0 * body, 2.0 * head_weights, ATTENTION_SLOWDOWN * pair)


def packed_is_cheaper(
    packed: PackedBatch, costs: OperationCosts, *, dense: bool, padded_scores_all: bool
) -> bool:
    """Whether the packed row costs less than the padded rows it came from.

    Args:
        packed: from `pack`.
        costs: from `operation_costs`.
        dense: attention over the packed row takes a dense mask (eager, or sdpa without
            `use_shared_prefix`), so that it compares all pairs of the row.
        padded_scores_all: the padded path projects every position on the vocabulary, prompt
            included, as TRL's fused head does where Triton is absent (CPU).

    Example: 8 completions of 200 tokens on a prompt of 150 with a dense mask compare
    1750² = 3.06 M pairs packed and 8 * 350² = 0.98 M padded, for 1750 against 2800 tokens.
    """
    num_rows, num_columns = packed.filled_BC.shape
    width, num_scored = packed.prompt_width, len(packed.place_K)
    # sdpa computes masked pairs too: whole squares and rectangles, not the triangles that are seen.
    pairs = packed.num_tokens**2
    if not dense:
        pairs = len(packed.leaders_P) * width**2 + num_rows * (num_columns - width) * num_columns
    scored = num_rows * num_columns if padded_scores_all else num_scored
    padded_cost = costs.total(num_rows * num_columns, scored, num_rows * num_columns**2)
    return costs.total(packed.num_tokens, num_scored, pairs) < padded_cost
