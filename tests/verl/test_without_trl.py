"""podsrl.verl needs no trl: a clean process in which importing it is an error."""

import subprocess
import sys

WITHOUT_TRL = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "trl":
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, Refused())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TRL + code]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_block_blocks() -> None:
    assert "trl was asked for" in run("import trl").stderr


def test_trainer_and_check_run() -> None:
    ran = run("import podsrl.verl, podsrl.verl.__main__ as check; check.main()")
    assert ran.returncode == 0, ran.stderr
    modes = ran.stdout.splitlines()[-1]
    assert modes == "trainer modes  pods_sync, pods_colocate_async, pods_separate_async"
