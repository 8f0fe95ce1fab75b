"""From verl's rows to groups of rollouts and back.

verl keeps one row per output of an agent, under the key `{uid}_{session}_{index}`: uid is the
prompt, session one of its n rollouts, index one of that rollout's outputs, of which most have one.
A rollout's reward is the score of its last output.

Shape letters: P prompts, N sampled rollouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from podsrl.core.selection import Selection, Selector


@dataclass(frozen=True)
class Groups:
    """Rows of a batch by prompt and session."""

    rows: list[dict[int, list[int]]]
    """Of each prompt, session -> its rows in the order of their outputs; prompts by uid."""
    num_rollouts: int

    def table(self, values: Sequence[float], *, whole: bool = False) -> Tensor:
        """One value per row as (P, N) in float64: a rollout's last one, or the sum of them all.

        NaN where a session is missing: one that failed has left no row.

        Example: rows of one prompt whose session 1 of 2 has two outputs, values (5, 1, 2): the
        table is ((5, 2),), and with `whole` ((5, 3),).
        """
        found_PN = torch.full((len(self.rows), self.num_rollouts), torch.nan, dtype=torch.float64)
        for group, sessions in enumerate(self.rows):
            for session, rows in sessions.items():
                found_PN[group, session] = sum(values[row] for row in rows[0 if whole else -1 :])
        return found_PN

    def rows_of(self, kept_PN: Tensor) -> list[int]:
        """All rows of the kept rollouts, ascending: a session of several outputs stays whole."""
        kept = kept_PN.nonzero().tolist()
        return sorted(row for group, session in kept for row in self.rows[group][session])


def groups_of(keys: Sequence[str], num_rollouts: int) -> Groups:
    """Sort rows by prompt, session and output.

    Prompts come in the order of their uids, so that it does not matter in which order rollouts
    were finished.

    Raises `ValueError` for a session outside 0..n-1.
    """
    found: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for row, key in enumerate(keys):
        uid, session, index = key.rsplit("_", 2)
        if not 0 <= int(session) < num_rollouts:
            raise ValueError(
                f"the queue holds {key}, a session outside 0..{num_rollouts - 1}: something but "
                "PODS decides how many rollouts are sampled (a data column __rollout_n__?)."
            )
        found.setdefault(uid, {}).setdefault(int(session), []).append((int(index), row))
    in_order = [
        {session: [row for _, row in sorted(rows)] for session, rows in found[uid].items()}
        for uid in sorted(found)
    ]
    return Groups(in_order, num_rollouts)


def choose(
    selector: Selector, rewards_PN: Tensor, *, seed: int, lengths_PN: Tensor | None = None
) -> Selection:
    """What `selector` keeps, without rollouts that have no reward and without lone ones.

    verl takes the mean of a group's kept scores, which a NaN would make NaN, and for a rollout
    that is alone in its group takes the score itself as its advantage. Neither can teach, and verl
    can do with fewer rows, so both stay out. May keep nothing.

    Example:
        >>> rewards = torch.tensor([[0, 1, 1, torch.nan], [torch.nan, torch.nan, 1, torch.nan]])
        >>> choose(Selector(num_kept=2), rewards, seed=0).kept_PN.sum(1)
        tensor([2, 0])
    """
    if lengths_PN is not None:
        lengths_PN = lengths_PN.nan_to_num(nan=0.0)  # of sessions that are missing
    selection = selector(rewards_PN.unsqueeze(-1), seed=seed, lengths_PN=lengths_PN)
    kept_PN = selection.kept_PN & ~rewards_PN.isnan()
    kept_PN &= kept_PN.sum(1, keepdim=True) > 1
    return replace(selection, kept_PN=kept_PN)
