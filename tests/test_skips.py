"""A test that is skipped for no reason allowed fails the run, whoever skipped it and however."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.skips import ALLOWED, VARIABLE, may_be_skipped

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest

@pytest.mark.skip(reason="needs a CUDA device")
def test_on_a_gpu(): pass

def test_in_a_browser():
    pytest.skip("needs a browser: chrome on PATH, or PODSRL_BROWSER")

@pytest.mark.skipif(True, reason="today is Wednesday")
def test_by_mark(): pass

def test_in_its_body():
    pytest.skip("cannot be")

@pytest.fixture
def nothing():
    pytest.skip("not here")

def test_by_fixture(nothing): pass

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    assert False

def test_that_runs(): pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skips")
    (folder / "test_each.py").write_text(TESTS)
    (folder / "test_whole.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    return folder


@pytest.mark.parametrize(
    ("kinds", "more", "workers"),
    [(None, set(), ()), ("cuda data", {"test_in_a_browser"}, ("-n1",))],
)
def test_what_is_skipped_for_no_reason_allowed_fails(
    folder: Path, kinds: str | None, more: set[str], workers: tuple[str, ...]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT / "tests")} | ({VARIABLE: kinds} if kinds else {})
    command = [sys.executable, "-m", "pytest", "-p", "helpers.skips", "-rA", "--tb=short", *workers]
    done = subprocess.run(
        [*command, "test_each.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    failed = set(re.findall(r"^(?:FAILED|ERROR) test_each.py::(\w+)", done.stdout, re.M))
    assert failed == {"test_by_mark", "test_in_its_body", "test_by_fixture"} | more, done.stdout
    assert done.returncode == 1 and "skipped (cannot be), which is none of" in done.stdout
    assert "1 passed" in done.stdout and "1 xfailed" in done.stdout


def test_a_file_that_is_skipped_whole_fails(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-p", "helpers.skips", "test_whole.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no_such_module" in done.stdout


def test_a_kind_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cuda moon")
    with pytest.raises(ValueError, match=r"PODSRL_SKIPS names \['moon'\]: choose from cuda"):
        may_be_skipped("needs a CUDA device")


def test_ci_allows_fewer_than_all() -> None:
    (kinds,) = re.findall(rf'export {VARIABLE}="(.*)"', (ROOT / ".ci/run").read_text())
    assert set(kinds.split()) < set(ALLOWED)
