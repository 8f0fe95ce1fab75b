"""What a model that sees is given beside tokens: of all rows of a batch, or of some.

Images of a row are as many rows of pixels as they have patches or tiles, so that rows of the batch
are picked after TRL has split them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from podsrl.packing.microbatch import pick

# Entries of TRL's batch of a model that sees, which its log-probs are of.
SEEN: tuple[str, ...] = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes"),
    *("num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def passes_of(
    padded: Callable[..., Any], seen: dict[str, Any]
) -> tuple[Callable[..., Any], Callable[[Tensor], Callable[..., Any]]]:
    """TRL's pass with what these rows see, and one that is made for some of the rows.

    Example: of two rows with one image each, the second one's pass is given its image alone.
    """

    def of_rows(rows_L: Tensor) -> Callable[..., Any]:
        (picked,) = pick(split_pixel_values_by_grid(seen), [rows_L.tolist()])
        return partial(padded, **unsplit_pixel_values_by_grid(picked))

    return partial(padded, **seen), of_rows
