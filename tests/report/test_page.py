"""The page as HTML: whatever arms and tasks are called, they are text on it."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.arms import ROWS, write_comparison
from podsrl.report.figures import lead_figure, line_figure
from podsrl.report.read import read_comparisons
from podsrl.report.sentences import hardware_in_words, in_words
from podsrl.report.summary import summarise
from podsrl.report.table import Cell, Table, in_text, with_bounds
from podsrl.report.tables import overview
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
    # Title, heading, task; the arm in five tables and the head of a sixth; a setting and its value.
    assert texts.count(HOSTILE) == 3 + 5 + 1 + 2
    # Cut in figures: a panel, six legends and an axis; a space in front, or it would be left out.
    assert texts.count(f" {HOSTILE[:27]}…") == 8
    labels = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert sum(HOSTILE in label for label in labels) == 8


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


def test_at_a_glance_has_every_arm_that_selects_nothing_as_a_baseline(tmp_path):
    rows = {"grpo": ROWS["grpo"], "grpo-ga": ROWS["grpo"], "pods": ROWS["pods"]}
    folder = write_comparison(tmp_path / "mine", rows)
    content = read_json(folder / "comparison.json")
    content["arms"]["grpo-ga"] = {"num_rollouts": 16, "num_generations": 16}
    write_json(folder / "comparison.json", content)
    (comparison,) = read_comparisons([folder])
    summary = summarise(comparison)
    table = overview([summary], [("s", 1.0)])
    pairs = [(row[0], row[1]) for row in table.rows]
    assert pairs == [("grpo", "grpo-ga"), ("grpo", "pods"), ("grpo-ga", "pods")]
    # The curves of grpo-ga are those of grpo.
    assert summary["against_others"]["grpo-ga"]["pods"] == summary["against_baseline"]["pods"]


def test_a_table_in_text():
    rows = [
        ["grpo", "pods", Cell(text="+1.0", low="+0.5", high="+1.5")],
        ["grpo", "random", Cell(text="−2.0", told=True)],
        ["grpo-ga", "pods", "–"],
    ]
    table = Table(caption="Leads", head=("against", "arm", "points"), rows=rows)
    assert in_text(table).splitlines() == [
        "Leads",
        "against  arm     points",
        "grpo     pods    +1.0 (+0.5 to +1.5)",
        "         random  −2.0",
        "grpo-ga  pods    –",
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        ({"num_terms": 4, "max_digits": None}, "num_terms 4, max_digits –"),
        ({}, "none"),
        ([0, 1, 2, 3], "0 to 3"),
        ([0, 2, 4], "0, 2, 4"),
        ([0, 1], "0, 1"),
        (["correct", "format"], "correct, format"),
        (7e-05, "7 × 10⁻⁵"),
        (-2.5e-12, "−2.5 × 10⁻¹²"),
        (0.001, "0.001"),
        (1.0, "1"),
        ("max_reward", "max_reward"),
    ],
)
def test_settings_in_words(value, words):
    assert in_words(value) == words


def test_hardware_in_words():
    assert hardware_in_words("cpu, 1 threads") == "CPU, 1 thread"
    assert hardware_in_words("cpu, 11 threads") == "CPU, 11 threads"
    assert hardware_in_words("NVIDIA H100 80GB HBM3") == "NVIDIA H100 80GB HBM3"


def test_more_than_two_arms_have_no_bands(tmp_path):
    rows = {name: ROWS["grpo"] for name in ("grpo", "pods", "third")}
    (comparison,) = read_comparisons([write_comparison(tmp_path / "mine", rows)])
    three = line_figure(comparison, "accuracy", "Accuracy")
    assert three.caption == "Mean over runs."
    assert "PolyCollection" not in three.svg
    del comparison.arms["third"]
    two = line_figure(comparison, "accuracy", "Accuracy")
    assert two.caption == "Mean over runs, band 95 %."
    assert two.svg.count("PolyCollection") >= 2


def test_style_and_template_are_packaged():
    with (Path(__file__).resolve().parents[2] / "pyproject.toml").open("rb") as file:
        import tomllib

        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert data["podsrl.report"] == ["*.css", "*.j2"]


def test_bands_of_very_few_runs_are_cut_and_the_caption_says_so():
    def drawn(half: float) -> str:
        lead = {"at": [0.0, 60.0], "value": [0.0, 0.02], "low": [0.0, 0.02 - half]}
        lead["high"] = [0.0, 0.02 + half]
        summary = {"arms": {"grpo": {}, "pods": {}}, "baseline": "grpo"}
        summary["against_baseline"] = {"pods": {"lead": lead}}
        return lead_figure(summary, ("s", 1.0)).caption

    # The farthest mean is 2 points, so bands are drawn to 8: 2 + 5 fits, 2 + 10 does not.
    assert drawn(0.05).endswith("nothing can be told.")
    assert drawn(0.10).endswith("Bands that leave the picture are cut.")
