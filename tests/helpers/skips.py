"""Only what a machine lacks is skipped: a test that is skipped for another reason fails.

`PODSRL_SKIPS` names the kinds that may be skipped here, all of them where it is not set; of a kind
left out every test must run.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

VARIABLE = "PODSRL_SKIPS"
ALLOWED = {
    "cuda": r"needs a CUDA device",
    "browser": r"needs a browser: .*",
    "data": r"needs the real data in .*",
    "bfloat16": r"needs an x86 processor with bfloat16 products of oneDNN",
    "git": r"needs a git checkout, .*",
    "openmp": r"this torch has another OpenMP, .*",
    "deepspeed": r"deepspeed is installed",
    "versions": r"flags\.json is for other versions: .*",
}


def may_be_skipped(reason: str) -> bool:
    """Whether a test may be skipped for this reason on this machine.

    Raises `ValueError` for a kind in `PODSRL_SKIPS` that is none.
    """
    kinds = os.environ.get(VARIABLE, " ".join(ALLOWED)).split()
    if unknown := [kind for kind in kinds if kind not in ALLOWED]:
        raise ValueError(f"{VARIABLE} names {unknown}: choose from {', '.join(ALLOWED)}")
    return any(re.fullmatch(ALLOWED[kind], reason) for kind in kinds)


def pytest_configure(config: pytest.Config) -> None:
    may_be_skipped("")  # a kind that is none shows before the first test


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Make a failure of each skip that is not allowed."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same where a whole file is skipped."""
    return _judged((yield))


def _judged(report: Any) -> Any:
    if not report.skipped or hasattr(report, "wasxfail"):
        return report
    path, line, reason = report.longrepr
    if not may_be_skipped(reason := reason.removeprefix("Skipped: ")):
        report.outcome = "failed"
        report.longrepr = (
            f"{path}:{line}: skipped ({reason}), which is none of the reasons allowed here: make "
            f"the test run, or add the reason to tests/helpers/skips.py or to {VARIABLE}"
        )
    return report
