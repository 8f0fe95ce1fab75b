"""The method as one call: rewards of all rollouts in, what is kept and what it is worth out.

This is what every host calls: PODSTrainer, examples/loop.py, and whatever samples and trains
elsewhere. A host brings rewards, a seed that all of its processes share and, for some rules,
lengths; it takes back rows, advantages and numbers.

Shape letters: P prompts, N sampled rollouts, M kept rollouts, F reward functions, B kept rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from podsrl.core.advantage import advantages, masked_advantages
from podsrl.core.budget import pooled, select_counts
from podsrl.core.combine import SUM_THEN_NORMALIZE, combine
from podsrl.core.select import select_mask
from podsrl.core.statistics import mask_statistics
from podsrl.core.stratified import frac_unrepresented, stratified_weights

BUDGETS = ("per_prompt", "pooled")


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Settings of the choice; called with the rewards of all n rollouts it gives a `Selection`.

    num_kept: m, of every prompt with the budget "per_prompt", on average with "pooled", where
        `podsrl.core.budget.pooled` says how many each keeps.
    rule: a key of `podsrl.RULES`.
    budget, budget_floor, budget_cap: one of `BUDGETS`; the others are for "pooled".
    weights_F: what each reward function counts; None counts all alike.
    aggregation: how the functions become one reward, see `podsrl.core.combine`.
    parts: (n, m) of each part of a group, in the order of its rollouts, where each part keeps its
        own m of its own n; they make N and `num_kept`. None: a group is chosen from as a whole.
        With the budget "per_prompt".
    advantage: keyword arguments of `podsrl.core.advantage.advantages`.

    Raises, when called: `ValueError` for rewards that are not (P, N, F) and as `select`, `pooled`
    and `advantages` do.

    Example:
        >>> chosen = Selector(num_kept=2)(torch.tensor([[[0.0], [0.0], [0.0], [1.0]]]))
        >>> chosen.kept_PN.sum(), chosen.kept_PN[0, 3]  # the success and one of the failures
        (tensor(2), tensor(True))
        >>> chosen.advantages_B  # (0 - 1/2) / sqrt(1/2), and its mirror
        tensor([-0.7070,  0.7070])
    """

    num_kept: int
    rule: str = "max_variance"
    budget: str = "per_prompt"
    budget_floor: int = 0
    budget_cap: int | None = None
    weights_F: Tensor | None = None
    aggregation: str = SUM_THEN_NORMALIZE
    parts: tuple[tuple[int, int], ...] | None = None
    advantage: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        rewards_PNF: Tensor,
        *,
        seed: int = 0,
        lengths_PN: Tensor | None = None,
        ranked_PN: Tensor | None = None,
    ) -> "Selection":
        """Choose; the same rewards and seed give the same choice in every process.

        Args:
            rewards_PNF: of all prompts of all processes, NaN where a function gave none.
            seed: decides ties, and the rule "random".
            lengths_PN: tokens, for the rules in `NEEDS_LENGTHS`.
            ranked_PN: what the rule ranks, and advantages are of, in place of the one reward.
        """
        rewards_PN = self.combined(rewards_PNF) if ranked_PN is None else ranked_PN
        return Selection(self, rewards_PNF, rewards_PN, self._keep(rewards_PN, seed, lengths_PN))

    def combined(self, rewards_PNF: Tensor) -> Tensor:
        """The one reward of each rollout (P, N) that the rule ranks."""
        if rewards_PNF.ndim != 3:
            raise ValueError(
                f"rewards have shape {tuple(rewards_PNF.shape)}; pass (P, N, F): prompts, rollouts "
                "of each, reward functions. One function is rewards_PN.unsqueeze(-1)."
            )
        weights_F = self.weights_F
        if weights_F is None:
            weights_F = rewards_PNF.new_ones(rewards_PNF.shape[-1])
        return combine(rewards_PNF, weights_F, aggregation=self.aggregation)

    def _keep(self, rewards_PN: Tensor, seed: int, lengths_PN: Tensor | None) -> Tensor:
        if self.parts is not None:
            return self._keep_parts(rewards_PN, seed, lengths_PN)
        if self.budget == "per_prompt":
            return select_mask(
                rewards_PN, self.num_kept, rule=self.rule, seed=seed, lengths=lengths_PN
            )
        if self.budget != "pooled":
            raise ValueError(f"budget is {self.budget!r}; choose one of {', '.join(BUDGETS)}.")
        total = self.num_kept * len(rewards_PN)
        counts_P = pooled(
            rewards_PN, total, floor=self.budget_floor, cap=self.budget_cap, seed=seed
        )
        return select_counts(rewards_PN, counts_P, rule=self.rule, seed=seed, lengths_PN=lengths_PN)

    def _keep_parts(self, rewards_PN: Tensor, seed: int, lengths_PN: Tensor | None) -> Tensor:
        assert self.parts is not None
        sizes = [size for size, _ in self.parts]
        num_kept = sum(kept for _, kept in self.parts)
        if sum(sizes) != rewards_PN.shape[1] or num_kept != self.num_kept:
            raise ValueError(
                f"the parts {self.parts} make {sum(sizes)} rollouts and {num_kept} kept ones, but "
                f"groups have {rewards_PN.shape[1]} and keep {self.num_kept}: make them agree."
            )
        lengths = [None] * len(sizes) if lengths_PN is None else lengths_PN.split(sizes, dim=1)
        rows = zip(rewards_PN.split(sizes, dim=1), self.parts, lengths, strict=True)
        # A seed of its own for each part: equal rewards would be kept at equal places.
        masks = [
            select_mask(part_PN, kept, rule=self.rule, seed=seed + i, lengths=lengths_of_part)
            for i, (part_PN, (_, kept), lengths_of_part) in enumerate(rows)
        ]
        return torch.cat(masks, dim=1)


@dataclass
class Selection:
    """Rewards of all sampled rollouts of all processes, which are kept, and what these are worth.

    Properties are computed when they are asked for: a host that has its own advantages pays for
    none of ours.
    """

    selector: Selector
    rewards_per_func_PNF: Tensor
    rewards_PN: Tensor
    kept_PN: Tensor
    """bool; prompts may keep different numbers of rollouts."""
    kept_rows_B: Tensor = field(init=False)
    """Indices of the kept rollouts into the flat list of all sampled ones, ascending."""

    def __post_init__(self) -> None:
        # Every host asks for these several times, and on CUDA each `nonzero` waits for the device.
        self.kept_rows_B = self.kept_PN.flatten().nonzero().squeeze(1)

    @property
    def kept_PM(self) -> Tensor:
        """Positions of the kept rollouts of each group, ascending; all groups keep equally many."""
        counts_P = self.kept_PN.sum(1)
        if not bool((counts_P == counts_P[0]).all()):
            raise ValueError(
                f"the groups keep {counts_P.tolist()} rollouts, which no (P, M) tensor holds: use "
                "kept_PN, or kept_rows_B with group_B."
            )
        return self.kept_PN.nonzero()[:, 1].view(len(self.kept_PN), -1)

    def part(self, index: int) -> "Selection":
        """One part of every group as if it were the group: its advantages are among its own.

        Example: parts of (4, 2) and (2, 2): part 1 has the last two rewards of every group.
        """
        assert self.selector.parts is not None, "the selector has no parts"
        sizes = [size for size, _ in self.selector.parts]
        num_kept = self.selector.parts[index][1]
        rewards_PNF, rewards_PN, kept_PN = (
            each.split(sizes, dim=1)[index]
            for each in (self.rewards_per_func_PNF, self.rewards_PN, self.kept_PN)
        )
        alone = replace(self.selector, num_kept=num_kept, parts=None)
        return Selection(alone, rewards_PNF, rewards_PN, kept_PN)

    @property
    def group_B(self) -> Tensor:
        """The prompt of each kept rollout, in the order of `kept_rows_B`."""
        return self.kept_PN.nonzero()[:, 0]

    @property
    def advantages_B(self) -> Tensor:
        """The advantage of each kept rollout, weights applied, in the order of `kept_rows_B`."""
        options = self.selector.advantage
        if self.selector.budget == "pooled":
            return masked_advantages(self.rewards_PN, self.kept_PN, **options)[self.kept_PN]
        return advantages(self.rewards_PN, self.kept_PM, **options).flatten()

    @property
    def weights_B(self) -> Tensor:
        """How many sampled rollouts each kept one stands for, as a share of its fair part.

        1 without stratified weights. Part of `advantages_B` already.
        """
        if not self._is_stratified:
            return torch.ones_like(self.rewards_PN[self.kept_PN])
        return stratified_weights(self.rewards_PN, self.kept_PN)[self.kept_PN]

    @property
    def _is_stratified(self) -> bool:
        return self.selector.advantage.get("weights") == "stratified"

    def numbers(self) -> dict[str, Tensor]:
        """What the choice did, as scalars: `mask_statistics`, and what weights cannot mend."""
        is_best = self.selector.rule == "max_variance" and self.selector.parts is None
        found = mask_statistics(self.rewards_PN, self.kept_PN, is_best=is_best)
        if self._is_stratified:
            found["frac_unrepresented"] = frac_unrepresented(self.rewards_PN, self.kept_PN)
        return found
