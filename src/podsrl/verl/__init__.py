"""PODS on verl's trainer: import it, and verl knows the modes `pods_sync` and its two async kin.

verl loads it by itself, from the entry point `verl.plugins`. `python -m podsrl.verl` says whether
it could; docs/verl.md has the settings. Needs verl, not trl: `pip install "podsrl[verl]"`.
"""

from podsrl.verl.beside_trl import tell_verl
from podsrl.verl.trainer import (
    PodsTrainerColocateAsync,
    PodsTrainerSeparateAsync,
    PodsTrainerSync,
)

tell_verl()

__all__ = ["PodsTrainerColocateAsync", "PodsTrainerSeparateAsync", "PodsTrainerSync"]
