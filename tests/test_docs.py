"""What README and docs point to exists: links, paths, dotted names, and a letter for every axis."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# LOG.md tells of files as they were called when an entry was written.
CURRENT = [page for page in PAGES if page.name != "LOG.md"]
FOLDERS = "src/podsrl|docs|benchmarks|recipes|examples|tests"
# Not a longer path's end, and not what a command is told to write.
PATH = re.compile(rf"(?<![\w./-])(?<!--output )((?:{FOLDERS})/[\w./*-]*[\w/*])")
DOTTED = re.compile(r"(?<![\w./-])podsrl(?:\.[A-Za-z_]\w*)+")


def text_of(page: Path) -> str:
    """The page; of CHANGELOG.md without the column of old paths, which are gone."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.M) if page.name == "CHANGELOG.md" else text


def anchors_of(page: Path) -> set[str]:
    """The names under which headings of the page can be linked, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def resolves(dotted: str) -> bool:
    """Whether the name is a module or a member of one.

    tests/verl imports what is in podsrl.verl, which needs verl; here its files have to do.
    """
    parts = dotted.split(".")
    if parts[1:2] == ["verl"]:
        return (ROOT / "src" / Path(*parts)).with_suffix(".py").exists() or len(parts) == 2
    for cut in range(len(parts), 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # the module is there, and what it imports is not
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_paths_exist(page: Path) -> None:
    for path in PATH.findall(text_of(page)):
        assert list(ROOT.glob(path)), path


def test_paths_in_the_code_exist() -> None:
    for folder in ("src", "recipes", "examples"):
        for source in [*ROOT.glob(f"{folder}/**/*.py"), *ROOT.glob(f"{folder}/**/*.yaml")]:
            for path in PATH.findall(source.read_text(encoding="utf-8")):
                assert list(ROOT.glob(path)), f"{source.relative_to(ROOT)} names {path}"


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_dotted_names_resolve(page: Path) -> None:
    for name in DOTTED.findall(text_of(page)):
        assert resolves(name), name


def test_these_tests_see_what_is_wrong() -> None:
    assert PATH.findall("(src/podsrl/core/rules.py). docs/x-y.md, --output docs/new.md") == [
        "src/podsrl/core/rules.py",
        "docs/x-y.md",
    ]
    assert DOTTED.findall("`podsrl.select(r)`, podsrl.core.rules.RULES.") == [
        "podsrl.select",
        "podsrl.core.rules.RULES",
    ]
    assert resolves("podsrl.core.rules.RULES") and not resolves("podsrl.core.rules.none")
    assert not resolves("podsrl.rollout") and not resolves("podsrl.rollout.sample")


def test_the_choice_in_a_loop_of_ones_own() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import torch\n.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(script, names)
    rows, advantages = names["chosen"].kept_rows_B.tolist(), names["chosen"].advantages_B
    assert len(rows) == 4 and {2, 6} <= set(rows) and sum(row < 4 for row in rows) == 2
    # Right are rows 2, 4, 5 and 7; a pair's mean is 1/2, its deviation sqrt(1/2).
    signs = [1 if row in {2, 4, 5, 7} else -1 for row in rows]
    assert advantages.tolist() == pytest.approx([0.707 * sign for sign in signs], abs=1e-3)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^- \[[^]]+\]\(([^)]+)\)", index, re.M))
    pages = {page.name for page in ROOT.glob("docs/*.md")}
    assert pages - {"index.md"} <= listed
    in_site = set(re.findall(r": ([a-z_]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert pages == in_site


def axis_letters() -> set[str]:
    """Every capital letter that ends a name of a tensor in src and examples, as in `x_PN`."""
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*.py")]
    found = set()
    for source in sources:
        for suffix in re.findall(r"\b[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)\b", source.read_text()):
            found |= set(re.sub(r"\d", "", suffix))
    return found


def test_every_axis_letter_is_explained() -> None:
    page = (ROOT / "docs" / "letters.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| ([A-Z])\b", page, re.M))
    assert axis_letters() <= explained, sorted(axis_letters() - explained)
    assert explained <= axis_letters(), sorted(explained - axis_letters())
