"""Threads of torch soon sleep when podsrl is the command, unless the user has decided."""

import os
import subprocess
import sys

import pytest

from podsrl.cli.waiting import DECIDED


def spins(environment: dict[str, str], code: str) -> str:
    """How often a thread of GNU OpenMP looks before it sleeps, as told when torch loads it."""
    kept = {name: value for name, value in os.environ.items() if name not in DECIDED}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import torch; torch.ones(1)"],
        env={**kept, **environment, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    found = [line.split("'")[1] for line in lines if "GOMP_SPINCOUNT" in line]
    if not found:
        pytest.skip("this torch has another OpenMP, or one that does not show its settings")
    return found[0]


def test_the_command_makes_them_sleep_soon() -> None:
    assert int(spins({}, "pass")) > 100_000
    assert spins({}, "import podsrl.cli") == "3000"
    # What python -m podsrl.cli.train imports before the verb itself.
    assert spins({}, "import runpy; runpy._get_module_details('podsrl.cli.train')") == "3000"


def test_who_has_decided_is_heeded() -> None:
    assert spins({"GOMP_SPINCOUNT": "777"}, "import podsrl.cli") == "777"
    assert spins({"OMP_WAIT_POLICY": "ACTIVE"}, "import podsrl.cli") not in ("3000", "777")
