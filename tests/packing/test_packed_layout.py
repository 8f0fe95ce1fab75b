"""The packed row and its masks, against literal layouts and against brute force over cells."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from podsrl.packing.attention import shared_prefix, shared_prefix_attention
from podsrl.packing.masks import block_mask, dense_mask, visibility
from podsrl.packing.pack import PackedBatch, group_by_prompt, pack


def left(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def right(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def ragged() -> PackedBatch:
    """Rows 0 and 2 share prompt [5, 6], row 1 has [7, 8, 9]; row 2's completion is masked."""
    prompts = left([[5, 6], [7, 8, 9], [5, 6], [5, 6]], 3)
    return pack(*prompts, *right([[11, 12], [13], [], [14, 15]], 2))


def test_literal_layout() -> None:
    packed = ragged()
    # Row 0 owns prompt 5 6, row 1 owns 7 8 9; rows 2 and 3 bring completions only.
    assert packed.input_ids_S.tolist() == [5, 6, 11, 12, 7, 8, 9, 13, 14, 15]
    # Columns of the padded batch: prompts end in column 2, completions start in column 3.
    assert packed.position_ids_S.tolist() == [1, 2, 3, 4, 0, 1, 2, 3, 3, 4]
    assert packed.leader_B.tolist() == [0, 1, 0, 0]
    assert packed.leaders_P.tolist() == [0, 1]
    assert packed.label_K.tolist() == [11, 12, 13, 14, 15]
    # 11 and 14 are predicted by the 6 (token 1), 12 by the 11, 13 by the 9, 15 by the 14.
    assert packed.predictor_K.tolist() == [1, 2, 6, 1, 8]
    assert packed.num_tokens == 10


def test_unpack_puts_values_back() -> None:
    values = ragged().unpack(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert values.tolist() == [[1, 2], [3, 0], [0, 0], [4, 5]]


def test_groups_given_or_found_are_the_same() -> None:
    prompts, completions = left([[4, 4], [4], [4, 4]], 2), right([[1], [2], [3]], 1)
    found, given = (
        pack(*prompts, *completions),
        pack(*prompts, *completions, torch.tensor([9, 2, 9])),
    )
    assert found.input_ids_S.tolist() == given.input_ids_S.tolist() == [4, 4, 1, 4, 2, 3]
    alone = pack(*prompts, *completions, torch.arange(3))
    assert alone.input_ids_S.tolist() == [4, 4, 1, 4, 2, 4, 4, 3]


def test_padding_does_not_part_equal_prompts() -> None:
    ids, mask = torch.tensor([[3, 8], [9, 8]]), torch.tensor([[0, 1], [0, 1]])
    assert group_by_prompt(ids, mask).tolist() == [0, 0]
    assert group_by_prompt(ids, torch.tensor([[0, 1], [1, 1]])).unique().numel() == 2


def sees_by_hand(packed: PackedBatch, query: int, key: int, window: int | None) -> bool:
    num_columns, width = packed.filled_BC.shape[1], packed.prompt_width
    cells = packed.cell_of_token_S.tolist()
    (query_row, query_column), (key_row, key_column) = (
        divmod(cells[token], num_columns) for token in (query, key)
    )
    if packed.leader_B[query_row] != packed.leader_B[key_row] or key_column > query_column:
        return False
    if key_column >= width and key_row != query_row:
        return False
    return window is None or query_column - key_column < window


@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_masks_equal_brute_force(window: int | None) -> None:
    packed = ragged()
    size = packed.num_tokens
    expected = [[sees_by_hand(packed, q, k, window) for k in range(size)] for q in range(size)]
    assert dense_mask(packed, window)[0, 0].tolist() == expected
    block = create_mask(visibility(packed, window), 1, 1, size, size, device="cpu")
    assert block[0, 0].tolist() == expected
    assert block_mask(packed, window).shape == (1, 1, size, size)


def test_block_mask_skips_what_other_prompts_hold() -> None:
    # 8 prompts of 100 tokens with 2 completions of 14: 128 tokens, one block, per prompt.
    prompts = torch.arange(8).repeat_interleave(2)[:, None].expand(16, 100)
    completions = torch.ones(16, 14, dtype=torch.long)
    packed = pack(prompts, torch.ones_like(prompts), completions, torch.ones_like(completions))
    assert packed.num_tokens == 8 * 128
    # Only the 8 blocks on the diagonal of 64 are computed: 1 - 8/64 = 87.5 % are skipped.
    assert block_mask(packed).sparsity() == 87.5


@pytest.mark.parametrize("window", [None, 2])
def test_shared_prefix_attention_equals_dense_attention(window: int | None) -> None:
    packed = ragged()
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, packed.num_tokens, 4).unbind()
    module = torch.nn.Module()
    output, _ = shared_prefix_attention(
        module, query, key, value, None, shared_prefix=shared_prefix(packed), sliding_window=window
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dense_mask(packed, window)
    )
    torch.testing.assert_close(output, expected.transpose(1, 2), atol=1e-6, rtol=0)


def test_refusals_name_the_remedy() -> None:
    prompts, completions = left([[4], [5]], 1), right([[1], [2]], 1)
    with pytest.raises(ValueError, match="1 rows have another prompt"):
        pack(*prompts, *completions, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="1 rows have no prompt token"):
        pack(prompts[0], torch.tensor([[1], [0]]), *completions)
    with pytest.raises(ValueError, match="2 prompts for 1 completions"):
        pack(*prompts, *right([[1]], 1))
    with pytest.raises(ValueError, match="one mask value per token"):
        pack(prompts[0], prompts[1][:, :0], *completions)
