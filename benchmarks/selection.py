"""Time of max-variance selection beside a per-group loop and a plain batched sort-and-scan.

    python benchmarks/selection.py [--quick] [--output benchmarks/selection.json]

All methods take the same float32 rewards in one run, alternating; medians over repeats.  The
kept variance of each is compared with the best split found in float64.  The loop runs on a few
groups and its time is scaled to all of them.  Time per reward is set against reading the rewards
once (their sum).
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from podsrl import select

KEEP = 16
# From many short groups to one long one; the single groups give the growth in n.
SHAPES = [(65_536, 64), (16_384, 256), (4_096, 1_024), (256, 16_384), (1, 100_000)]
SHAPES += [(1, 1_000_000), (1, 10_000_000)]
QUICK_SHAPES = [(1_024, 64), (64, 1_024), (1, 100_000)]


def group_loop(rewards_PN: Tensor, keep: int) -> Tensor:
    """Select group by group: sort, then ask for the variance of each split, one after another."""
    kept = []
    for rewards_N in rewards_PN:
        descending_N = rewards_N.argsort(descending=True)
        best_variance, best_M = -1.0, descending_N[:keep]
        for num_top in range(keep):
            tried_M = torch.cat([descending_N[:num_top], descending_N[num_top - keep :]])
            variance = rewards_N[tried_M].var().item()
            if variance > best_variance:
                best_variance, best_M = variance, tried_M
        kept.append(best_M)
    return torch.stack(kept)


def sort_and_scan(rewards_PN: Tensor, keep: int) -> Tensor:
    """Select all groups at once: sort all of n, prefix sums, all splits, gather."""
    sorted_PN, order_PN = rewards_PN.sort(dim=1)
    centred_PN = sorted_PN.double() - sorted_PN.double().mean(dim=1, keepdim=True)
    zero_P1 = centred_PN.new_zeros(len(centred_PN), 1)
    sums_PN = torch.cat([zero_P1, centred_PN.cumsum(1)], dim=1)
    squares_PN = torch.cat([zero_P1, centred_PN.square().cumsum(1)], dim=1)
    num_low_K = torch.arange(keep + 1, device=rewards_PN.device)
    first_high_K = rewards_PN.shape[1] - keep + num_low_K
    sums_PK = sums_PN[:, num_low_K] + sums_PN[:, -1:] - sums_PN[:, first_high_K]
    squares_PK = squares_PN[:, num_low_K] + squares_PN[:, -1:] - squares_PN[:, first_high_K]
    num_low_P1 = (squares_PK - sums_PK.square() / keep).argmax(dim=1, keepdim=True)
    slots_M = torch.arange(keep, device=rewards_PN.device)
    places_PM = slots_M + (slots_M >= num_low_P1) * (rewards_PN.shape[1] - keep)
    return order_PN.gather(1, places_PM).sort(dim=1).values


def podsrl_select(rewards_PN: Tensor, keep: int) -> Tensor:
    return select(rewards_PN, keep)


def best_variances(rewards_PN: Tensor, keep: int) -> Tensor:
    """Return the variance of the best split, each split's taken in two passes in float64."""
    sorted_PN = rewards_PN.double().sort(dim=1).values
    num_high = rewards_PN.shape[1] - keep
    splits = [
        torch.cat([sorted_PN[:, :k], sorted_PN[:, num_high + k :]], dim=1).var(dim=1, correction=0)
        for k in range(keep + 1)
    ]
    return torch.stack(splits).amax(dim=0)


def worst_shortfall(rewards_PN: Tensor, kept_PM: Tensor) -> float:
    """Return the largest relative distance from the best possible variance over groups."""
    best_P = best_variances(rewards_PN, kept_PM.shape[1])
    kept_P = rewards_PN.double().gather(1, kept_PM).var(dim=1, correction=0)
    return ((best_P - kept_P) / best_P.clamp(min=1e-300)).max().item()


def seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the time of one call, the device's work included, and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def measure(shape: tuple[int, int], repeats: int, loop_groups: int, device: torch.device) -> dict:
    """Return medians of all methods on one shape and whether each was exact."""
    generator = torch.Generator().manual_seed(0)
    rewards_PN = torch.randn(shape, generator=generator).to(device)
    few_PN = rewards_PN[:loop_groups]
    arms: dict[str, tuple[Callable[[], Any], float]] = {
        "read": (rewards_PN.sum, 1.0),
        "podsrl": (lambda: podsrl_select(rewards_PN, KEEP), 1.0),
        "sort_and_scan": (lambda: sort_and_scan(rewards_PN, KEEP), 1.0),
        "group_loop": (lambda: group_loop(few_PN, KEEP), shape[0] / len(few_PN)),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    kept: dict[str, Tensor] = {}
    for repeat in range(repeats + 1):
        for name, (call, factor) in arms.items():
            elapsed, kept[name] = seconds(call, device)
            if repeat:  # the first round warms up
                times[name].append(elapsed * factor)
    medians = {name: statistics.median(values) for name, values in times.items()}
    shortfalls = {
        name: worst_shortfall(few_PN if name == "group_loop" else rewards_PN, kept[name])
        for name in ("podsrl", "sort_and_scan", "group_loop")
    }
    return {
        "num_groups": shape[0],
        "num_rollouts": shape[1],
        "num_kept": KEEP,
        "seconds": medians,
        "seconds_min_max": {name: [min(values), max(values)] for name, values in times.items()},
        "loop_groups_measured": len(few_PN),
        "speedup_over_group_loop": medians["group_loop"] / medians["podsrl"],
        "speedup_over_sort_and_scan": medians["sort_and_scan"] / medians["podsrl"],
        "time_over_one_read": medians["podsrl"] / medians["read"],
        "nanoseconds_per_reward": medians["podsrl"] * 1e9 / rewards_PN.numel(),
        "worst_relative_shortfall_of_variance": shortfalls,
    }


def growth_exponent(rows: list[dict]) -> float | None:
    """Return the slope of log time over log n between the shortest and longest single group."""
    single = [row for row in rows if row["num_groups"] == 1]
    if len(single) < 2:
        return None
    first, last = single[0], single[-1]
    growth = math.log(last["seconds"]["podsrl"] / first["seconds"]["podsrl"])
    return growth / math.log(last["num_rollouts"] / first["num_rollouts"])


def machine(device: torch.device) -> dict[str, Any]:
    names = [line for line in _cpu_lines() if line.startswith("model name")]
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds")
    parser.add_argument("--output", type=Path, help="write JSON here")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    repeats, loop_groups = (3, 16) if args.quick else (7, 64)
    print(f"{'groups':>8} {'n':>10} {'podsrl':>10} {'x loop':>9} {'x sort':>7} {'x read':>7} exact")
    rows = []
    for shape in QUICK_SHAPES if args.quick else SHAPES:
        row = measure(shape, repeats, loop_groups, args.device)
        rows.append(row)
        print(
            f"{shape[0]:8} {shape[1]:10} {row['seconds']['podsrl'] * 1e3:8.1f}ms"
            f" {row['speedup_over_group_loop']:9.1f} {row['speedup_over_sort_and_scan']:7.2f}"
            f" {row['time_over_one_read']:7.1f}"
            f" {row['worst_relative_shortfall_of_variance']['podsrl'] <= 1e-12}",
            flush=True,
        )
    exponent = growth_exponent(rows)
    if exponent is not None:
        print(f"time of one group grows as n to the power {exponent:.2f}")
    result = {
        "machine": machine(args.device),
        "repeats": repeats,
        "rows": rows,
        "growth_exponent_in_n": exponent,
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
