"""Log-probs over rows in which every prompt stands once, where that serves and is cheaper."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from podsrl.packing.cost import OperationCosts, operation_costs, packed_is_cheaper
from podsrl.packing.log_probs import log_probs_by_prompt, packed_log_probs, unwrap
from podsrl.packing.pack import PackedBatch, pack
from podsrl.packing.support import packing_reason

logger = logging.getLogger(__name__)


class PackedLogProbs:
    """Stands in for a pass over padded rows, for policy, old and reference log-probs alike.

    Models that packed rows do not serve stay with padded ones, with one warning that says why.

    autocast: gives the precision in which the host's models compute, as a context.
    """

    def __init__(self, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.autocast = autocast
        self._costs: dict[int, OperationCosts | None] = {}

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion: int,
        *,
        batch_size: int | None = None,
        compute_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None] | None:
        """Log-probs and entropies, (B, T) each; None where padded rows serve as well or better.

        Args:
            input_ids, attention_mask: (B, C), prompts padded on the left, completions on the right.
            num_completion: T, columns at the end that are completions.
            batch_size: most rows in one pass; None for all.
        """
        rows = (input_ids, attention_mask, num_completion)
        packed = self._pack_if_cheaper(model, *rows)
        if packed is None:
            return None
        with self.autocast():
            if batch_size is None or batch_size >= len(input_ids):
                return packed_log_probs(model, packed, compute_entropy=compute_entropy)
            # Rows are packed anew for each pass, which must not hold more than the host allows.
            return log_probs_by_prompt(
                model, *rows, num_rows_per_pass=batch_size, compute_entropy=compute_entropy
            )

    def costs(self, model: Any) -> OperationCosts | None:
        """What the model's passes cost, None where packed rows do not serve it; found out once."""
        causal_lm = unwrap(model)
        if id(causal_lm) not in self._costs:
            with self.autocast():
                reason = packing_reason(model)
            if reason is not None:
                logger.warning("updating on padded rows, which is slower: %s", reason)
            self._costs[id(causal_lm)] = operation_costs(causal_lm) if reason is None else None
        return self._costs[id(causal_lm)]

    def _pack_if_cheaper(
        self, model: Any, input_ids: Tensor, mask: Tensor, num_completion: int
    ) -> PackedBatch | None:
        costs = self.costs(model)
        if costs is None:
            return None
        width = input_ids.shape[1] - num_completion
        packed = pack(input_ids[:, :width], mask[:, :width], input_ids[:, width:], mask[:, width:])
        dense = unwrap(model).config._attn_implementation == "eager"
        cheaper = packed_is_cheaper(
            packed, costs, dense=dense, padded_scores_all=not input_ids.is_cuda
        )
        return packed if cheaper else None
