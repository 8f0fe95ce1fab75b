"""The page as HTML: whatever arms and tasks are called, they are text on it."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.arms import ROWS, write_comparison
from podsrl.report.tables import Cell, Table, with_bounds
from podsrl.report.write import write_report
from podsrl.runs.folder import read_json, write_json

HOSTILE = (
    "_$x^{<script>alert(1)</script><img src=x onerror=alert(2)>\"'--> {{ 7 * 7 }} &lt; #1f66c1"
)


class Reader(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A report in which an arm, a setting, the task and the comparison have hostile names."""
    folder = tmp_path_factory.mktemp("report")
    write_comparison(folder / "mine", {"grpo": ROWS["grpo"], HOSTILE: ROWS["pods"]})
    content = read_json(folder / "mine" / "comparison.json")
    content |= {"name": HOSTILE, "task": HOSTILE}
    content["arms"][HOSTILE] = {HOSTILE: HOSTILE, "num_rollouts": 16, "num_generations": 4}
    write_json(folder / "mine" / "comparison.json", content)
    write_report([folder / "mine"], folder)
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_hostile_names_are_text(page: Reader):
    assert not {"script", "img", "b"} & page.elements
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("#", "data:,")) for value in links)
    texts = [text.replace("\u00a0", " ") for text in page.texts]
    # Title, heading, task; the arm in four tables and the head of a fifth; a setting and its value.
    assert texts.count(HOSTILE) == 3 + 4 + 1 + 2
    assert f"{HOSTILE} against grpo" in texts
    # Cut in figures, six legends and one axis; a space in front, or matplotlib would leave it out.
    assert texts.count(f" {HOSTILE[:27]}…") == 7
    labels = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert sum(HOSTILE in label for label in labels) == 7


def test_the_policy_allows_what_the_page_needs_and_no_script(page: Reader):
    (policy,) = [value for name, value in page.attributes if "default-src" in (value or "")]
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def test_rows_that_share_their_first_cell_are_one_group():
    table = Table(caption="", head=(), rows=[["a", "1"], ["a", "2"], ["b", "3"], ["a", "4"]])
    assert [[row[1] for row in group] for group in table.groups] == [["1", "2"], ["3"], ["4"]]


def test_bounds():
    found = {"value": 0.5, "low": 0.25, "high": 0.75, "ratio": 0.0, "ratio_low": 0.0}
    assert with_bounds(found, "{:.2f}".format) == Cell(text="0.50", low="0.25", high="0.75")
    assert with_bounds({**found, "low": None}, "{:.1f}".format) == Cell(text="0.5")
    never = {**found, "ratio_high": 0.0}
    assert with_bounds(never, lambda _: "never", key="ratio") == Cell(text="never")


def test_style_and_template_are_packaged():
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
        import tomllib

        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert data["podsrl.report"] == ["*.css", "*.j2"]
