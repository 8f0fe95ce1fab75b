"""Read comparisons from comparison folders, single run folders and CSV files of curves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from podsrl.report.curves import Arm, ComparisonCurves
from podsrl.report.read import read_folder, read_runs
from podsrl.report.read_csv import read_csv


def read_comparisons(
    paths: Sequence[Path], *, baseline: str | None = None
) -> list[ComparisonCurves]:
    """Return every comparison that the paths hold, each with its baseline.

    A path is a comparison folder (comparison.json), a run folder (config.json), or a CSV of
    curves; all run folders together form comparisons, by task and model. The baseline is the arm
    named, else the one the comparison names, else the arm with n = m and the smallest n.

    Raises: ValueError for a path that is none of these, a CSV without the columns, curves without
    any evaluation, and a baseline that no comparison has.
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
    return [_with_baseline(comparison, baseline, comparisons) for comparison in comparisons]


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
