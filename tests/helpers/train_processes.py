"""podsrl train in several processes, one of which fails in the reward function of its third step.

usage: torchrun ... train_processes.py none|hang|kill|raise FLAGS OF PODSRL TRAIN
"""

import os
import signal
import sys
import time
from typing import Any

import pytest

from helpers.faulty import at_call
from podsrl.cli.train import main


def act(how: str, rewards: list[float]) -> Any:
    if how == "hang":
        time.sleep(300)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise RuntimeError("the judge is down")
    return rewards


if __name__ == "__main__":
    how = sys.argv[1]
    with pytest.MonkeyPatch.context() as patch:
        if how != "none" and os.environ.get("RANK") == "1":
            at_call(patch, 3, lambda rewards: act(how, rewards))
        sys.exit(main(sys.argv[2:]))
