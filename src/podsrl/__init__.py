"""Policy Optimization with Down-Sampling: sample many rollouts, update on the few that matter."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from podsrl.core.select import RULES, select
    from podsrl.trl.config import PODSConfig
    from podsrl.trl.trainer import PODSTrainer

__all__ = ["RULES", "PODSConfig", "PODSTrainer", "select"]
__version__ = "0.1.0"

_LAZY = {
    "RULES": "podsrl.core.select",
    "select": "podsrl.core.select",
    "PODSConfig": "podsrl.trl.config",
    "PODSTrainer": "podsrl.trl.trainer",
}


def __getattr__(name: str) -> Any:
    """Load on first use: importing podsrl loads neither trl nor torch.

    The command decides how torch's threads wait before torch is there, and answers --help at once.
    """
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'podsrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
