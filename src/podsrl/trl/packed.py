"""GRPOTrainer that reads every prompt once per micro-batch in policy and reference passes."""

import logging
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.packing.cost import OperationCosts, operation_costs, packed_is_cheaper
from podsrl.packing.log_probs import log_probs_by_prompt, packed_log_probs, unwrap
from podsrl.packing.microbatch import balance, regroup, whole_groups
from podsrl.packing.pack import PackedBatch, group_by_prompt, pack
from podsrl.packing.support import packing_reason

logger = logging.getLogger(__name__)


class PackedUpdate(GRPOTrainer):
    """Computes log-probs over packed rows where these cost less than TRL's padded ones.

    `args.packed_update` turns it on. It serves old, reference and policy log-probs alike, and
    keeps the rollouts of one prompt in one micro-batch. Models that packed rows do not serve stay
    with TRL's path, with one warning that says why.
    """

    _packing_costs: dict[int, OperationCosts | None]
    _buffered_inputs: list[dict[str, Any]] | None

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **multimodal,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        plain = not compute_aux_loss and all(value is None for value in multimodal.values())
        rows = (input_ids, attention_mask, logits_to_keep)
        packed = self._pack_if_cheaper(model, *rows) if plain else None
        if packed is not None:
            with self.accelerator.autocast():
                if batch_size is None or batch_size >= len(input_ids):
                    found = packed_log_probs(model, packed, compute_entropy=compute_entropy)
                else:
                    found = log_probs_by_prompt(
                        model,
                        *rows,
                        num_rows_per_pass=batch_size,
                        compute_entropy=compute_entropy,
                    )
            return (*found, None)
        return super()._get_per_token_logps_and_entropies(
            model,
            input_ids,
            attention_mask,
            logits_to_keep,
            batch_size=batch_size,
            compute_entropy=compute_entropy,
            compute_aux_loss=compute_aux_loss,
            **multimodal,
        )

    def _pack_if_cheaper(
        self, model: Any, input_ids: Tensor, mask: Tensor, num_completion: int
    ) -> PackedBatch | None:
        """The packed row, where packing is on, serves the model and costs less than padded rows."""
        costs = self._costs(model) if self.args.packed_update else None
        if costs is None:
            return None
        width = input_ids.shape[1] - num_completion
        packed = pack(input_ids[:, :width], mask[:, :width], input_ids[:, width:], mask[:, width:])
        dense = unwrap(model).config._attn_implementation == "eager"
        cheaper = packed_is_cheaper(
            packed, costs, dense=dense, padded_scores_all=not input_ids.is_cuda
        )
        return packed if cheaper else None

    def _costs(self, model: Any) -> OperationCosts | None:
        """What the model's passes cost, None where packed rows do not serve it; found out once."""
        known = self.__dict__.setdefault("_packing_costs", {})
        causal_lm = unwrap(model)
        if id(causal_lm) not in known:
            with self.accelerator.autocast():
                reason = packing_reason(model)
            if reason is not None:
                logger.warning("updating on padded rows, which is slower: %s", reason)
            known[id(causal_lm)] = operation_costs(causal_lm) if reason is None else None
        return known[id(causal_lm)]

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        deals = self.args.packed_update or self._needs_whole_groups()
        if not deals or batches is before or batches is None or len(batches) < 2:
            return inputs
        self._buffered_inputs = self._by_prompt(batches)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _by_prompt(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches dealt out anew: rollouts of a prompt together, tokens balanced."""
        prompts = torch.cat([batch["prompt_ids"] for batch in batches])
        prompt_mask = torch.cat([batch["prompt_mask"] for batch in batches])
        completion_mask = torch.cat([batch["completion_mask"] for batch in batches])
        if "objective_group" in batches[0]:
            group_B = torch.cat([batch["objective_group"] for batch in batches])
        else:
            group_B = group_by_prompt(prompts, prompt_mask)
        sizes = torch.stack([prompt_mask.sum(1), completion_mask.sum(1), group_B]).tolist()
        prompt_lengths, completion_lengths, groups = sizes
        deal = whole_groups if self._needs_whole_groups() else balance
        rows = deal(prompt_lengths, completion_lengths, groups, len(batches))
        return regroup(batches, rows)

    def _needs_whole_groups(self) -> bool:
        """Whether the loss compares the rows of a prompt, as numbered in the batch."""
        return False
