"""Rewards and what every host must keep of them: kept_sets.json, of four kept rollouts of eight.

Each case has one best subset of each prompt, which brute force finds (tests/trainer/test_hosts.py),
so that no host can differ by its seed.
"""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    name: str
    num_kept: int
    rewards: list[list[float]]
    """NaN where a rollout has none."""
    kept: list[list[int]]


def _case(name: str, num_kept: int, rewards: list[list[float | None]], kept: list) -> Case:
    known = [[float("nan") if r is None else float(r) for r in row] for row in rewards]
    return Case(name, num_kept, known, kept)


CASES = [
    _case(**entry)
    for entry in json.loads(Path(__file__).with_name("kept_sets.json").read_text(encoding="utf-8"))
]
