"""Log-probs of kept rows: of those that teach alone, and packed where that serves and is cheaper.

Shape letters: B rows, C columns, T completion tokens, L live rows.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from podsrl.packing.cost import OperationCosts, operation_costs, packed_is_cheaper
from podsrl.packing.live import live_rows, mean_of, spread, teaching
from podsrl.packing.log_probs import log_probs_by_prompt, packed_log_probs, unwrap
from podsrl.packing.pack import PackedBatch, pack
from podsrl.packing.support import packing_reason

logger = logging.getLogger(__name__)

Found = tuple[Tensor, Tensor | None]
"""Log-probs and entropies, (B, T) each; None where no entropies were asked for."""


class LogProbs:
    """Stands in for a host's pass over padded rows, for policy, old and reference log-probs alike.

    Models that packed rows do not serve stay with padded ones, with one warning that says why.

    autocast: gives the precision in which the host's models compute, as a context.
    packs: whether rows are packed at all.
    is_sharded: whether each pass gathers weights from all processes, so that all must make as many.
    """

    def __init__(
        self,
        autocast: Callable[[], AbstractContextManager[Any]],
        *,
        packs: bool = True,
        is_sharded: bool = False,
    ) -> None:
        self.autocast, self.packs, self.is_sharded = autocast, packs, is_sharded
        self._costs: dict[int, OperationCosts | None] = {}

    def __call__(
        self,
        padded: Callable[..., tuple[Tensor, Tensor | None, Any]],
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion: int,
        *,
        advantages: Tensor | None = None,
        known_BT: Tensor | None = None,
        counts_BT: Tensor | None = None,
        of_rows: Callable[[Tensor], Callable[..., Any]] | None = None,
        compute_entropy: bool = False,
        **options: Any,
    ) -> Found:
        """Log-probs and entropies of the completion tokens.

        Args:
            padded: the host's own pass, called with the arguments that follow it here.
            input_ids, attention_mask: (B, C), prompts padded on the left, completions on the right.
            num_completion: T, columns at the end that are completions.
            advantages: (B,) or (B, T); rows that have none but 0 are left out of the pass. Their
                log-probs are those of `known_BT`, the policy that sampled, so that a ratio to it is
                1, or else 0; their entropies are the mean of the others', so that the mean is that
                of live rows. None: no row is left out.
            of_rows: of a model that reads more than text, the host's pass of some of the rows, by
                their numbers; such rows are never packed.
            counts_BT: 1 for completion tokens whose entropies count, where tools wrote others.
            options: `batch_size`, most rows in one pass, None for all.
        """
        packs = self.packs and of_rows is None
        options = {**options, "compute_entropy": compute_entropy, "packs": packs}
        mask_BT = attention_mask[:, -num_completion:]
        rows_L = None
        in_several = (options.get("batch_size") or len(input_ids)) < len(input_ids)
        # Processes have different numbers of live rows, and would make as different ones of passes.
        if advantages is not None and not (self.is_sharded and in_several):
            rows_L = live_rows(teaching(advantages), mask_BT)
        if rows_L is None:
            return self._found(padded, model, input_ids, attention_mask, num_completion, **options)
        log_probs_LT, entropies_LT = self._found(
            of_rows(rows_L) if of_rows else padded,
            model,
            input_ids[rows_L],
            attention_mask[rows_L],
            num_completion,
            **options,
        )
        filler_BT = torch.zeros_like(mask_BT, dtype=log_probs_LT.dtype)
        log_probs_BT = spread(log_probs_LT, rows_L, filler_BT if known_BT is None else known_BT)
        if entropies_LT is None:
            return log_probs_BT, None
        counted_BT = mask_BT if counts_BT is None else mask_BT * counts_BT
        mean = mean_of(entropies_LT.detach(), counted_BT[rows_L])
        return log_probs_BT, spread(entropies_LT, rows_L, filler_BT + mean)

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

    def _found(
        self,
        padded: Callable[..., tuple[Tensor, Tensor | None, Any]],
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_completion: int,
        *,
        batch_size: int | None = None,
        compute_entropy: bool,
        packs: bool,
    ) -> Found:
        rows = (input_ids, attention_mask, num_completion)
        packed = self._pack_if_cheaper(model, *rows) if packs else None
        if packed is None:
            options = {"batch_size": batch_size, "compute_entropy": compute_entropy}
            return padded(model, *rows, **options)[:2]
        with self.autocast():
            if batch_size is None or batch_size >= len(input_ids):
                return packed_log_probs(model, packed, compute_entropy=compute_entropy)
            # Rows are packed anew for each pass, which must not hold more than the host allows.
            return log_probs_by_prompt(
                model, *rows, num_rows_per_pass=batch_size, compute_entropy=compute_entropy
            )

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
