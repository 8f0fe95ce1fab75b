"""Policy Optimization with Down-Sampling: sample many rollouts, update on the few that matter."""

from typing import TYPE_CHECKING, Any

from podsrl.core.select import RULES, select

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig
    from podsrl.trl.trainer import PODSTrainer

__all__ = ["RULES", "PODSConfig", "PODSTrainer", "select"]
__version__ = "0.1.0"

_LAZY = {"PODSConfig": "podsrl.trl.config", "PODSTrainer": "podsrl.trl.trainer"}


def __getattr__(name: str) -> Any:
    """Load the trainer on first use, so that importing podsrl imports no trl."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'podsrl' has no attribute {name!r}")
