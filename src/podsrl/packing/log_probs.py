"""Log-probabilities of kept completions from a packed row."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from podsrl.packing.attention import attention_inputs
from podsrl.packing.pack import PackedBatch, group_by_prompt, pack


def packed_log_probs(
    model: nn.Module,
    packed: PackedBatch,
    *,
    compute_entropy: bool = False,
    attention: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each completion token given its prompt and the tokens before it.

    Equal to a forward pass over the padded batch up to rounding, with gradients. The call goes
    through `model` itself, wrapped or not, so that the hooks of DDP, FSDP, DeepSpeed and PEFT run;
    hidden states that predict no completion token are dropped before the LM head.

    Args:
        model: a causal LM, perhaps wrapped, prepared by TRL's `add_fused_lm_head`, which also
            holds the temperature the logits are divided by, the soft-capping and the head's dtype.
        packed: from `pack`.
        compute_entropy: also return the entropy of each token's distribution; the model must have
            been prepared with `outputs=("log_probs", "entropy")`.
        attention: from `attention_inputs`, to use the same masks in several passes.

    Returns:
        Log-probs in nats, shape (B, T), zero at padding; entropies of the same shape, or None.

    Example:
        >>> packed = pack(prompt_ids, prompt_mask, completion_ids, completion_mask)
        >>> log_probs, _ = packed_log_probs(model, packed)
    """
    causal_lm = unwrap(model)
    attention = attention_inputs(causal_lm, packed) if attention is None else attention
    # shift_labels are labels that TRL's head does not shift: they stand beside their predictors.
    with _only_hidden_states(causal_lm.base_model, packed.predictor_K):
        outputs = model(
            input_ids=packed.input_ids_S[None],
            position_ids=packed.position_ids_S[None],
            shift_labels=packed.label_K[None],
            fused_lm_head=True,
            **attention,
        )
    log_probs_BT = packed.unpack(outputs.log_probs[0])
    return log_probs_BT, packed.unpack(outputs.entropy[0]) if compute_entropy else None


def log_probs_by_prompt(
    model: nn.Module,
    input_ids_BC: Tensor,
    attention_mask_BC: Tensor,
    num_completion_columns: int,
    *,
    num_rows_per_pass: int | None = None,
    compute_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`packed_log_probs` of a padded batch in the form in which TRL asks for log-probs.

    Args:
        model: as for `packed_log_probs`.
        input_ids_BC, attention_mask_BC: prompts padded left, then completions padded right.
        num_completion_columns: how many columns at the end are completions (`logits_to_keep`).
        num_rows_per_pass: rows of one forward pass, to bound memory; None reads all rows at once.
            Rows are taken prompt by prompt, so that a pass tears at most two groups.
        compute_entropy: as for `packed_log_probs`.

    Returns:
        Log-probs, shape (B, num_completion_columns), and entropies or None, in the order given.
    """
    width = input_ids_BC.shape[1] - num_completion_columns
    ids, mask = input_ids_BC.tensor_split([width], 1), attention_mask_BC.tensor_split([width], 1)
    group_B = group_by_prompt(ids[0], mask[0])
    # Stable, so that what a pass holds does not depend on how the device sorts equal numbers.
    order_B = group_B.argsort(stable=True)
    found = []
    for rows in order_B.split(num_rows_per_pass or len(order_B)):
        packed = pack(ids[0][rows], mask[0][rows], ids[1][rows], mask[1][rows], group_B[rows])
        found.append(packed_log_probs(model, packed, compute_entropy=compute_entropy))
    back_B = order_B.argsort()
    log_probs_BT = torch.cat([log_probs for log_probs, _ in found])[back_B]
    if not compute_entropy:
        return log_probs_BT, None
    return log_probs_BT, torch.cat([e for _, e in found if e is not None])[back_B]


def unwrap(model: nn.Module) -> Any:
    """The transformers causal LM inside DDP, FSDP, DeepSpeed, torch.compile and PEFT wrappers."""
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "peft_config") else inner


@contextmanager
def _only_hidden_states(backbone: nn.Module, index_K: Tensor) -> Iterator[None]:
    """Have `backbone` return the hidden states at `index_K` of its only row, in that order."""

    # A hook, since the model is called whole: its wrappers' own hooks must run, and its forward has
    # no argument that drops positions before TRL's head.
    def gather(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.index_select(1, index_K)
        return output

    handle = backbone.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
