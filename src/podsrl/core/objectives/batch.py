"""What an objective sees: the kept rows of one micro-batch, and sums over the rows of a group.

Shape letters: B kept rows, T completion tokens, K rollouts of the reference per prompt.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptBatch:
    """Kept rollouts of one micro-batch, of any number of prompts, in any order.

    Args:
        log_probs_BT: of the policy in training, in nats, with gradient; anything where `mask_BT`
            is 0.
        old_log_probs_BT: of the policy at the start of the update, without gradient.
        mask_BT: 1 for completion tokens that count.
        rewards_B: combined reward of each rollout; NaN if it could not be computed.
        advantages_B: from `podsrl.core.advantage`; NaN rewards have 0.
        group_B: int64; rows of one prompt have equal numbers, other rows other numbers.
        reference_log_probs_BT: of the reference policy; None unless the objective needs them.
        num_rows: what a sum over rows is divided by: the mean number of rows per micro-batch, so
            that losses of micro-batches average to that of the whole batch. None: B.
        num_tokens: the same for sums over tokens. None: the tokens of `mask_BT`.
        extras: further tensors whose first axis is B, by name.

    Raises:
        ValueError: shapes that differ.
    """

    log_probs_BT: Tensor
    old_log_probs_BT: Tensor
    mask_BT: Tensor
    rewards_B: Tensor
    advantages_B: Tensor
    group_B: Tensor
    reference_log_probs_BT: Tensor | None = None
    num_rows: float | None = None
    num_tokens: Tensor | float | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.log_probs_BT.shape
        for name in ("old_log_probs_BT", "mask_BT", "reference_log_probs_BT"):
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(shape)}.")
        rows = {"rewards_B": self.rewards_B, "advantages_B": self.advantages_B}
        for name, value in {**rows, "group_B": self.group_B, **self.extras}.items():
            if len(value) != shape[0]:
                raise ValueError(f"{name} has {len(value)} rows, log-probs have {shape[0]}.")

    @property
    def keep_BT(self) -> Tensor:
        """Whether a token counts."""
        return self.mask_BT != 0

    @property
    def counts_B(self) -> Tensor:
        """Whether a row teaches: it has a reward and at least one token."""
        return ~self.rewards_B.isnan() & self.keep_BT.any(dim=1)

    @property
    def scored_rewards_B(self) -> Tensor:
        """The rewards, 0 in place of NaN: a NaN would reach the gradient of every row."""
        return self.rewards_B.nan_to_num(nan=0.0)

    def log_ratio_BT(self, to: str = "reference") -> Tensor:
        """log(pi / pi_other) of each token in nats, float32 or wider, 0 where `mask_BT` is.

        `to` is "reference" or "old".
        """
        other_BT = self.old_log_probs_BT if to == "old" else self.reference_log_probs_BT
        assert other_BT is not None, "the objective's needs_reference is not set"
        wide = torch.promote_types(self.log_probs_BT.dtype, torch.float32)
        ratio_BT = self.log_probs_BT.to(wide) - other_BT.to(wide)
        return ratio_BT.masked_fill(~self.keep_BT, 0.0)

    def log_ratio_B(self, to: str = "reference") -> Tensor:
        """log(pi / pi_other) of each rollout: the sum, not the mean, over its tokens; in nats.

        Example: two tokens at log-probs (-1, -2), the reference's (-1.5, -2.5): 1.0.
        """
        return self.log_ratio_BT(to).sum(dim=1)

    def mean_over_rows(self, values_B: Tensor) -> Tensor:
        """Sum over the rows that count, over `num_rows`: rows of a larger group weigh the same."""
        num_rows = len(values_B) if self.num_rows is None else self.num_rows
        return values_B.where(self.counts_B, 0.0).sum() / num_rows

    def mean_over_tokens(self, values_BT: Tensor) -> Tensor:
        """Sum over all tokens, over `num_tokens`: tokens of a longer rollout weigh the same."""
        num_tokens = self.mask_BT.sum() if self.num_tokens is None else self.num_tokens
        summed = values_BT.masked_fill(~self.keep_BT, 0.0).sum()
        return summed / torch.as_tensor(num_tokens, device=summed.device).clamp(min=1)

    def group_mean(self, values_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the counting rows of a row's group, and their number, each (B,).

        Groups may have any sizes. Rows that do not count are left out, whatever their value; a
        group without any has mean 0 and number 0.

        Example: values (1, 3, 5) of groups (7, 7, 9) give means (2, 2, 5), numbers (2, 2, 1).
        """
        # A comparison of all rows, because torch.unique would wait for the device to count groups.
        same_BB = (self.group_B[:, None] == self.group_B[None, :]) & self.counts_B[None, :]
        same_BB = same_BB.to(values_B.dtype)
        count_B = same_BB.sum(dim=1)
        return same_BB @ values_B.where(self.counts_B, 0.0) / count_B.clamp(min=1), count_B

    def group_variance(self, values_B: Tensor) -> Tensor:
        """Each row's share of its group's variance, (B,): their mean over a group is the variance.

        (v - mean)^2 * k / (k - 1) for a group of k counting rows: averaged, the unbiased variance.
        0 for a group of one. With gradient through the mean.

        Example: values (1, 3) of one group give (2, 2), the unbiased variance of (1, 3).
        """
        mean_B, count_B = self.group_mean(values_B)
        return (values_B - mean_B).square() * count_B / (count_B - 1).clamp(min=1)
