"""A plan from what a run has measured and logged, in the place of timed steps and a pilot."""

import math
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from podsrl.plan import tell
from podsrl.plan.fit import SHARE_OF_MEMORY, Costs, Line, Point, as_json, propose, propose_arm
from podsrl.plan.gain import advise, success_rates
from podsrl.plan.measure import NUM_WARM_UP
from podsrl.plan.noise import UNKNOWN
from podsrl.plan.pilot import Pilot
from podsrl.runs.folder import read_json, read_metrics
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts

NOT_MEASURED = replace(UNKNOWN, where="a run's files hold no gradients")
SAMPLING = ("sampling", "rewards", "selection")


def read_run(folder: Path) -> dict[str, Any]:
    """Return the settings of a run folder that has something to plan from.

    Raises: ValueError for a folder without settings or without a counted step.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is no run: there is no config.json. Name a recipe, or a folder that podsrl "
            "train or PODSTrainer wrote"
        )
    num_steps = len(read_metrics(folder))
    if num_steps <= NUM_WARM_UP:
        raise ValueError(
            f"{folder} has {num_steps} logged steps: it takes {NUM_WARM_UP + 1}, "
            "as the first is not counted; plan a recipe, or train with logging_steps 1"
        )
    settings: dict[str, Any] = read_json(folder / "config.json")
    return settings


def point_of_run(folder: Path, settings: dict[str, Any]) -> Point:
    """Return the medians of a run's logged steps, the first left out."""
    rows = read_metrics(folder)[NUM_WARM_UP:]
    return Point(
        num_rollouts=settings["num_rollouts"],
        num_kept=settings["num_generations"],
        sampling_seconds=median(sum(row[f"time/{p}_seconds"] for p in SAMPLING) for row in rows),
        update_seconds=median(row["time/update_seconds"] for row in rows),
        micro_rows=settings["per_device_train_batch_size"],
        peak_gib=max(row["memory/peak_gib"] for row in rows),
    )


def costs_of(point: Point) -> Costs:
    """Return the costs as if a step cost nothing but its rollouts: all that one size can tell.

    Larger n and m then look dearer than they are, in time and in memory.

    Example: 8 s of sampling at n = 16 and 4 s of update at m = 4 are 0.5 n + 1 m.
    """
    return Costs(
        Line(0.0, point.sampling_seconds / point.num_rollouts),
        Line(0.0, point.update_seconds / point.num_kept),
        Line(0.0, point.peak_gib / point.micro_rows),
    )


def pilot_of_run(folder: Path, num_prompts: int) -> Pilot:
    """Return the newest prompts of a run's rollout log as a pilot: of the policy as it is now.

    Raises: ValueError without a log, or where no prompt has all its rewards.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {FILE_NAME}: --pilot 0 plans from seconds alone; log_rollouts: "
            "auto or true writes it"
        )
    groups = (record["rewards"] for record in read_rollouts(path)[1] if "rewards" in record)
    newest = deque(groups, maxlen=num_prompts)
    whole = [rewards for rewards in newest if None not in rewards]
    if not whole:
        raise ValueError(
            f"none of the newest {len(newest)} prompts of {path} has all its rewards: plan a "
            "recipe, whose pilot has them, or --pilot 0"
        )
    return Pilot(
        torch.tensor(whole, dtype=torch.float64),
        NOT_MEASURED,
        len(newest),
        len(whole[0]),
        len(newest) - len(whole),
        0.0,
    )


def plan_run(
    folder: Path, num_prompts: int, memory_gib: float, *, figure: Path | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Return what `podsrl plan` prints of a run folder, and what plan.json is to hold.

    num_prompts: the newest prompts that are the pilot; 0 for a plan from seconds alone. memory_gib:
        of this machine; what the run itself took is there in any case. figure: where to draw.

    Raises: ValueError as the other functions here do.
    """
    settings = read_run(folder)
    point = point_of_run(folder, settings)
    costs, kept = costs_of(point), point.num_kept
    memory_gib = max(memory_gib, point.peak_gib / SHARE_OF_MEMORY)
    told = [
        f"{folder}: n = {point.num_rollouts}, m = {kept}, sampling {point.sampling_seconds:.2f} s, "
        f"update {point.update_seconds:.2f} s, peak memory {point.peak_gib:.2f} GiB",
        f"{tell.cost_line(costs)}, all put down to rollouts as one size tells no more",
    ]
    if not num_prompts:
        proposal = propose(costs, kept, prompts_of(settings), memory_gib)
        told += tell.proposal_lines(costs, proposal, predicted=False)
        return told, as_json([point], costs, proposal)
    pilot = pilot_of_run(folder, num_prompts)
    rates, free = success_rates(pilot), bool(settings.get("skip_dead_rows"))
    advice = advise(rates, pilot.noise, costs, kept, memory_gib, dead_rows_free=free)
    proposal = propose_arm(
        costs,
        advice.best.num_rollouts,
        advice.best.num_kept,
        prompts_of(settings),
        memory_gib,
        pays=advice.pays,
        reasons=(advice.verdict,),
    )
    if figure is not None:
        tell.draw(advice, figure)
    told.append(f"pilot: the newest {pilot.num_prompts} prompts of {pilot.num_rollouts} rollouts")
    told += tell.lines(pilot, rates, advice)
    told += tell.proposal_lines(costs, proposal, predicted=True)
    found = tell.as_json(pilot, rates, advice) | {"dead_rows_free": free}
    return told, as_json([point], costs, proposal) | found


def prompts_of(settings: dict[str, Any]) -> int:
    """Prompts of a step and process, a part of one counted as one."""
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    return math.ceil(rows / settings["num_generations"])
