"""Curves from a CSV file, one row per evaluation of one run on one data set.

Columns: setting, run, hours, ans_acc_mean; and where known step, dataset, for_acc_mean,
both_acc_mean, mean_length. A setting named NAME-n-m gives n and m; settings that share NAME are
the arms of one comparison per data set.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from podsrl.report.curves import Arm, ComparisonCurves, Point, Run

REQUIRED = ("setting", "run", "hours", "ans_acc_mean")
MEASURE_OF_COLUMN = {
    "ans_acc_mean": "accuracy",
    "for_acc_mean": "format_rate",
    "both_acc_mean": "both_rate",
    "mean_length": "mean_length",
}
NAME = re.compile(r"(?P<family>.+)-(?P<n>\d+)-(?P<m>\d+)(?P<rest>-.*)?")
Table = dict[str, dict[str, dict[str, list[Point]]]]  # setting -> data set -> run -> points


def read_csv(path: Path) -> list[ComparisonCurves]:
    """Return one comparison per family of settings and data set, trained-on data sets first.

    A setting with run 0 at 0 hours alone is the untrained model, the first point of all runs; of
    several such settings none is used, because the file does not say whose they are.

    Raises: ValueError for a missing column, no rows, or a cell that is not a number.
    """
    table = _read_table(path)
    untrained = [name for name, sets in table.items() if _is_untrained(sets)]
    starts = table[untrained[0]] if len(untrained) == 1 else {}
    notes = []
    if len(untrained) > 1:
        notes.append(f"Untrained models not used, because there are several: {untrained}.")
    families: dict[str, list[str]] = defaultdict(list)
    for name in table:
        if name not in untrained:
            families[_family(name)].append(name)
    comparisons = []
    for family, names in families.items():
        for dataset in dict.fromkeys(dataset for name in names for dataset in table[name]):
            start = [point for points in starts.get(dataset, {}).values() for point in points]
            arms = [_arm(name, table[name].get(dataset, {}), start) for name in names]
            comparisons.append(
                ComparisonCurves(
                    title=f"{family}, measured on {dataset}" if dataset else family,
                    arms={arm.name: arm for arm in arms if arm.runs},
                    baseline=None,
                    about={"curves": path.name, "settings": ", ".join(names)},
                    notes=[*notes, *_short_runs(arms)],
                    transfer=not _trained_on(family, dataset),
                    paired=False,  # runs are numbered; nobody says that numbers are seeds
                )
            )
    return sorted(comparisons, key=lambda comparison: comparison.transfer)


def _read_table(path: Path) -> Table:
    table: Table = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; found {reader.fieldnames}")
        for row in reader:
            point = _point(row, f"{path}, line {reader.line_num}")
            table[row["setting"]][row.get("dataset") or ""][row["run"]].append(point)
    if not table:
        raise ValueError(f"{path}: no rows below the header")
    for sets in table.values():
        for runs in sets.values():
            for points in runs.values():
                points.sort(key=lambda point: point["seconds"] or 0.0)
    return table


def _point(row: dict[str, str], where: str) -> Point:
    def number(column: str) -> float | None:
        try:
            return float(row[column]) if row.get(column) else None
        except ValueError as error:
            raise ValueError(f"{where}: {column} is {row[column]!r}, not a number") from error

    hours = number("hours")
    if hours is None:
        raise ValueError(f"{where}: hours is empty; every row needs the hours trained")
    measures = {measure: number(column) for column, measure in MEASURE_OF_COLUMN.items()}
    return {"seconds": hours * 3600, "mark": hours * 3600, "step": number("step"), **measures}


def _is_untrained(sets: dict[str, dict[str, list[Point]]]) -> bool:
    return all(
        list(runs) == ["0"] and all(point["seconds"] == 0 for point in runs["0"])
        for runs in sets.values()
    )


def _family(setting: str) -> str:
    match = NAME.fullmatch(setting)
    return match["family"] if match else setting


def _arm(setting: str, runs: dict[str, list[Point]], start: list[Point]) -> Arm:
    match = NAME.fullmatch(setting)
    name, settings = setting, dict[str, Any](setting=setting)
    if match:
        name = f"{match['n']}/{match['m']}{match['rest'] or ''}"
        settings |= {"num_rollouts": int(match["n"]), "num_generations": int(match["m"])}
    last = max((points[-1]["seconds"] or 0.0 for points in runs.values()), default=0.0)
    return Arm(
        name=name,
        settings=settings,
        runs=[
            Run(seed=run, points=[*start, *points], finished=points[-1]["seconds"] == last)
            for run, points in runs.items()
        ],
    )


def _short_runs(arms: list[Arm]) -> list[str]:
    return [
        f"{arm.name}, run {run.seed}: ends before the others of its arm, so it is left out."
        for arm in arms
        for run in arm.runs
        if not run.finished
    ]


def _trained_on(family: str, dataset: str) -> bool:
    """Whether the family's name holds the letters that the data set's name begins with."""
    letters = re.match(r"[a-z]*", dataset.lower())
    return not dataset or (letters is not None and letters[0] in family.lower())
