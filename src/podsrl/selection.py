"""What a generation batch was scored, which rollouts it keeps, and the metrics of both.

Shape letters: P prompts, N sampled rollouts, M kept rollouts, F reward functions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from podsrl.core.combine import combine
from podsrl.core.statistics import reward_statistics, selection_statistics


@dataclass
class Selection:
    """Rewards of all sampled rollouts of all processes, and which rollouts are kept."""

    rewards_per_func_PNF: Tensor
    rewards_PN: Tensor
    kept_PM: Tensor

    def kept_rows(self) -> Tensor:
        """Indices of the kept rollouts into the flat list of all sampled rollouts, (P * M,)."""
        num_prompts, num_rollouts = self.rewards_PN.shape
        first_P1 = torch.arange(num_prompts, device=self.kept_PM.device).unsqueeze(1) * num_rollouts
        return (first_P1 + self.kept_PM).flatten()

    def reward_metrics(self, weights: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Rewards over all sampled rollouts, under the names in which TRL reports kept ones."""
        values = reward_statistics(combine(self.rewards_per_func_PNF, weights))
        for i, name in enumerate(names):
            each = reward_statistics(self.rewards_per_func_PNF[..., i])
            values[f"rewards/{name}/mean"] = each["reward"]
            values[f"rewards/{name}/std"] = each["reward_std"]
        return values

    def kept_metrics(self) -> dict[str, Tensor]:
        """What the selection did, under `pods/`."""
        kept = selection_statistics(self.rewards_PN, self.kept_PM)
        return {f"pods/{name}": value for name, value in kept.items()}
