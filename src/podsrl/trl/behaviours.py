"""Several policies sample one group: whose each place is, and what each of them brought.

Shape letters: P prompts, N sampled rollouts, K behaviours, B kept rows.
"""

from pathlib import Path

import torch
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.selection import Selection
from podsrl.trl.behaviours_checks import (
    FOLLOWER,
    behaviours_differ,
    num_followers,
    num_rollouts_each,
)
from podsrl.trl.config import PODSConfig
from podsrl.trl.followers import Followers, name_of
from podsrl.trl.records import brought_by
from podsrl.trl.sampling import Sampler


class Behaviours:
    """Says who samples each rollout of a group, and at which temperature.

    In each group the rollouts of the first behaviour come first, then those of the second; so a
    rollout's place says whose it is, in every process and whatever the selection keeps.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self.num_each = num_rollouts_each(host.args)
        self.samplers_N = samplers_of_places(host.args)
        self.differ = behaviours_differ(host.args)
        self.followers = Followers(host) if num_followers(host.args) else None

    def samplers(self, num_rows: int) -> list[Sampler] | None:
        """Of each row that this process samples, of as many in every process.

        None where no behaviour differs from the policy, and so in all processes or in none: what
        some say of their rollouts and others do not could not be exchanged.
        """
        if not self.differ:
            return None
        first = self.host.accelerator.process_index * num_rows
        num_rollouts = len(self.samplers_N)
        return [self.samplers_N[(first + row) % num_rollouts] for row in range(num_rows)]

    def of_rows(self, rows_B: Tensor) -> Tensor:
        """1 at the behaviour of each row, else 0, (B, K).

        rows_B: counted over all sampled rollouts of all processes.

        Example: two behaviours of two rollouts each: row 5 is of the first, row 7 of the second.
        """
        bounds_K = torch.tensor(self.num_each, device=rows_B.device).cumsum(0)
        behaviour_B = torch.bucketize(rows_B % len(self.samplers_N), bounds_K, right=True)
        return torch.nn.functional.one_hot(behaviour_B, len(self.num_each)).float()

    def metrics(self, selection: Selection) -> dict[str, Tensor]:
        """What each behaviour brought, by the names of docs/metrics.md.

        A success is a rollout to which the first reward function gives more than 0.
        """
        success_PN = selection.rewards_per_func_PNF[..., 0] > 0
        found = {"behaviours/frac_groups_with_success": success_PN.any(1).double().mean()}
        for k, (kept, success, _) in enumerate(brought_by(selection, self.num_each)):
            found |= {f"behaviours/{k}/frac_kept": kept, f"behaviours/{k}/frac_success": success}
        return {name: number.double() for name, number in found.items()}

    def save(self, checkpoint: Path) -> None:
        """Write what followers have learned into a checkpoint's folder."""
        if self.followers:
            self.followers.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Read what followers had learned."""
        if self.followers:
            self.followers.load(checkpoint)


def samplers_of_places(args: PODSConfig) -> list[Sampler]:
    """Who samples each of the n places of a group: those of the first behaviour come first.

    Example: shares 0.5 of temperature 1 and 0.5 of 1.3, n = 4: 1, 1, 1.3, 1.3, all the policy's.
    """
    assert args.behaviours and not isinstance(args.behaviours, str)
    found = []
    for k, (each, count) in enumerate(zip(args.behaviours, num_rollouts_each(args), strict=True)):
        found += [Sampler(each["temperature"], name_of(k) if FOLLOWER in each else None)] * count
    return found
