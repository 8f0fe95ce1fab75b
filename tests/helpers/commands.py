"""Runs this Python on a script or module, in one process or in several, and sees it succeed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.forked import run_together

TESTS = Path(__file__).resolve().parents[1]


def run_python(*words: object, cwd: Path, **environment: str) -> str:
    """What `python WORDS` printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def in_processes(script: str, num_processes: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts tests/helpers/SCRIPT in gloo processes, and its environment.

    torchrun, because `accelerate launch --cpu --num_processes 2` starts a single process where no
    MPI is installed (accelerate 1.15).
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(num_processes), str(TESTS / "helpers" / script)]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return command, {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def launch(
    script: str, *words: object, num_processes: int = 2, timeout_seconds: float = 800
) -> None:
    """Run tests/helpers/SCRIPT with these words in gloo processes, to a good end."""
    with tempfile.TemporaryDirectory() as folder:
        status, shown = run_together(
            [TESTS / "helpers" / script, *words],
            num_processes,
            Path(folder),
            timeout_seconds=timeout_seconds,
        )
    assert status == 0, shown[-3000:]
