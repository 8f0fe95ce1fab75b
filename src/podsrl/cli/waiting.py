"""How torch's threads wait for each other: briefly awake, then asleep, unless somebody has decided.

GNU OpenMP's threads look 300,000 times whether the others are there before they sleep. On a machine
to itself that saves the time of waking up, at every one of many barriers; beside other work each
burns the time slice that the thread it waits for needs to arrive. A hundredth of it keeps most of
the one and loses little of the other (benchmarks/waiting.json).
"""

import os

SPINCOUNT = "GOMP_SPINCOUNT"
NUM_LOOKS = 3000
# Who set one of these has decided.
DECIDED = (SPINCOUNT, "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def wait_briefly() -> None:
    """Set `GOMP_SPINCOUNT`; to be called before torch loads, which reads it once."""
    if not any(name in os.environ for name in DECIDED):
        os.environ[SPINCOUNT] = str(NUM_LOOKS)
