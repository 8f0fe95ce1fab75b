"""What is predicted of a comparison before it runs: how many times as fast each arm will be.

A JSON file: `ratio`, "time" or "steps", which the numbers are ratios of; `baseline`, the arm that
they are against; and `arms`, by name `low`, `value` and `high`. Above 1 is faster.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from podsrl.runs.checks import check_names
from podsrl.runs.folder import read_json
from podsrl.runs.step_times import checked_estimate

BESIDE = "predictions.json"
FIELDS = ("ratio", "baseline", "arms")
RATIOS = ("time", "steps")


def read_predictions(
    named: str | None, folder: Path, *, arms: Sequence[str], baseline: str, unit: str
) -> dict[str, Any] | None:
    """Return the predictions of a comparison file in `folder`; None if there are none.

    They are in the file that is named, beside the comparison file or under the current folder, else
    in predictions.json beside it.

    Raises `ValueError` for a file that is not there or says something else, for arms that the
    comparison does not have, and for ratios of steps where seconds are compared.

    Example: {"ratio": "time", "baseline": "grpo", "arms": {"pods": {"low": 1.0, "value": 1.2,
    "high": 1.4}}}.
    """
    if named is not None and not isinstance(named, str):
        raise ValueError(f"predictions is {named!r}: name a JSON file")
    path = _found(named, folder)
    if path is None:
        return None
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("arms"), dict):
        raise ValueError(f"{path} has no mapping arms: see docs/compare.md")
    check_names(f"field of {path}", content, FIELDS, "see docs/compare.md")
    if content.get("ratio") not in RATIOS:
        raise ValueError(f"{path}: ratio is {content.get('ratio')!r}: choose from time, steps")
    if content["ratio"] == "steps" and unit != "steps":
        raise ValueError(f"{path}: ratio is steps, but the comparison's budget is {unit}")
    for arm in (content.get("baseline", baseline), *content["arms"]):
        if arm not in arms:
            raise ValueError(
                f"{path} predicts of {arm}: the comparison has {', '.join(arms)}; name its own "
                "file, as in predictions: FILE.json"
            )
    found = {arm: checked_estimate(f"{path}, {arm}", each) for arm, each in content["arms"].items()}
    return {
        "ratio": content["ratio"],
        "baseline": content.get("baseline", baseline),
        "arms": found,
    }


def _found(named: str | None, folder: Path) -> Path | None:
    if named is None:
        return folder / BESIDE if (folder / BESIDE).is_file() else None
    for path in (folder / named, Path(named)):
        if path.is_file():
            return path
    raise ValueError(f"predictions {named} does not exist: give a JSON file")
