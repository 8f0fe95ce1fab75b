"""Asks any rule about rewards alone: rules that need lengths get equal ones."""

from typing import Any

import torch

from podsrl.core.rules import NEEDS_LENGTHS, RULES
from podsrl.core.select import select


def choose(rewards: Any, keep: int, rule: str, seed: int = 0) -> torch.Tensor:
    """What `select` keeps."""
    lengths = torch.full(torch.as_tensor(rewards).shape, 3) if rule in NEEDS_LENGTHS else None
    return select(rewards, keep, rule, seed=seed, lengths=lengths)


def ask(rule: str, rewards_PN: torch.Tensor, keep: int, **options: int) -> torch.Tensor:
    """What the rule itself keeps."""
    if rule not in NEEDS_LENGTHS:
        return RULES[rule](rewards_PN, keep, **options)
    lengths_PN = torch.full(rewards_PN.shape, 3, device=rewards_PN.device)
    return RULES[rule](rewards_PN, keep, lengths_PN=lengths_PN, **options)
