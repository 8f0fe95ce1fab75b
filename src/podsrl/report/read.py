"""Comparisons from where they lie: comparison folders, run folders and CSV files of curves."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from podsrl.report.curves import Arm, ComparisonCurves, Point, Run
from podsrl.report.read_csv import read_csv
from podsrl.report.records import (
    Record,
    points_of,
    read_curve,
    read_records,
    rows_of,
    seconds_of_phases,
)
from podsrl.report.sentences import in_words
from podsrl.runs.checks import check_share
from podsrl.runs.folder import phase_seconds, read_json, read_metrics
from podsrl.runs.step_times import STEP_TIMES, read_step_times

ABOUT_RUNS = ("task", "task_arguments", "model")
ABOUT_MEASURING = (
    "evaluate_limit",
    "max_completion_length",
    "learning_rate",
    "seeds",
)
ABOUT_BUDGETS = {
    "seconds": ("training_seconds", "evaluate_every_seconds"),
    "steps": ("max_steps", "evaluate_every_steps"),
}
LEFT_OUT = ", so it is left out if another run of the arm has finished"
NOT_AN_ARM = (
    "seed",
    "data_seed",
    "output_dir",
    "run_name",
    "logging_dir",
    "resume",
    "resume_with_changes",
    "reward_timeout_seconds",
    "long_prompts",
)
"""Settings in which the runs of one arm may differ; the last three are not in older folders."""


def read_comparisons(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    share: float | None = None,
    seconds_per_step: Path | None = None,
) -> list[ComparisonCurves]:
    """Return every comparison that the paths hold, each with its baseline.

    A path is a comparison folder (comparison.json), a run folder (config.json), or a CSV of
    curves; all run folders together form comparisons, by task and model. The baseline is the arm
    named, else the one the comparison names, else the arm with n = m and the smallest n. share: of
    the baseline's best, the level that times are measured to (default: the comparison's own, or 1).
    seconds_per_step: a file of them instead of the comparison's own.

    Raises: ValueError for a path that is none of these, a CSV without the columns, curves without
    any evaluation, a baseline that no comparison has, a share that is none, and seconds per step
    where no comparison is by steps.
    """
    comparisons: list[ComparisonCurves] = []
    runs: list[Path] = []
    for path in paths:
        if path.is_file() and path.suffix == ".csv":
            comparisons += read_csv(path)
        elif (path / "comparison.json").is_file():
            comparisons.append(read_folder(path))
        elif (path / "config.json").is_file():
            runs.append(path)
        else:
            raise ValueError(
                f"{path} is no CSV file and holds neither comparison.json nor config.json: name a "
                "folder that podsrl compare or podsrl train wrote, or a CSV of curves"
            )
    comparisons += read_runs(runs) if runs else []
    if not any(arm.used for comparison in comparisons for arm in comparison.arms.values()):
        named = ", ".join(map(str, paths))
        raise ValueError(f"{named}: no evaluation in any run yet; a report needs at least one")
    comparisons = [_with_baseline(each, baseline, comparisons) for each in comparisons]
    if share is not None:
        check_share("--share", share)
        comparisons = [replace(each, share=share) for each in comparisons]
    if seconds_per_step is not None:
        comparisons = _with_step_times(comparisons, seconds_per_step)
    return comparisons


def _with_step_times(comparisons: list[ComparisonCurves], path: Path) -> list[ComparisonCurves]:
    if not any(comparison.clock == "steps" for comparison in comparisons):
        raise ValueError(
            f"--seconds_per_step is {path}, but nothing here was compared at equal steps: leave it "
            "out"
        )
    found = read_step_times(path)
    return [
        replace(each, step_times=found if each.clock == "steps" else {}) for each in comparisons
    ]


def _with_baseline(
    comparison: ComparisonCurves, wanted: str | None, all_: list[ComparisonCurves]
) -> ComparisonCurves:
    if wanted is not None and not any(wanted in other.arms for other in all_):
        names = sorted({name for other in all_ for name in other.arms})
        raise ValueError(f"--baseline is {wanted!r}: choose from {', '.join(names)}")
    named = (wanted, comparison.baseline, _smallest_without_selection(comparison.arms))
    chosen = next((name for name in named if name in comparison.arms), None)
    if chosen is None:
        return replace(comparison, baseline=None)
    arms = {chosen: comparison.arms[chosen], **comparison.arms}  # the baseline comes first
    return replace(comparison, baseline=chosen, arms=arms)


def _smallest_without_selection(arms: dict[str, Arm]) -> str | None:
    sizes = {name: arm.size for name, arm in arms.items() if arm.size is not None}
    same = {name: size for name, size in sizes.items() if size[0] == size[1]}
    return min(same, key=lambda name: same[name]) if same and len(arms) > 1 else None


def read_folder(folder: Path) -> ComparisonCurves:
    """Return the comparison in a folder that `podsrl compare` wrote or `collect`, finished or not.

    Runs that failed, have not begun or have not ended are told in the notes; a failed run is in
    no figure, an unfinished one only where no run of its arm has finished.
    """
    resolved = read_json(folder / "comparison.json")
    records = read_records(folder, resolved)
    clock, step_times = resolved.get("budget", "seconds"), folder / STEP_TIMES
    notes: list[str] = []
    arms = {
        name: Arm(name=name, settings=settings, runs=_runs(name, resolved, records, notes))
        for name, settings in resolved["arms"].items()
    }
    return ComparisonCurves(
        title=resolved.get("name") or folder.resolve().name,
        arms=arms,
        baseline=resolved.get("baseline"),
        about=_about({**_shared(arms), **resolved}, clock) | resolved.get("versions", {}),
        notes=notes,
        clock=clock,
        share=resolved.get("share", 1.0),
        step_times=read_step_times(step_times) if step_times.is_file() else {},
        predictions=resolved.get("predictions"),
    )


def _runs(
    arm: str, resolved: dict[str, Any], records: dict[tuple[str, str], Record], notes: list[str]
) -> list[Run]:
    runs, missing = [], []
    for seed in resolved["seeds"]:
        record = records.get((arm, str(seed)), {"finished": False, "curve": {}})
        if "failed" in record:
            notes.append(f"{arm}, seed {seed}: failed ({record['failed']}).")
            continue
        points = points_of(rows_of(record["curve"]))
        if not points:
            missing.append(seed)
            continue
        finished = record["finished"]
        if not finished:
            notes.append(f"{arm}, seed {seed}: not finished{LEFT_OUT}.")
        phases = record["phases"]
        runs.append(Run(seed=str(seed), points=points, phases=phases, finished=finished))
    if missing and runs:  # of an arm without any run the summary tells
        which = f"seeds {in_words(missing)}" if len(missing) > 1 else f"seed {missing[0]}"
        notes.append(f"{arm}, {which}: no evaluation yet.")
    return runs


def _shared(arms: dict[str, Arm]) -> dict[str, Any]:
    """The settings in which all arms agree."""
    first, *others = (arm.settings for arm in arms.values())
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }


def _about(settings: dict[str, Any], clock: str) -> dict[str, Any]:
    keys = (*ABOUT_RUNS, *ABOUT_BUDGETS[clock], *ABOUT_MEASURING)
    return {key: settings[key] for key in keys if settings.get(key) is not None}


def read_runs(folders: list[Path]) -> list[ComparisonCurves]:
    """Return run folders as comparisons: one per task and model, arms by their settings.

    Runs that differ in the seed alone are one arm.
    """
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for folder in folders:
        config = read_json(folder / "config.json")
        groups[str(config.get("task")), str(config.get("model"))].append(folder)
    return [_compare_runs(f"{task}, {model}", members) for (task, model), members in groups.items()]


def _compare_runs(title: str, folders: list[Path]) -> ComparisonCurves:
    by_settings: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        config = read_json(folder / "config.json")
        kept = {key: value for key, value in config.items() if key not in NOT_AN_ARM}
        if kept.get("evaluate_every_steps") is None:  # older folders do not have it
            kept.pop("evaluate_every_steps", None)
        by_settings[json.dumps(kept, sort_keys=True)].append(folder)
    labels = [_label(json.loads(text)) for text in by_settings]
    arms: dict[str, Arm] = {}
    notes: list[str] = []
    for label, (text, members) in zip(labels, by_settings.items(), strict=True):
        settings = json.loads(text)
        name = label if labels.count(label) == 1 else f"{label}, {members[0].resolve().name}"
        arms[name] = Arm(name=name, settings=settings, runs=[_single(f, notes) for f in members])
    versions = folders[0] / "versions.json"
    clock = "steps" if all(map(_is_by_steps, arms.values())) else "seconds"
    return ComparisonCurves(
        title=title,
        arms=arms,
        baseline=None,
        about=_about(_shared(arms), clock) | (read_json(versions) if versions.is_file() else {}),
        notes=notes,
        clock=clock,
    )


def _is_by_steps(arm: Arm) -> bool:
    return arm.settings.get("evaluate_every_steps") is not None


def _label(settings: dict[str, Any]) -> str:
    n, m = settings.get("num_rollouts"), settings.get("num_generations")
    size = f"{n if n is not None else m}/{m}"
    return f"GRPO {size}" if n in (None, m) else f"{settings.get('selection_rule', 'PODS')} {size}"


def _single(folder: Path, notes: list[str]) -> Run:
    seed = str(read_json(folder / "config.json").get("seed"))
    points = points_of(read_curve(folder)) or _before_and_after(folder)
    finished = (folder / "result.json").is_file()
    if not points:
        notes.append(f"{folder.name}: no evaluation.")
    elif not finished:
        notes.append(f"{folder.name}: not finished{LEFT_OUT}.")
    return Run(seed=seed, points=points, phases=seconds_of_phases(folder), finished=finished)


def _before_and_after(folder: Path) -> list[Point]:
    """The two evaluations of `podsrl train` as a curve of two points."""
    rows = read_metrics(folder)
    ends = {"before": (0.0, 0, rows[:1])}
    if rows:
        ends["after"] = (phase_seconds(rows)["training"], rows[-1]["step"], rows[-1:])
    points: list[Point] = []
    for when, (seconds, step, logged) in ends.items():
        path = folder / when / "evaluation.json"
        if path.is_file():
            found = read_json(path)
            points.append(
                {
                    "seconds": seconds,
                    "mark": None,
                    "step": step,
                    "accuracy": _value(found, "accuracy_greedy"),
                    "format_rate": _value(found, "format_rate"),
                    "mean_length": _value(found, "mean_length"),
                    "frac_cut_off": _value(found, "truncated_share"),
                    "reward": logged[0].get("reward") if logged else None,
                    "kept_reward": logged[0].get("pods/kept_reward_mean") if logged else None,
                }
            )
    return points


def _value(evaluation: dict[str, Any], key: str) -> float | None:
    figure = evaluation.get(key)
    return None if figure is None else figure["value"]
