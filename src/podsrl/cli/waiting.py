"""How torch's threads wait for each other: asleep, unless somebody has said otherwise.

OpenMP's threads spin at a barrier for a while before they sleep. On a machine to itself that saves
microseconds; beside other work each of them burns the time slice that the thread it waits for needs
to arrive, at every barrier anew (two threads on two busy cores: 25 -> 247 seconds a step).
"""

import os

POLICY = "OMP_WAIT_POLICY"
# The last two are GNU's and Intel's own, and stronger: who set one has decided.
DECIDED = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively() -> None:
    """Set `OMP_WAIT_POLICY` to PASSIVE; to be called before torch loads, which reads it once."""
    if not any(name in os.environ for name in DECIDED):
        os.environ[POLICY] = "PASSIVE"
