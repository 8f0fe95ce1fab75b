"""The report as one HTML page that needs nothing else: style and figures are inside it.

page.html.j2 lays it out. It escapes every text; the style sheet and the figures alone are marked
as markup here.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from podsrl import __version__
from podsrl.report import tables
from podsrl.report.axis import duration, over_words, unit_of
from podsrl.report.curves import STEPS, Unit
from podsrl.report.figures import Figure
from podsrl.report.sentences import hardware_in_words, in_words, sentences
from podsrl.report.theme import css_variables, inline

ABOUT_LABELS = {
    "training_seconds": "training time per run",
    "evaluate_every_seconds": "evaluated every",
    "max_steps": "optimizer steps per run",
    "evaluate_every_steps": "evaluated every",
    "evaluate_limit": "held-out questions",
    "max_completion_length": "longest answer",
    "learning_rate": "learning rate",
    "device": "hardware",
    "task_arguments": "options of the task",
    "platform": "system",
}
SOFTWARE = ("python", "podsrl", "torch", "transformers", "trl", "accelerate", "peft", "datasets")


def page(summaries: Sequence[dict[str, Any]], figures: Sequence[Sequence[Figure]]) -> str:
    """Return the page of all comparisons, the figures of each beside its numbers."""
    environment = Environment(
        loader=PackageLoader("podsrl.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    units = [unit_of(summary) for summary in summaries]
    light, dark = css_variables()
    return environment.get_template("page.html.j2").render(
        title=summaries[0]["title"] if len(summaries) == 1 else f"Arms at equal {_alike(units)}",
        lede=_lede(summaries, units),
        by_seconds=any(unit != STEPS for unit in units),
        by_steps=STEPS in units,
        light=light,
        dark=dark,
        style=Markup((files("podsrl.report") / "style.css").read_text(encoding="utf-8")),
        overview=tables.overview(summaries, units),
        sections=[
            _section(index, *parts)
            for index, parts in enumerate(zip(summaries, figures, units, strict=True), 1)
        ],
        version=__version__,
    )


def _alike(units: Sequence[Unit]) -> str:
    """What the runs of each comparison had alike."""
    return " or ".join(dict.fromkeys(map(over_words, units)))


def _lede(summaries: Sequence[dict[str, Any]], units: Sequence[Unit]) -> str:
    if len(summaries) > 1:
        return f"{len(summaries)} comparisons, each at equal {_alike(units)}."
    arms = summaries[0]["arms"].values()
    runs = _count(sum(len(arm["seeds"]) for arm in arms), "run")
    return f"{_count(len(arms), 'arm')}, {runs}, compared at equal {_alike(units)}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _section(
    index: int, summary: dict[str, Any], figures: Sequence[Figure], unit: Unit
) -> dict[str, Any]:
    fit = summary["step_seconds_fit"]
    return {
        "title": summary["title"],
        "about": _about(summary, unit),
        "notes": summary["notes"],
        "findings": sentences(summary, unit),
        "figures": [
            {
                "title": figure.title,
                "caption": figure.caption,
                "drawing": inline(figure.svg, f"c{index}-{figure.name}", figure.alt),
            }
            for figure in figures
        ],
        "predictions": tables.predictions(summary),
        "speed_ups": tables.speed_ups(summary, unit),
        "differences": tables.differences(summary, unit),
        "measures": tables.measures(summary, unit),
        "step_seconds": tables.step_seconds(summary),
        "fit": tables.step_seconds_fit(fit["fit"]) if fit["fit"] else None,
        "why_no_fit": fit["why"],
        "settings": tables.settings(summary),
    }


def _about(summary: dict[str, Any], unit: Unit) -> list[tuple[str, list[str]]]:
    """What was run, as labels and the lines beside them."""
    about = dict(summary["about"])
    software = [f"{name} {about.pop(name)}" for name in SOFTWARE if name in about]
    rows = {"arms": [_arm(name, arm) for name, arm in summary["arms"].items()]}
    rows["compared at equal"] = [over_words(unit)]
    if summary["baseline"]:
        rows["baseline"] = [summary["baseline"]]
    for key, value in about.items():
        rows[str(ABOUT_LABELS.get(key, key))] = [_about_value(key, value, unit)]
    if software:
        rows["software"] = [", ".join(software)]
    return list(rows.items())


def _about_value(key: str, value: Any, unit: Unit) -> str:
    if key in ("training_seconds", "evaluate_every_seconds"):
        return duration(float(value), unit)
    if key == "evaluate_every_steps":
        return f"{value} steps"
    if key == "max_completion_length":
        return f"{value} tokens"
    return hardware_in_words(value) if key == "device" else in_words(value)


def _arm(name: str, arm: dict[str, Any]) -> str:
    parts = [_count(len(arm["seeds"]), "run")]
    if arm["selection_rule"] and arm["num_rollouts"] != arm["num_generations"]:
        parts.insert(0, str(arm["selection_rule"]))
    if arm["num_rollouts"] is not None:
        parts.insert(0, f"n = {arm['num_rollouts']}, m = {arm['num_generations']}")
    return f"{name}: {', '.join(parts)}"


def _unbroken(html: str) -> Markup:
    """Keep a number and its unit on one line."""
    return Markup(re.sub(r"(?<=\d) (?=(?:%|h|min|s|GiB)\b|%)", "\u00a0", html))
