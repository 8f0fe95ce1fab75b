"""docs/methods.md, the papers: each names words, commands and tests that exist, or what is missing.

A cell may shorten a test's name to its end, as in `..._at_alpha_one_...` or `test_rbrm_limits`.
"""

import re
from pathlib import Path

import pytest

from podsrl.cli import VERBS
from podsrl.core.advantage import ESTIMATORS
from podsrl.core.objectives import OBJECTIVES
from podsrl.runs.settings import setting_names
from podsrl.tasks.majority import MAJORITY

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
PAPERS = (
    "2507.08068",  # QRPO
    "2505.20686",  # A*-PO
    "2503.19612",  # AGRO
    "2404.16767",  # REBEL
    "2310.04363",  # GFlowNet fine-tuning
    "2505.07527",  # KRPO
    "2407.20230",  # SAPG
    "2404.11999",  # TDPO
    "2408.07471",  # BMC
    "2503.10093",  # RBRM
    "2501.01821",  # SDPO
    "2505.19000",  # VerIPO
    "2504.00762",  # ModelSwitch
    "2403.19279",  # RLP
    "2305.03623",  # conformal quantile regression
    "2503.21720",  # Collab
    "2409.14178",  # DAFM
)
TESTS = {
    name
    for file in (ROOT / "tests").glob("**/test_*.py")
    for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.M)
}
VALUES = {"objective": {*OBJECTIVES, "grpo"}, "advantage": {*ESTIMATORS, "krpo"}}
# A head of `podsrl probe` is a reward as `probe:HEAD`.
WORDS = {*OBJECTIVES, *ESTIMATORS, *setting_names(), MAJORITY, "probe"}


def rows() -> dict[str, list[str]]:
    """The cells of each paper's row, by the paper's number."""
    table = PAGE.split("\n## The papers\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {re.findall(r"\d{4}\.\d{5}", each[0])[0]: each for each in cells}


def is_word(text: str) -> bool:
    """Whether what a cell writes as code can be said to podsrl, as a setting, word or command."""
    if text.startswith("podsrl "):
        verb, *flags = text.split()[1:]
        files = (ROOT / "src" / "podsrl" / "cli").glob("*.py")
        known = "".join(file.read_text(encoding="utf-8") for file in files)
        return verb in VERBS and all(f'"{flag}"' in known for flag in flags if flag[0] == "-")
    name, _, value = text.partition(":")
    words = re.findall(r"\w+", value)
    if name in VALUES and words:
        return set(words) <= VALUES[name]
    return name in WORDS


def names_a_test(text: str) -> bool:
    """Whether a test is called so, or ends or goes on so where dots stand for the rest."""
    pattern = re.escape(text).replace(re.escape("..."), r"\w*")
    return any(re.fullmatch(pattern, name) for name in TESTS)


def test_every_paper_has_a_row_and_every_row_all_cells() -> None:
    found = rows()
    assert sorted(found) == sorted(PAPERS)
    assert [paper for paper, cells in found.items() if len(cells) != 5] == []


@pytest.mark.parametrize("paper", PAPERS)
def test_a_row_says_what_there_is_or_why_not(paper: str) -> None:
    _, here, tested, measured, missing = rows()[paper]
    if here == "not here":
        assert len(missing.split()) > 5, "a reason"
        return
    words = re.findall(r"`([^`]+)`", here)
    examples = re.findall(r"\[(examples/\w+\.py)\]", here)
    assert words or examples, "by which word or command?"
    assert not [word for word in words if not is_word(word)]
    assert all((ROOT / example).exists() for example in examples)
    tests = re.findall(r"`([\w.]+)`", tested)
    paths = re.findall(r"tests/[\w./]+[\w/]", tested)
    assert tests or paths, "which test?"
    assert not [name for name in tests if not names_a_test(name)]
    assert all((ROOT / path).exists() for path in paths)
    assert measured and missing, "which figure, and what is not here?"
    if "partly" in here:
        assert ":" in missing or len(missing.split()) > 8, "partly without its reason"


def test_a_rows_figure_is_that_of_the_table() -> None:
    """Of each objective and estimator of benchmarks/papers: its end, and that minus pods."""
    table = PAGE.split("<!-- table: papers -->\n")[1].split("<!-- end -->")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    ends = {cells[0]: cells[2].replace(", ", " %, ", 1) for cells in lines[2:]}
    told = {}
    for _, here, _, measured, _ in rows().values():
        names = re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", here)))
        told |= {name: (ends[name], measured) for name in names if name in ends}
    assert set(told) == set(ends) - {"(at the start)", "pods", "rloo", "dpo"}  # of no paper's row
    assert [name for name, (end, measured) in told.items() if end not in measured] == []


def test_this_test_sees_what_is_wrong() -> None:
    right = ["objective: qrpo", "tdpo2", "reward_funcs: [majority]", "podsrl evaluate --switch"]
    assert all(map(is_word, right))
    wrong = [
        "objective: none",
        "tdpo3",
        "reward_func: [majority]",
        "podsrl eval",
        "podsrl tune --x",
    ]
    assert not any(map(is_word, wrong))
    assert names_a_test("test_rbrm_limits") and names_a_test("..._limits")
    assert not names_a_test("test_rbrm") and not names_a_test("..._limits_of_nobody")
