"""Seconds and memory of real training steps at chosen n and m."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from podsrl.plan.fit import Point
from podsrl.runs.folder import read_metrics
from podsrl.runs.settings import parse_settings
from podsrl.runs.training import prepare_run, run_training
from podsrl.sampling.memory import free_bytes
from podsrl.trl.clock import peak_memory_gib, reset_peak_memory
from podsrl.trl.config import PODSConfig

# A step with no learning: the policy, and so the lengths of its rollouts, stay as they are.
MEASURING = {
    "learning_rate": 0.0,
    "evaluate_limit": 0,
    "training_seconds": None,
    "evaluate_every_seconds": None,
    "evaluate_every_steps": None,
    "save_model": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "log_rollouts": "false",
    "report_to": "none",
    "resume": False,
    "fast_sampling": True,
    "packed_update": True,
    # Whether a step has dead rows is chance: c is what a live one costs.
    "skip_dead_rows": False,
}
NUM_WARM_UP = 1


@dataclass(frozen=True)
class Layout:
    """What the recipe says of a step on one process: n, m, prompts and micro-batches."""

    num_rollouts: int
    num_kept: int
    num_prompts: int
    num_micro_batches: int


def layout(config: PODSConfig) -> Layout:
    """Prompts per step and per process, from the recipe's batch sizes.

    Raises `ValueError` when a process does not train on whole groups.
    """
    micro_batches = config.gradient_accumulation_steps
    rows = config.per_device_train_batch_size * micro_batches
    if rows % config.num_generations:
        raise ValueError(
            f"a step trains on {rows} rollouts per process, which is no multiple of "
            f"num_generations = {config.num_generations}: plan needs whole groups"
        )
    assert config.num_rollouts is not None
    num_prompts = rows // config.num_generations
    return Layout(config.num_rollouts, config.num_generations, num_prompts, micro_batches)


def skips_dead_rows(recipe: Mapping[str, Any]) -> bool:
    """Whether training with packed updates would leave dead rows out, n = m included.

    Example: a recipe with beta 0 does, one with beta 0.1 does not, nor one that says
    skip_dead_rows: false.
    """
    return bool(parse_settings({**recipe, "packed_update": True})[1].skip_dead_rows)


def settings_at(
    recipe: Mapping[str, Any],
    plan: Layout,
    num_rollouts: int,
    num_kept: int,
    *,
    num_steps: int,
) -> dict[str, Any]:
    """The recipe with this n and m and as many prompts per step, to measure and not to learn."""
    rows = plan.num_prompts * num_kept
    parts = plan.num_micro_batches if rows % plan.num_micro_batches == 0 else 1
    return {
        **recipe,
        **MEASURING,
        "num_rollouts": num_rollouts,
        "num_generations": num_kept,
        "per_device_train_batch_size": rows // parts,
        "gradient_accumulation_steps": parts,
        "max_steps": NUM_WARM_UP + num_steps,
    }


def measure(settings: Mapping[str, Any]) -> Point:
    """Train for `max_steps` steps in a folder that is thrown away; the first is not counted."""
    with TemporaryDirectory() as folder:
        parsed = parse_settings({**settings, "output_dir": str(Path(folder) / "run")})
        run = prepare_run(*parsed, Console(quiet=True))
        device = torch.device(run.config.device)
        reset_peak_memory(device)
        run_training(run)
        rows = read_metrics(run.folder)[NUM_WARM_UP:]
    sampling = [
        sum(row[f"time/{phase}_seconds"] for phase in ("sampling", "rewards", "selection"))
        for row in rows
    ]
    return Point(
        num_rollouts=int(run.config.num_rollouts or 0),
        num_kept=run.config.num_generations,
        sampling_seconds=median(sampling),
        update_seconds=median(row["time/update_seconds"] for row in rows),
        micro_rows=run.config.per_device_train_batch_size,
        peak_gib=peak_memory_gib(device),
    )


def measure_rounds(
    recipe: Mapping[str, Any],
    plan: Layout,
    pairs: Sequence[tuple[int, int]],
    *,
    num_steps: int,
    at_least_seconds: float,
) -> Iterator[Point]:
    """Measure the pairs in turn, there and back, until the seconds have passed.

    In turn, so that a machine that slows down slows all of them, and there and back, so that none
    is always first. The first trainer of a process is slower than the next, so one is not counted.
    """
    measure(settings_at(recipe, plan, *pairs[0], num_steps=1))
    start = time.perf_counter()
    for turn in itertools.count():
        if turn and time.perf_counter() - start >= at_least_seconds:
            return
        for num_rollouts, num_kept in pairs if turn % 2 == 0 else reversed(pairs):
            yield measure(settings_at(recipe, plan, num_rollouts, num_kept, num_steps=num_steps))


def memory_gib(device: torch.device) -> float:
    """Memory that training may count on: the whole GPU, or what is free beside this process."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return free_bytes(device) / 2**30 + peak_memory_gib(device)
