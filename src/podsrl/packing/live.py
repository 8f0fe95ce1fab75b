"""Rows that teach nothing stay out of a pass, and stand in its result as if they had been in it.

Shape letters: B rows, T completion tokens, L live rows.
"""

from torch import Tensor


def teaching(advantages: Tensor) -> Tensor:
    """Whether each row has an advantage but 0, bool (B,), of advantages (B,) or per token (B, T).

    Example: (0, -1) give (False, True).
    """
    return advantages.flatten(1).ne(0).any(1) if advantages.ndim > 1 else advantages.ne(0)


def live_rows(teaches_B: Tensor, mask_BT: Tensor) -> Tensor | None:
    """Return the rows that a pass must be made of, ascending, (L,); None where that is all.

    At least one row: where none teaches, the shortest stands in for all. Its advantage is 0, so
    that its gradient is 0 too, but there is one for every parameter: the optimizer moves as it
    would have, and a process without a live row joins the backward pass of the others.

    Args:
        teaches_B: bool; False where a row's part of the loss is 0 whatever its log-probs.
        mask_BT: 1 on completion tokens.

    Waits for the device once, for the number of live rows.

    Example:
        >>> live_rows(torch.tensor([False, True, True]), torch.ones(3, 4))
        tensor([1, 2])
    """
    rows_L = teaches_B.nonzero().squeeze(1)
    if len(rows_L) == len(teaches_B):
        return None
    return rows_L if len(rows_L) else mask_BT.sum(dim=1).argmin().view(1)


def spread(found_LT: Tensor, rows_L: Tensor, filler_BT: Tensor) -> Tensor:
    """The live rows' values in their places among all rows, `filler_BT` in the others.

    Example: found ((5, 6)) of row 1 and zeros for filler give ((0, 0), (5, 6)).
    """
    return filler_BT.to(found_LT.dtype).index_copy(0, rows_L, found_LT)


def mean_of(values_LT: Tensor, mask_LT: Tensor) -> Tensor:
    """Mean over the tokens that the mask has, a scalar; 0 where it has none.

    As filler it leaves the mean over all rows what it is over the live ones.
    """
    mask_LT = mask_LT.to(values_LT.dtype)
    return (values_LT * mask_LT).sum() / mask_LT.sum().clamp(min=1)
