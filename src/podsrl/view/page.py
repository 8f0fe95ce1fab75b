"""The page of a run's rollouts: one HTML file that needs no network and no server.

view.html, a Jinja template, takes in view.css and view.js beside it, and the rollouts as JSON.
Everything that a model wrote reaches the page as text, never as markup.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from podsrl.runs.rollout_log import FILE_NAME, read_rollouts

DEFAULT_LIMIT = 20_000
# Of rollouts, at the default limit; a larger limit asks for more. The page around them is small.
MOST_BYTES = 23_000_000
JSON: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}


def view_page(
    run: Path, *, steps: tuple[int | None, int | None] = (None, None), limit: int = DEFAULT_LIMIT
) -> str:
    """Return the page of a run's rollouts as HTML.

    Args:
        run: a run folder, or a rollout log by itself.
        steps: first and last step to show, both included; None for no bound.
        limit: show at most about this many rollouts: whole prompts, spread evenly over the
            steps, and fewer where their texts are long: a page at the default limit stays
            below 25 MB. The page says how many it leaves out.

    Raises: ValueError without a log, without rollouts in these steps, or for a limit under 1.

    Example: `Path("view.html").write_text(view_page(Path("runs/arithmetic-smollm2")))`.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: at least 1 rollout is needed")
    log = run / FILE_NAME if run.is_dir() else run
    if not log.exists():
        raise ValueError(
            f"{run} holds no rollouts: there is no {log.name}. Runs trained with "
            "log_rollouts: auto or true write it."
        )
    header, _ = read_rollouts(log)
    sizes, num_bytes, over_steps = [], 0, OverSteps()
    for record in _groups(log, steps):
        sizes.append(len(record["rewards"]))
        num_bytes += len(_dumps(record))
        over_steps.add(record)
    if not sizes:
        raise ValueError(f"{log} has no rollouts in steps {_range_text(steps)}")
    most_bytes = MOST_BYTES * max(1.0, limit / DEFAULT_LIMIT)
    chosen = _spread(sizes, min(limit, int(sum(sizes) * most_bytes / num_bytes)))
    groups = [record for i, record in enumerate(_groups(log, steps)) if i in chosen]
    return _page(
        {
            "run": run.resolve().name,
            "about": header,
            "groups": groups,
            "numGroups": len(sizes),
            "numRollouts": sum(sizes),
            "overSteps": over_steps.columns(),
            "steps": _range_text(steps),
            "stopped": _stopped(log),
        }
    )


class OverSteps:
    """Means of each step over all its prompts, those that a page leaves out included."""

    def __init__(self) -> None:
        self._rows: dict[int, list[tuple[float | None, float, bool]]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one prompt of one step, a record of the rollout log."""
        rewards = [reward for reward in record["rewards"] if reward is not None]
        kept = [r for r, is_kept in zip(record["rewards"], record["kept"], strict=True) if is_kept]
        scored = {reward for reward in kept if reward is not None}
        row = (
            sum(rewards) / len(rewards) if rewards else None,
            len(kept) / len(record["kept"]),
            len(scored) < 2,
        )
        self._rows.setdefault(record["step"], []).append(row)

    def columns(self) -> dict[str, list[float | None]]:
        """Return step, mean reward, share kept and share of dead groups, a list of each.

        The mean reward is over prompts that have one, of each over all its rollouts. A group is
        dead where its kept rewards are all equal, or none of them is known.

        Example: rewards (0, 1) both kept and (1, 1) of which one is: 0.75, 0.75 and 0.5.
        """
        steps = sorted(self._rows)
        means: list[float | None] = []
        for step in steps:
            known = [reward for reward, _, _ in self._rows[step] if reward is not None]
            means.append(round(sum(known) / len(known), 6) if known else None)
        return {
            "step": list(steps),
            "reward": means,
            "kept": [_mean([row[1] for row in self._rows[step]]) for step in steps],
            "dead": [_mean([float(row[2]) for row in self._rows[step]]) for step in steps],
        }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 6)


def _groups(log: Path, steps: tuple[int | None, int | None]) -> Iterator[dict[str, Any]]:
    first, last = steps
    for record in read_rollouts(log)[1]:
        after = first is None or record["step"] >= first
        before = last is None or record["step"] <= last
        if after and before and "rewards" in record:
            yield record


def _stopped(log: Path) -> dict[str, Any] | None:
    """The step from which on the log's own limit kept rollouts out, and that limit."""
    return next((record for record in read_rollouts(log)[1] if "stopped" in record), None)


def _spread(sizes: list[int], limit: int) -> set[int]:
    """Positions of evenly spread groups with together about `limit` rollouts; at least one.

    Example: four groups of 10 and a limit of 20 give groups 0 and 2.
    """
    num_shown = max(1, min(len(sizes), limit * len(sizes) // sum(sizes)))
    return {i * len(sizes) // num_shown for i in range(num_shown)}


def _range_text(steps: tuple[int | None, int | None]) -> str:
    first, last = steps
    return f"{'' if first is None else first}:{'' if last is None else last}"


def _dumps(record: Any) -> str:
    """The record as the page holds it."""
    return str(htmlsafe_json_dumps(record, **JSON))


def _page(data: dict[str, Any]) -> str:
    folder = files("podsrl.view")
    page, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("view.html", "view.css", "view.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    # The filter tojson writes JSON in which no character can end the script element it stands in.
    environment.policies["json.dumps_kwargs"] = JSON
    return environment.from_string(page).render(
        style=Markup(style),
        script=Markup(script),
        # The policy lets this script run and no other, whatever a completion holds.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )
