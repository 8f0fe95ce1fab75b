"""What a setting needs of others: one error, with the remedy."""

from collections.abc import Mapping
from typing import Any


def check_needs(what: str, needs: Mapping[str, Any], otherwise: str) -> None:
    """Raise `ValueError` for the first need that is not met.

    what: who needs it. needs: each in words, its reason with it, and whether it is met. otherwise:
    what to do where it is not to be changed.

    Example: `check_needs("early_stop needs", {"use_vllm=False": False}, "leave early_stop out")`
    says "early_stop needs use_vllm=False. Change it, or leave early_stop out."
    """
    for need, is_met in needs.items():
        if not is_met:
            raise ValueError(f"{what} {need}. Change it, or {otherwise}.")
