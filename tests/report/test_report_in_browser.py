"""The report's files, and the page in a real browser: nothing is missing, nothing sticks out."""

import json
import re
from pathlib import Path

import pytest

from helpers.arms import ROWS, write_comparison
from helpers.browser import Browser, open_browser
from podsrl.report.write import write_report

FIGURES = 8
MEASURE = """(() => {
  const box = element => { const r = element.getBoundingClientRect(); return [r.width, r.height] };
  return {
    overflow: document.documentElement.scrollWidth - innerWidth,
    figures: [...document.querySelectorAll('figure svg')].map(box),
    named: [...document.querySelectorAll('figure svg')].every(
      svg => svg.getAttribute('role') === 'img' && svg.getAttribute('aria-label').length > 20),
    captions: [...document.querySelectorAll('table')].every(
      table => table.caption && table.caption.textContent.trim()),
    background: getComputedStyle(document.body).backgroundColor,
    text: getComputedStyle(document.body).color,
    tick: getComputedStyle(document.querySelector('figure svg text')).fill,
    wide: [...document.querySelectorAll('.scroll')].filter(
      box => box.scrollWidth > box.clientWidth).length,
    smallest: Math.min(...[...document.querySelectorAll('figure svg text')].map(
      text => text.getBoundingClientRect().height)),
  }
})()"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report in which an arm's name looks like HTML."""
    folder = tmp_path_factory.mktemp("report")
    rows = {"grpo": ROWS["grpo"], "<b>&": ROWS["pods"]}
    write_report([write_comparison(folder / "sums", rows)], folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


def test_page_figures_and_numbers_are_written(written: Path):
    names = {path.name for path in (written / "figures").iterdir()}
    over_time = ("lead-over-time", "accuracy-over-time", "format-rate-over-time")
    for figure in (*over_time, "accuracy-over-step", "phases"):
        assert {f"sums-{figure}.svg", f"sums-{figure}.png"} <= names
    (comparison,) = json.loads((written / "summary.json").read_text())["comparisons"]
    assert "2.25 times as fast" in comparison["findings"][0]


def test_the_page_needs_nothing_else(written: Path):
    page = (written / "report.html").read_text()
    assert "<b>" not in page
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", page)
    assert "@import" not in page
    ids = re.findall(r"\bid=\"([^\"]+)", page)
    assert len(ids) == len(set(ids))
    assert all(f'id="{used}"' in page for used in re.findall(r"url\(#([^)]+)\)", page))


def test_the_first_figure_is_the_difference(written: Path):
    page = (written / "report.html").read_text()
    titles = re.findall(r"<figcaption>(.*?)<small>", page)
    assert titles[0] == "Accuracy ahead of grpo&#39;s over training time"
    # ROWS: 0.80, 0.82, 0.78 minus 0.60, 0.62, 0.58 at the end.
    assert "Points ahead of grpo: &lt;b&gt;&amp; ends at +20.0." in page


def brightness(color: str) -> float:
    """0 for black, 255 for white, of rgb(r, g, b)."""
    parts = color[color.index("(") + 1 : color.index(")")].split(",")
    return sum(float(part) for part in parts[:3]) / 3


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(browser: Browser, written: Path, tmp_path: Path, width: int, scheme: str):
    page = browser.open(written / "report.html", width=width, scheme=scheme)
    assert page.errors == []
    found = page.evaluate(MEASURE)
    assert found["overflow"] <= 0
    assert len(found["figures"]) == FIGURES
    for drawn_width, drawn_height in found["figures"]:
        assert drawn_width > 250
        assert drawn_height > 150
    assert found["named"]
    assert found["captions"]
    assert found["wide"] == 0  # not even inside a table's own box
    assert found["smallest"] >= 8  # pixels: text in figures stays readable on a phone
    dark = scheme == "dark"
    assert (brightness(found["background"]) < 60) == dark
    for ink in (found["text"], found["tick"]):
        assert abs(brightness(ink) - brightness(found["background"])) > 80
    assert page.screenshot(tmp_path / "page.png", whole=False).stat().st_size > 20_000


def test_no_script_runs_on_the_page(browser: Browser, written: Path):
    page = browser.open(written / "report.html", width=1280)
    attempt = """(() => {
      const script = document.createElement('script');
      script.textContent = "document.title = 'it ran'";
      document.body.append(script);
      return document.title;
    })()"""
    assert page.evaluate(attempt) == "sums"
    assert len(page.errors) == 1
    assert "Content Security Policy" in page.errors[0]
