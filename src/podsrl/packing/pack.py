"""Lay the kept rollouts of a batch out as one row in which every prompt stands once.

Letters: B rows (one rollout each), P distinct prompts, W prompt columns (padded left), T completion
columns (padded right), C = W + T, S tokens of the packed row, K completion tokens.

A *cell* is a place (row, column) of the padded B x C layout. Everything else follows from two maps,
cell to packed token and packed token to cell; the column of a token is its position id, so that
positions, windows and rotations are those of the padded batch whatever the model does with them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedBatch:
    """One packed row and the way back: see `pack`."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    token_of_cell_BC: Tensor
    """Packed token of each cell; cells of padding name token 0 and are masked by `filled_BC`."""
    cell_of_token_S: Tensor
    """Flat cell (row * C + column) of each packed token; a shared prompt lies in its first row."""
    filled_BC: Tensor
    """True where the padded batch holds a token."""
    leader_B: Tensor
    """First row with the same prompt."""
    leaders_P: Tensor
    """Rows that own a prompt, ascending."""
    predictor_K: Tensor
    """Packed token whose hidden state predicts each completion token."""
    label_K: Tensor
    place_K: Tensor
    """Flat place (row * T + column) of each completion token in the B x T layout."""
    prompt_width: int
    prompt_lengths: list[int]
    """Tokens of each row's prompt."""
    leaders: list[int]
    """`leader_B` on the host."""

    @property
    def num_tokens(self) -> int:
        """Tokens that one forward pass reads."""
        return self.input_ids_S.shape[0]

    def unpack(self, values_K: Tensor) -> Tensor:
        """Completion-token values in the padded B x T layout, zero elsewhere."""
        num_rows, num_columns = self.filled_BC.shape
        num_places = num_rows * (num_columns - self.prompt_width)
        values = values_K.new_zeros(num_places).scatter(0, self.place_K, values_K)
        return values.view(num_rows, num_columns - self.prompt_width)


def group_by_prompt(prompt_ids_BW: Tensor, prompt_mask_BW: Tensor) -> Tensor:
    """Number the rows by prompt: rows with the same tokens get the same number.

    Args:
        prompt_ids_BW: token ids, padded on the left. What stands under padding is not compared.
        prompt_mask_BW: 1 on tokens, 0 on padding.

    Returns:
        int64, shape (B,). Reads one size back from the device.

    Example:
        >>> ids = torch.tensor([[0, 5, 6], [4, 5, 6], [0, 5, 6]])
        >>> group_by_prompt(ids, torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1]])).tolist()
        [0, 1, 0]
    """
    tokens_BW = prompt_ids_BW.masked_fill(prompt_mask_BW == 0, -1)
    group_B: Tensor = torch.unique(tokens_BW, dim=0, return_inverse=True)[1]
    return group_B


def pack(
    prompt_ids_BW: Tensor,
    prompt_mask_BW: Tensor,
    completion_ids_BT: Tensor,
    completion_mask_BT: Tensor,
    group_B: Tensor | None = None,
) -> PackedBatch:
    """Pack a padded batch: each prompt once, followed by its completions, with no padding left.

    A completion token may see its prompt and what stands before it in its own completion. Position
    ids are the padded batch's columns: they go on after the prompt. Reads sizes back once.

    Args:
        prompt_ids_BW, prompt_mask_BW: padded on the left; at least one token a row.
        completion_ids_BT, completion_mask_BT: padded on the right. A row masked throughout costs
            nothing and gets zeros.
        group_B: equal numbers name rows that share a prompt; they need not be neighbours. None
            compares the prompts (`group_by_prompt`), which costs one more read-back.

    Raises: ValueError for shapes that do not fit, an empty prompt, or a group with two prompts.

    Example: prompts [7, 8] and [7, 8], completions [1] and [2, 3]: the row is [7, 8, 1, 2, 3],
    positions [0, 1, 2, 2, 3]. 1 and 2 are both predicted from token 1 (the 8), 3 from token 3.
    """
    # Two rollouts of "a b", one of "c"; "." is padding. Leaders' prompt cells and all completion
    # cells are laid in reading order, so a prompt stands right before its first rollout:
    #     cells    row 0   a b | d e        packed row   a b d e f c g
    #              row 1   a b | f .        position     0 1 2 3 2 1 2   (the column of the cell)
    #              row 2   . c | g .        row 1's a, b are read from tokens 0 and 1
    _check_shapes(prompt_ids_BW, prompt_mask_BW, completion_ids_BT, completion_mask_BT)
    group_B = group_by_prompt(prompt_ids_BW, prompt_mask_BW) if group_B is None else group_B
    width = prompt_ids_BW.shape[1]
    prompt_mask_BW, completion_mask_BT = prompt_mask_BW.bool(), completion_mask_BT.bool()
    # argmax gives the first of equals: the first row of the same group. uint8, for lack of bool.
    leader_B = (group_B[:, None] == group_B[None]).to(torch.uint8).argmax(1)
    owns_B = leader_B == torch.arange(len(leader_B), device=leader_B.device)
    laid_BC = torch.cat([prompt_mask_BW & owns_B[:, None], completion_mask_BT], 1)
    sizes = _read_sizes(prompt_ids_BW, prompt_mask_BW, completion_mask_BT, leader_B, laid_BC)
    filled_BC = torch.cat([prompt_mask_BW, completion_mask_BT], 1)
    token_BC = _token_of_cell(laid_BC, filled_BC, leader_B, width)
    cell_S = _true_places(laid_BC.flatten(), sizes.num_tokens)
    place_K = _true_places(completion_mask_BT.flatten(), sizes.num_scored)
    length = max(1, completion_ids_BT.shape[1])
    # One cell to the left. For a first token that is the prompt's last: padding is on the left.
    predictor_K = token_BC[place_K // length, width + place_K % length - 1]
    return PackedBatch(
        input_ids_S=torch.cat([prompt_ids_BW, completion_ids_BT], 1).flatten()[cell_S],
        position_ids_S=cell_S % laid_BC.shape[1],
        token_of_cell_BC=token_BC,
        cell_of_token_S=cell_S,
        filled_BC=filled_BC,
        leader_B=leader_B,
        leaders_P=_true_places(owns_B, sizes.num_prompts),
        predictor_K=predictor_K,
        label_K=completion_ids_BT.flatten()[place_K],
        place_K=place_K,
        prompt_width=width,
        prompt_lengths=sizes.prompt_lengths,
        leaders=sizes.leaders,
    )


def _token_of_cell(laid_BC: Tensor, filled_BC: Tensor, leader_B: Tensor, width: int) -> Tensor:
    """The number in the packed row of the token that each cell is read from, (B, C)."""
    # A token's number is how many were laid before it. Numbers in other cells mean nothing, until
    # followers take their leader's and padding takes a harmless 0.
    token_BC = laid_BC.flatten().cumsum(0).view_as(laid_BC) - 1
    token_BC = torch.cat([token_BC[leader_B, :width], token_BC[:, width:]], 1)
    return token_BC.masked_fill(~filled_BC, 0)


def _check_shapes(
    prompt_ids_BW: Tensor, prompt_mask_BW: Tensor, completion_ids_BT: Tensor, mask_BT: Tensor
) -> None:
    if prompt_ids_BW.shape != prompt_mask_BW.shape or completion_ids_BT.shape != mask_BT.shape:
        raise ValueError(
            f"ids and masks differ in shape: prompts {tuple(prompt_ids_BW.shape)} and "
            f"{tuple(prompt_mask_BW.shape)}, completions {tuple(completion_ids_BT.shape)} and "
            f"{tuple(mask_BT.shape)}; pass one mask value per token."
        )
    if prompt_ids_BW.shape[0] != completion_ids_BT.shape[0]:
        raise ValueError(
            f"{prompt_ids_BW.shape[0]} prompts for {completion_ids_BT.shape[0]} completions; "
            "repeat each prompt for every one of its completions."
        )


class _Sizes(NamedTuple):
    num_tokens: int
    num_prompts: int
    num_scored: int
    prompt_lengths: list[int]
    leaders: list[int]


def _read_sizes(
    prompt_ids_BW: Tensor,
    prompt_mask_BW: Tensor,
    completion_mask_BT: Tensor,
    leader_B: Tensor,
    laid_BC: Tensor,
) -> _Sizes:
    """What is read back from the device, with the checks that need values."""
    # One tensor and one tolist: each number read by itself would make the host wait for the device.
    tokens_BW = prompt_ids_BW.masked_fill(~prompt_mask_BW, -1)
    sizes = torch.stack(
        [
            laid_BC.sum(),
            (leader_B == torch.arange(len(leader_B), device=leader_B.device)).sum(),
            completion_mask_BT.sum(),
            (~prompt_mask_BW.any(1)).sum(),
            (tokens_BW != tokens_BW[leader_B]).any(1).sum(),
        ]
    )
    read = torch.cat([sizes, prompt_mask_BW.sum(1), leader_B]).tolist()
    (num_tokens, num_prompts, num_scored, num_empty, num_strangers), rows = read[:5], read[5:]
    if num_empty:
        raise ValueError(f"{num_empty} rows have no prompt token; give each prompt at least one.")
    if num_strangers:
        raise ValueError(
            f"{num_strangers} rows have another prompt than the first row of their group; "
            "number the groups by prompt (group_by_prompt)."
        )
    lengths, leaders = rows[: len(leader_B)], rows[len(leader_B) :]
    return _Sizes(num_tokens, num_prompts, num_scored, lengths, leaders)


def _true_places(mask: Tensor, num_true: int) -> Tensor:
    """Indices of the True entries, ascending, without asking the device how many there are."""
    # False entries all write to one slot too many, which is cut off; nonzero() would wait.
    slot = torch.where(mask, mask.cumsum(0) - 1, num_true)
    places = torch.arange(mask.numel(), device=mask.device)
    return places.new_zeros(num_true + 1).scatter(0, slot, places)[:num_true]
