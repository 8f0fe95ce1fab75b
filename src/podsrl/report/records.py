"""What a report reads of one run of a comparison, as one line: its folder, or a line of runs.jsonl.

A record has `finished`, `phases` (mean seconds per step of each phase), `curve` (the columns
of curve.jsonl, key by key) and, where they were asked for, `metrics`; that of a failed run has
`failed` alone, the reason in words.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podsrl.phases import PHASES
from podsrl.plugins import by_file_name
from podsrl.report.curves import MEASURES, Point
from podsrl.runs.folder import phase_seconds, read_json, read_metrics, write_json
from podsrl.runs.json_lines import read_lines, rewrite_lines
from podsrl.runs.step_times import STEP_TIMES

FILE_NAME = "runs.jsonl"
Record = dict[str, Any]


def read_records(folder: Path, resolved: dict[str, Any]) -> dict[tuple[str, str], Record]:
    """Return the records of a comparison folder by arm and seed, those of runs not begun left out.

    A run that has a folder is read from it; runs.jsonl speaks for the others, so that an old
    collection beside runs that went on does not hide what they did.

    Raises: ValueError for a line of runs.jsonl that is not JSON or names no arm and seed.
    """
    found = _lines(folder / FILE_NAME)
    for arm in resolved["arms"]:
        for seed in resolved["seeds"]:
            run = folder / arm / f"seed-{seed}"
            if run.is_dir():
                found[arm, str(seed)] = _record(run)
    return found


def collect(folder: Path, target: Path, metrics: Sequence[str] = ()) -> Path:
    """Write what a report reads of a comparison folder into `target`; return its runs.jsonl.

    `target` then holds comparison.json, runs.jsonl, one line a run, and seconds_per_step.json where
    steps were timed; and `podsrl report` makes the same report of it as of `folder`, to the last
    digit: that is how a comparison is kept in a repository. Own code is named by its files' names
    there, without the folders of this machine.

    metrics: keys of metrics.jsonl that are to be kept too, of the runs that have them: at each
        evaluation the mean over the steps since the one before (`mean_metrics`).

    Raises: ValueError for a folder without comparison.json, and for a metric that no run has.
    """
    if not (folder / "comparison.json").is_file():
        raise ValueError(
            f"{folder} holds no comparison.json: only a folder that podsrl compare wrote can be "
            "collected"
        )
    resolved = read_json(folder / "comparison.json")
    records = read_records(folder, resolved)
    if metrics:
        _add_metrics(folder, records, metrics)
    lines = [
        {"arm": arm, "seed": seed, **record}
        for arm in resolved["arms"]
        for seed in resolved["seeds"]
        if (record := records.get((arm, str(seed)))) is not None
    ]
    if target.resolve() != folder.resolve():
        # A comparison without a name of its own is called as its folder, and this is another.
        named = {"name": folder.resolve().name, **resolved}
        arms = {arm: by_file_name(settings) for arm, settings in resolved["arms"].items()}
        write_json(target / "comparison.json", {**named, "arms": arms})
        if (folder / STEP_TIMES).is_file():
            write_json(target / STEP_TIMES, read_json(folder / STEP_TIMES))
    rewrite_lines(target / FILE_NAME, lines)
    return target / FILE_NAME


def mean_metrics(
    rows: Sequence[Mapping[str, Any]], steps: Sequence[int], names: Sequence[str]
) -> dict[str, list[float | None]]:
    """Mean of each metric over the logged steps since the evaluation before, per evaluation.

    rows: of metrics.jsonl; steps: at which the run was evaluated. None where no row of these steps
    has the metric; a metric that no row has at all is left out.

    Example: values 1, 2 and 6 of steps 1, 2 and 3, evaluated at 0, 2 and 4: None, 1.5 and 6.
    """
    found: dict[str, list[float | None]] = {}
    for name in names:
        of_step = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        means: list[float | None] = []
        for before, step in zip((-1, *steps), steps, strict=False):
            values = [value for at, value in of_step if before < at <= step]
            means.append(sum(values) / len(values) if values else None)
        if of_step:
            found[name] = means
    return found


def points_of(rows: list[dict[str, Any]]) -> list[Point]:
    """The evaluations of a curve's rows, in order of training seconds."""
    points: list[Point] = [
        {
            "seconds": row["training_seconds"],
            "mark": row.get("mark_seconds"),
            "step": row["step"],
            **{measure: row.get(measure) for measure in MEASURES},
        }
        for row in rows
    ]
    return sorted(points, key=lambda point: point["seconds"] or 0.0)


def rows_of(curve: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The rows of a curve that is held as columns.

    Example: {"step": [0, 5], "accuracy": [0.2, 0.3]} has {"step": 0, "accuracy": 0.2} and
    {"step": 5, "accuracy": 0.3}.
    """
    return [dict(zip(curve, row, strict=True)) for row in zip(*curve.values(), strict=True)]


def read_curve(run: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's curve.jsonl; none without the file."""
    return list(read_lines(run / "curve.jsonl"))


def seconds_of_phases(run: Path) -> dict[str, float]:
    """Seconds per step and phase: of the metrics, or of the result where these were not kept."""
    rows, result = read_metrics(run), run / "result.json"
    if rows:
        seconds, steps = phase_seconds(rows), rows[-1]["step"]
    elif result.is_file():
        found = read_json(result)
        seconds, steps = found.get("seconds", {}), found.get("steps")
    else:
        return {}
    return {key: seconds[key] / steps for key in PHASES if steps and key in seconds}


def _add_metrics(
    folder: Path, records: dict[tuple[str, str], Record], names: Sequence[str]
) -> None:
    known: set[str] = set()
    for (arm, seed), record in records.items():
        run = folder / arm / f"seed-{seed}"
        if not run.is_dir() or "curve" not in record:
            continue
        rows = read_metrics(run)
        known.update(*rows)
        record["metrics"] = mean_metrics(rows, record["curve"]["step"], names)
    if missing := [name for name in names if name not in known]:
        raise ValueError(
            f"no run of {folder} logged {missing[0]}: choose from what metrics.jsonl holds, "
            f"{', '.join(sorted(known)) or 'which no run has'}"
        )


def _record(run: Path) -> Record:
    if (run / "failed.json").is_file():
        return {"failed": _reason(read_json(run / "failed.json"))}
    rows = read_curve(run)
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key) for row in rows] for key in keys}
    return {
        "finished": (run / "result.json").is_file(),
        "phases": seconds_of_phases(run),
        # A measure that the task does not have is null in every row: its column says nothing.
        "curve": {key: column for key, column in columns.items() if column != [None] * len(rows)},
    }


def _reason(failure: dict[str, Any]) -> str:
    """Exit status and the last line that the run printed."""
    lines = [line for line in failure.get("last_lines", ()) if line.strip()]
    last = f": {lines[-1].strip()[:300]}" if lines else ""
    return f"exit status {failure.get('exit_status')}{last}"


def _lines(path: Path) -> dict[tuple[str, str], Record]:
    found: dict[tuple[str, str], Record] = {}
    for number, record in enumerate(read_lines(path), 1):
        if not {"arm", "seed"} <= set(record):
            raise ValueError(
                f"{path}, line {number} does not name arm and seed: write the file anew with "
                "podsrl report FOLDER --collect"
            )
        found[record.pop("arm"), str(record.pop("seed"))] = record
    return found
