"""What a generation batch was scored, which rollouts it keeps, and the metrics of both.

Shape letters: P prompts, N sampled rollouts, M kept rollouts, F reward functions, B kept rows.
"""

from dataclasses import dataclass

from torch import Tensor

from podsrl.core.budget import pooled, select_counts
from podsrl.core.combine import combine
from podsrl.core.mask import as_mask
from podsrl.core.select import select
from podsrl.core.statistics import reward_statistics, selection_statistics
from podsrl.core.stratified import frac_unrepresented

BUDGETS = ("per_prompt", "pooled")


@dataclass
class Selection:
    """Rewards of all sampled rollouts of all processes, and which rollouts are kept."""

    rewards_per_func_PNF: Tensor
    rewards_PN: Tensor
    kept_PN: Tensor
    """bool; prompts may keep different numbers of rollouts."""
    first_rewards_PNF: Tensor | None = None
    """Rewards of the prompts that the data loader drew, where other prompts took their place."""

    @property
    def kept_PM(self) -> Tensor:
        """Positions of the kept rollouts of each group, ascending; all groups keep equally many."""
        counts_P = self.kept_PN.sum(1)
        if not bool((counts_P == counts_P[0]).all()):
            raise ValueError(
                f"the groups keep {counts_P.tolist()} rollouts, which no (P, M) tensor holds: use "
                "kept_PN, or kept_rows() with group_B()."
            )
        return self.kept_PN.nonzero()[:, 1].view(len(self.kept_PN), -1)

    def kept_rows(self) -> Tensor:
        """Indices of the kept rollouts into the flat list of all sampled ones, ascending, (B,)."""
        return self.kept_PN.flatten().nonzero().squeeze(1)

    def group_B(self) -> Tensor:
        """The prompt of each kept rollout, in the order of `kept_rows`, (B,)."""
        return self.kept_PN.nonzero()[:, 0]

    def reward_metrics(self, weights: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Rewards over all sampled rollouts, under the names in which TRL reports kept ones."""
        first_PNF = self.first_rewards_PNF
        rewards_PNF = self.rewards_per_func_PNF if first_PNF is None else first_PNF
        values = reward_statistics(combine(rewards_PNF, weights))
        for i, name in enumerate(names):
            each = reward_statistics(rewards_PNF[..., i])
            values[f"rewards/{name}/mean"] = each["reward"]
            values[f"rewards/{name}/std"] = each["reward_std"]
        return values

    def kept_metrics(self, *, stratified: bool = False) -> dict[str, Tensor]:
        """What the selection did, under `pods/`, and what stratified weights cannot make good."""
        kept = selection_statistics(self.rewards_PN, self.kept_PN)
        if stratified:
            kept["frac_unrepresented"] = frac_unrepresented(self.rewards_PN, self.kept_PN)
        return {f"pods/{name}": value for name, value in kept.items()}


def choose(
    rewards_PN: Tensor,
    num_kept: int,
    *,
    rule: str,
    budget: str = "per_prompt",
    floor: int = 0,
    cap: int | None = None,
    seed: int = 0,
    lengths_PN: Tensor | None = None,
) -> Tensor:
    """Return the kept rollouts as a mask (P, N): `num_kept` per prompt, or as many on average.

    `per_prompt` is `podsrl.select`; `pooled` is `podsrl.core.budget.pooled`, of which each prompt
    then keeps its number by the same rule. `lengths_PN` is for the rules in `NEEDS_LENGTHS`.
    """
    if budget == "per_prompt":
        kept_PM = select(rewards_PN, num_kept, rule=rule, seed=seed, lengths=lengths_PN)
        return as_mask(kept_PM, rewards_PN.shape[1])
    total = num_kept * len(rewards_PN)
    counts_P = pooled(rewards_PN, total, floor=floor, cap=cap, seed=seed)
    return select_counts(rewards_PN, counts_P, rule=rule, seed=seed, lengths_PN=lengths_PN)
