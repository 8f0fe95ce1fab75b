"""Write the report of one or more comparisons: a page, its figures as files, and the numbers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podsrl import __version__
from podsrl.extras import need
from podsrl.report.axis import headline, unit_of
from podsrl.report.figures import draw_figures
from podsrl.report.page import page
from podsrl.report.read import read_comparisons
from podsrl.report.sentences import asides, sentences
from podsrl.report.summary import summarise
from podsrl.report.table import Table, in_text
from podsrl.report.tables import overview, predictions


def write_report(
    paths: Sequence[Path],
    output: Path,
    *,
    baseline: str | None = None,
    share: float | None = None,
    seconds_per_step: Path | None = None,
) -> dict[str, Any]:
    """Write report.html, summary.json and figures/ into `output`; return what summary.json holds.

    Raises: ValueError as `read_comparisons` does and without matplotlib, nothing being written.
    """
    need("matplotlib", "a report, with its figures,")
    comparisons = read_comparisons(
        paths, baseline=baseline, share=share, seconds_per_step=seconds_per_step
    )
    summaries = [summarise(comparison) for comparison in comparisons]
    figures = [
        draw_figures(comparison, summary)
        for comparison, summary in zip(comparisons, summaries, strict=True)
    ]
    folder = output / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for summary, drawn in zip(summaries, figures, strict=True):
        summary["findings"] = sentences(summary, unit_of(summary))
        for figure in drawn:
            name = f"{_slug(summary['title'])}-{figure.name}"
            (folder / f"{name}.svg").write_text(figure.svg, encoding="utf-8")
            (folder / f"{name}.png").write_bytes(figure.png)
    result = {"podsrl": __version__, "comparisons": summaries}
    (output / "summary.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (output / "report.html").write_text(page(summaries, figures), encoding="utf-8")
    return result


def in_brief(summary: dict[str, Any]) -> str:
    """Return a comparison for a terminal: its table, and what the table does not say."""
    glance = overview([summary], [unit_of(summary)])
    table = Table(
        caption=f"{summary['title']}: accuracy over the window, and {_what(summary)}",
        head=("against", "arm", "points ahead", *glance.head[4:-2], "speed"),
        rows=[
            [base, arm, lead, *ratios, judged]
            for base, arm, _, _, *ratios, lead, judged in glance.rows
        ],
    )
    lines = [in_text(table)] if table.rows else [summary["title"]]
    if summary["predictions"]:
        lines += ["", in_text(predictions(summary)), ""]
    return "\n".join([*lines, *asides(summary), *summary["notes"]])


def _what(summary: dict[str, Any]) -> str:
    """What the ratios of the table are of: "time to 95 % of the other's best"."""
    measured = "steps" if summary["clock"] == "steps" else "time"
    against = [each["speed_up"] for each in summary["against_baseline"].values()]
    level = next((headline(found)[0] for found in against if found), "peak")
    return f"{measured} to {level.removesuffix('peak')}the other's best"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
