"""Memory of a long run."""

import os
import sys
import time

from fault_rows.case import Attempt, Row, Verdict
from fault_rows.outcome import last_line, metrics_of

NUM_STEPS = 1000
WARM_UP_STEPS = 300
LIMIT_MIB = 1.0


def grow(attempt: Attempt) -> Verdict:
    """MiB that 1,000 tiny steps add to a process's own memory, by a line through the readings."""
    import numpy
    import psutil

    changes = {"max_steps": NUM_STEPS, "save_strategy": None, "save_steps": None}
    words = attempt.words(**changes)

    def begin_afresh() -> None:
        """Pages that a fork shares become its own when touched, which would look like growth."""
        os.execv(sys.executable, [sys.executable, "-m", "podsrl.cli", *words])

    child = attempt.start(words, begin_afresh)
    process, readings, step = psutil.Process(child.pid), [], 0
    while step < NUM_STEPS - 5:
        time.sleep(0.5)
        try:
            step = len(metrics_of(attempt.run_folder))
            readings.append((step, process.memory_full_info().uss / 2**20))
        except ValueError:  # a line that is being written
            continue
        except psutil.NoSuchProcess:
            break
        if process.status() == psutil.STATUS_ZOMBIE:
            break
    ended = child.wait(600)
    if ended.status:
        return Verdict(f"status {ended.status}: {last_line(ended)}", f"after {step} steps")
    late = numpy.array([reading for reading in readings if reading[0] >= WARM_UP_STEPS])
    slope = float(numpy.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1000
    what = f"{slope:+.2f} MiB per 1,000 steps, at {late[-1, 1]:.0f} MiB"
    return Verdict(what if slope >= LIMIT_MIB else None, what)


ROWS = {"memory": Row(f"{NUM_STEPS} steps: memory grows", 1, 0, grow)}
