"""The method, and the verbs that read files, in a process in which importing trl is an error."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.sample_rollouts import write_log

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TRL = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "trl":
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, Refused())
"""
COMMAND = WITHOUT_TRL + "from podsrl.cli import main; sys.exit(main(sys.argv[1:]))"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_block_blocks() -> None:
    assert "trl was asked for" in python(WITHOUT_TRL + "import podsrl.trl.trainer").stderr


def test_every_module_of_core_and_the_names_of_the_package() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in sorted((ROOT / "src" / "podsrl" / "core").rglob("*.py"))
    ]
    code = WITHOUT_TRL + f"import {', '.join(modules)}; from podsrl import select, RULES"
    assert python(code).returncode == 0


@pytest.mark.parametrize("verb", ["select", "report", "view"])
def test_verb(verb: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.csv").write_text("0,0,1,0.5,1\n")
    write_log(tmp_path)
    arguments = {
        "select": [str(tmp_path / "rewards.csv"), "--keep", "2"],
        "report": [str(ROOT / "benchmarks" / "arms"), "--output", str(tmp_path / "report")],
        "view": [str(tmp_path)],
    }[verb]
    ran = python(COMMAND, verb, *arguments)
    assert ran.returncode == 0, ran.stderr
