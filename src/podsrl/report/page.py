"""The report as one HTML page that needs nothing else: style and figures are inside it."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from podsrl import __version__
from podsrl.report.curves import Unit
from podsrl.report.figures import Figure
from podsrl.report.sentences import duration, sentences, time_unit
from podsrl.report.style import STYLE
from podsrl.report.tables import main_tables, more_tables, overview
from podsrl.report.theme import inline

ABOUT_LABELS = {
    "training_seconds": "training time per run",
    "evaluate_every_seconds": "evaluated every",
    "evaluate_limit": "held-out questions",
    "max_completion_length": "longest answer",
    "learning_rate": "learning rate",
    "device": "hardware",
    "task_arguments": "options of the task",
}
SOFTWARE = ("python", "podsrl", "torch", "transformers", "trl", "accelerate", "peft", "datasets")
HOW = """<h2>How to read this</h2>
<p>The clock counts training alone: sampling, rewards, selection and update. Lines are means over
runs, bands 95 % intervals of the mean over runs (Student's t). <em>Times as fast</em> is the time
at which the baseline's mean accuracy first reached its best, divided by the time at which the
other arm's first reached that level; on the grid of evaluations, or interpolated between them.
Its interval comes from drawing runs anew, with replacement, 10,000 times; draws in which the
level is never reached count as never. An interval that includes 1, or a difference whose interval
includes 0, tells nothing apart.</p>"""


def page(summaries: Sequence[dict[str, Any]], figures: Sequence[Sequence[Figure]]) -> str:
    """Return the page of all comparisons, the figures of each beside its numbers."""
    units = [time_unit(summary) for summary in summaries]
    title = summaries[0]["title"] if len(summaries) == 1 else "Arms at equal training time"
    glance = overview(summaries, units)
    sections = "".join(
        _section(index, *parts, alone=len(summaries) == 1)
        for index, parts in enumerate(zip(summaries, figures, units, strict=True), 1)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="lede">{_lede(summaries)}</p></header>'
        f"<main>{_unbroken(glance + sections + HOW)}</main>"
        f"<footer>podsrl {escape(__version__)} report. All numbers: summary.json beside this page."
        "</footer></body></html>\n"
    )


def _lede(summaries: Sequence[dict[str, Any]]) -> str:
    if len(summaries) > 1:
        return f"{len(summaries)} comparisons, each at equal training time."
    arms = summaries[0]["arms"].values()
    runs = _count(sum(len(arm["seeds"]) for arm in arms), "run")
    return f"{_count(len(arms), 'arm')}, {runs}, compared at equal training time."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _section(
    index: int, summary: dict[str, Any], figures: Sequence[Figure], unit: Unit, *, alone: bool
) -> str:
    follows = "".join(f"<li>{escape(text)}</li>" for text in sentences(summary, unit))
    notes = "".join(f"<li>{escape(text)}</li>" for text in summary["notes"])
    note_box = f'<h3>To know beforehand</h3><div class="notes"><ul>{notes}</ul></div>'
    heading = "" if alone else f"<h2>{escape(summary['title'])}</h2>"
    drawn = "".join(_figure(figure, f"c{index}-{figure.name}") for figure in figures)
    return (
        f'<section id="comparison-{index}">{heading}'
        f"<h3>What was run</h3>{_about(summary, unit)}{note_box if notes else ''}"
        f"<h3>What follows</h3><ul>{follows}</ul>"
        f'<h3>Figures</h3><div class="figures">{drawn}</div>'
        f"<h3>Numbers</h3>{main_tables(summary, unit)}"
        f"<details{' open' if alone else ''}><summary>More numbers: final and highest values, "
        f"seconds per step, settings</summary>{more_tables(summary, unit)}</details></section>"
    )


def _about(summary: dict[str, Any], unit: Unit) -> str:
    about = dict(summary["about"])
    software = [f"{name} {about.pop(name)}" for name in SOFTWARE if name in about]
    rows = {"arms": [_arm(name, arm) for name, arm in summary["arms"].items()]}
    if summary["baseline"]:
        rows["baseline"] = [summary["baseline"]]
    for key, value in about.items():
        rows[str(ABOUT_LABELS.get(key, key))] = [_about_value(key, value, unit)]
    if software:
        rows["software"] = [", ".join(software)]
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{'<br>'.join(map(escape, lines))}</dd>"
        for key, lines in rows.items()
    )
    return f"<dl>{items}</dl>"


def _about_value(key: str, value: Any, unit: Unit) -> str:
    if key in ("training_seconds", "evaluate_every_seconds"):
        return duration(float(value), unit)
    if key == "max_completion_length":
        return f"{value} tokens"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _arm(name: str, arm: dict[str, Any]) -> str:
    parts = [_count(len(arm["seeds"]), "run")]
    if arm["selection_rule"] and arm["num_rollouts"] != arm["num_generations"]:
        parts.insert(0, str(arm["selection_rule"]))
    if arm["num_rollouts"] is not None:
        parts.insert(0, f"n = {arm['num_rollouts']}, m = {arm['num_generations']}")
    return f"{name}: {', '.join(parts)}"


def _figure(figure: Figure, prefix: str) -> str:
    drawing = inline(figure.svg, prefix, escape(figure.alt))
    return (
        f"<figure><figcaption>{escape(figure.title)}<small>{escape(figure.caption)}</small>"
        f"</figcaption>{drawing}</figure>"
    )


def _unbroken(html: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(?:%|h|min|s|GiB)\b|%)", "\u00a0", html)
