"""What one GPU does in 20 minutes: sampling, updates, whole steps and memory, arm by arm.

    python benchmarks/gpu.py --minutes 20 --output benchmarks/gpu.json
    python benchmarks/gpu.py --dry          # every arm, tiny, on a CPU: does it run at all here?

Parts: `rates` (a large product, a copy, an empty kernel), `sampling` (tokens a second of generate,
generate with a static cache, transformers' continuous batching, ours, and vLLM with room for the m
kept and for all n rows), `update` (forward and backward of kept rows: TRL's padded rows and ours,
by attention, with and without checkpointing; and ours with half of the rows dead), `steps` (whole
training steps) and `memory` (peak over n).

Nothing is fetched. Models are shapes with random weights, but for 135m where its wheel is
installed; no token ends a rollout, so that all arms sample equally many; rewards are hashes of the
tokens. Arms of a size run in turn, the order reversed every other time, after a round that is not
counted; vLLM, which takes the card for itself, after the others.

The file is written after every repeat, so that an end by clock, Ctrl-C or a lost machine costs one
repeat. Each part may begin repeats until its share of the minutes is over; what it leaves the next
has. A row without repeats says why in `skipped`; `complete` is true if only what is absent and
a model too large for a part were skipped. Fewer `--models` or `--parts`, or more `--minutes`, give
more rows. Sizes come in the order of what is to be known first. It has not been run on a GPU yet.
"""

import argparse
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_arms as do
import torch
from gpu_arms import Found, Place
from transformers.utils import logging

from podsrl.packing.attention import FLASH, SHARED_PREFIX
from podsrl.runs.folder import PACKAGES, device_name, write_json
from podsrl.trl.clock import peak_memory_gib, reset_peak_memory

FIELDS = {
    "part": str, "model": str, "arm": str, "sizes": dict, "repeats": list, "tokens": int | None,
    "peak_gib": float | None, "max_log_prob_difference": float | None, "phases": list,
    "skipped": str | None,
}  # fmt: skip
NOT_REACHED = "not reached: time was over, or the run ended"
FAILED = "failed: "
DRY_TOLERANCE = 1e-4  # nats, in float32


@dataclass(frozen=True)
class Arm:
    """run: one repeat of subject, sizes and place. absent: why not on this place, or None."""

    run: Callable[..., Found]
    absent: Callable[[str, Place], str | None] = lambda name, place: None


@dataclass(frozen=True)
class Part:
    """Arms that are compared, on sizes in the order of what is to be known first."""

    name: str
    share: float
    """Of the minutes."""
    subject: Callable[[str, dict[str, Any], Place], Any]
    arms: dict[str, Arm]
    sizes: list[dict[str, Any]]
    dry_sizes: list[dict[str, Any]]
    repeats: int
    warms_up: bool = True


def vllm_absent(name: str, place: Place) -> str | None:
    if not do.is_installed("vllm"):
        return "vllm is not installed"
    return None if place.device.type == "cuda" else "vllm is measured on CUDA only"


def flash_absent(name: str, place: Place) -> str | None:
    return None if do.has_flash() else "flash-attn is not installed, or there is no CUDA"


def training_absent(name: str, place: Place) -> str | None:
    is_small = name != "7b" or place.dry
    return None if is_small else "7b is not trained: its optimizer does not fit on one card"


def rollouts(rows: int, tokens: int, prompt_tokens: int = 128, kept: int = 16) -> dict[str, int]:
    return {"rows": rows, "kept": kept, "prompt_tokens": prompt_tokens, "tokens": tokens}


def kept(prompts: int, rows: int, width: int, tokens: int, checkpointing: bool) -> dict[str, Any]:
    sizes = {"prompts": prompts, "kept": rows, "prompt_tokens": width, "tokens": tokens}
    return {**sizes, "checkpointing": checkpointing}


def step(n: int, m: int, tokens: int, prompt_tokens: int = 128, steps: int = 1) -> dict[str, int]:
    return {"n": n, "m": m, "prompt_tokens": prompt_tokens, "tokens": tokens, "steps": steps}


SAMPLING = {
    "generate": Arm(do.generate),
    "generate, static cache": Arm(partial(do.generate, static=True)),
    "continuous batching": Arm(do.continuous_batching),
    "ours": Arm(do.ours),
}
PADDED, SHARED = partial(do.update, way="padded"), partial(do.update, way="shared")
UPDATE = {
    "TRL, sdpa": Arm(partial(PADDED, attention="sdpa")),
    "TRL, FA2": Arm(partial(PADDED, attention=FLASH), flash_absent),
    "ours, sdpa": Arm(partial(SHARED, attention=SHARED_PREFIX)),
    "ours, flex": Arm(partial(SHARED, attention="flex_attention")),
    "ours, FA2": Arm(partial(SHARED, attention=FLASH), flash_absent),
}
DEAD = {
    "ours, dead rows read": Arm(partial(do.dead_update, skips=False)),
    "ours, dead rows skipped": Arm(partial(do.dead_update, skips=True)),
}
PODS = {"num_rollouts": "n", "num_generations": "m"}
OFF = {"fast_sampling": False, "packed_update": False, "skip_dead_rows": False}
STEPS = {
    name: Arm(partial(do.train_steps, arm=options), training_absent)
    for name, options in {
        "grpo n/n": {"num_generations": "n"},
        "grpo m/m": {"num_generations": "m"},
        "pods n/m, TRL's paths": {**PODS, **OFF},
        "pods n/m": PODS,
    }.items()
}
# Ours also where n = m, so that all points lie on one line.
OURS = {**PODS, "fast_sampling": True, "packed_update": True}
MEMORY = {"pods n/m": Arm(partial(do.train_steps, arm=OURS), training_absent)}


def vllm_part(room: str) -> Part:
    """One engine at a time: two would share the card's memory."""
    arms = {f"vLLM, room for {room}": Arm(do.vllm, vllm_absent)}
    subject, sizes = partial(do.vllm_subject, room=room), [rollouts(64, 256), rollouts(256, 256)]
    return Part("sampling", 0.07, subject, arms, sizes, [rollouts(2, 3, 3, 1)], 2)


PARTS = [
    Part("sampling", 0.28, do.sampling_subject, SAMPLING,
         [rollouts(64, 256), rollouts(256, 256), rollouts(16, 256), rollouts(64, 1024),
          rollouts(512, 256), rollouts(512, 1024)], [rollouts(2, 3, 3, 1)], 2),
    vllm_part("kept"),
    vllm_part("rows"),
    Part("update", 0.26, do.update_subject, UPDATE,
         [kept(1, 16, *size, on) for size in ((512, 1024), (128, 256), (512, 4096))
          for on in (True, False)], [kept(1, 2, 3, 3, on) for on in (True, False)], 3),
    Part("update", 0.04, do.dead_subject, DEAD,
         [kept(4, 4, 128, 256, True)], [kept(2, 2, 3, 3, True)], 3),
    Part("steps", 0.21, do.step_subject, STEPS,
         [step(64, 16, 256), step(64, 16, 1024)], [step(4, 2, 3, 3)], 3, False),
    Part("memory", 0.07, do.step_subject, MEMORY,
         [step(n, 16, 256) for n in (16, 64, 256, 512)], [step(2, 2, 3, 3), step(4, 2, 3, 3)],
         1, False),
]  # fmt: skip
NAMES = ["rates", *dict.fromkeys(part.name for part in PARTS)]


def planned(part: Part, names: list[str], place: Place) -> list[list[dict[str, Any]]]:
    """Rows to be measured: one list for each of the part's sizes and models, an arm a row."""
    empty = dict.fromkeys(("tokens", "peak_gib", "max_log_prob_difference"))
    return [
        [
            {"part": part.name, "model": name, "arm": arm, "sizes": sizes, "repeats": []}
            | {**empty, "phases": [], "skipped": part.arms[arm].absent(name, place) or NOT_REACHED}
            for arm in part.arms
        ]
        for sizes in (part.dry_sizes if place.dry else part.sizes)
        for name in names
    ]


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What it returns, or why it failed: on a rented card an arm must not cost the others."""
    try:
        return call(), None
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"{FAILED}{type(error).__name__}: {lines[0][:200]}"


def measure(part: Part, rows: list[dict], place: Place, end: float, keep: Callable) -> None:
    """Fills the rows of one model and size, arm by arm in turn, as long as the clock allows."""
    live = [row for row in rows if row["skipped"] == NOT_REACHED]
    if not live or time.monotonic() > end:
        return
    name, sizes, truth = live[0]["model"], live[0]["sizes"], None
    subject, failure = attempt(lambda: part.subject(name, sizes, place))
    for repeat in range(-int(part.warms_up and not place.dry), 1 if place.dry else part.repeats):
        for row in live if repeat % 2 == 0 else live[::-1]:
            if time.monotonic() > end:
                return
            if (row["skipped"] or "").startswith(FAILED):
                continue
            options = {"warm_up": repeat < 0} if part.name == "sampling" else {}
            once = partial(part.arms[row["arm"]].run, subject, sizes, place, **options)
            place.free()
            reset_peak_memory(place.device)
            found, wrong = (None, failure) if failure else attempt(once)
            if wrong or repeat >= 0:
                row["skipped"] = wrong
            if found and repeat >= 0:
                truth = found.log_probs if row is rows[0] and truth is None else truth
                note(row, found, truth, place)
            keep(row)


def note(row: dict, found: Found, truth: torch.Tensor | None, place: Place) -> None:
    """One repeat into its row."""
    row["repeats"].append(found.seconds)
    row["tokens"] = found.tokens
    if not row["arm"].startswith("vLLM"):  # its engine is another process
        row["peak_gib"] = max(row["peak_gib"] or 0.0, peak_memory_gib(place.device))
    if found.phases:
        row["phases"].append(found.phases)
    if found.log_probs is not None and truth is not None:
        difference = (found.log_probs.float() - truth.float()).abs().max().item()
        row["max_log_prob_difference"] = max(row["max_log_prob_difference"] or 0.0, difference)


def run(report: dict, options: argparse.Namespace, place: Place) -> None:
    """Fills `report`, writing it after every repeat."""
    start = time.monotonic()
    parts = [part for part in PARTS if part.name in options.parts]
    plan = [(part, rows) for part in parts for rows in planned(part, options.models, place)]
    report["results"] = [row for _, rows in plan for row in rows]

    def keep(row: dict | None) -> None:
        reasons = [row["skipped"] or "" for row in report["results"]]
        report["complete"] = not any(r == NOT_REACHED or r.startswith(FAILED) for r in reasons)
        write_json(options.output, report)
        if row and (row["repeats"] or row["skipped"] != NOT_REACHED):
            print(line(row, (time.monotonic() - start) / 60), flush=True)

    keep(None)
    if "rates" in options.parts:
        report["rates"] = do.rates(place)
        keep(None)
    whole, spent = sum(part.share for part in parts), 0.0
    for part in parts:
        spent += part.share
        end = start + 60 * options.minutes * spent / whole
        for rows in (rows for each, rows in plan if each is part):
            measure(part, rows, place, end, keep)
            place.free()


def line(row: dict, minutes: float) -> str:
    sizes = " ".join(f"{key}={value}" for key, value in row["sizes"].items())
    head = f"[{minutes:5.1f} min] {row['part']} {row['model']} {sizes}: {row['arm']}: "
    if row["skipped"]:
        return head + row["skipped"]
    rate = row["tokens"] / row["repeats"][-1]
    peak = "" if row["peak_gib"] is None else f", {row['peak_gib']:.2f} GiB"
    return head + f"{row['repeats'][-1]:.3f} s, {rate:.0f} tokens/s{peak}"


def problems(report: dict, options: argparse.Namespace, place: Place) -> list[str]:
    """What is wrong with a dry run's report; empty if every arm ran or says why it could not."""
    found = [] if report["schema"] == 1 and report["machine"] else ["no schema or machine"]
    there = {(row["part"], row["model"], row["arm"]) for row in report["results"]}
    for part in (part for part in PARTS if part.name in options.parts):
        for key in ((part.name, name, arm) for name in options.models for arm in part.arms):
            found += [] if key in there else [f"{key} is missing"]
    for row in report["results"]:
        where = f"{row['part']} {row['model']} {row['arm']}: "
        bad = [key for key, kind in FIELDS.items() if not isinstance(row.get(key), kind)]
        found += [f"{where}{key} is {row.get(key)!r}" for key in bad]
        reason, difference = row["skipped"], row["max_log_prob_difference"]
        if reason == NOT_REACHED or (reason or "").startswith(FAILED):
            found.append(where + reason)
        if not reason and not (row["repeats"] and row["tokens"]):
            found.append(f"{where}neither measured nor skipped")
        sizes = row["sizes"]
        num_rows = sizes.get("m" if row["arm"] == "grpo m/m" else "n", sizes.get("rows"))
        wanted = row["tokens"] if num_rows is None else num_rows * sizes["tokens"]
        if not reason and row["tokens"] != wanted:
            found.append(f"{where}{row['tokens']} tokens, not {wanted}")
        is_close = difference is not None and difference <= DRY_TOLERANCE
        if not reason and row["part"] == "update" and not is_close:
            found.append(f"{where}log-probs differ by {difference} nats")
    return found


def machine(place: Place, names: list[str]) -> dict[str, Any]:
    """What the figures were measured on, and with which weights."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return {
        "device": device_name(place.device),
        "driver": output_of(ask),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: version_of(package) for package in (*PACKAGES, "triton", "vllm", "flash-attn")},
        "commit": output_of(commit),
        "weights": {n: "packaged" if do.is_packaged(n, place) else "random" for n in names},
    }


def version_of(package: str) -> str | None:
    """None where it is not installed, as podsrl itself where it is only on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def output_of(command: list[str]) -> str | None:
    """Its first line; None where there is no such program or it has nothing to say."""
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0] or None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--models", nargs="+", choices=do.SHAPES, help="default: all; of a dry run, 135m and 0.5b")
    add("--parts", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    add("--minutes", type=float, default=20.0, help="no repeat begins after these (default 20)")
    add("--output", type=Path, help="default: benchmarks/gpu.json; of a dry run, nowhere")
    add("--dry", action="store_true", help="2 layers x 32 wide, 2 rows, 3 tokens, on the CPU")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.accelerator.is_available():
        parser.error("there is no GPU here: --dry runs every arm on a CPU, tiny, in a minute")
    options.models = options.models or (["135m", "0.5b"] if options.dry else list(do.SHAPES))
    aside = Path(tempfile.mkdtemp()) if options.dry else Path("benchmarks")
    options.output = options.output or aside / "gpu.json"
    return options


def main(arguments: list[str] | None = None) -> int:
    """0; 130 where Ctrl-C ended it; 1 where a dry run found something wrong."""
    options = parse(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device("cpu") if options.dry else torch.accelerator.current_accelerator()
    place = Place(device, options.dry)
    report = {"schema": 1, "machine": machine(place, options.models), "minutes": options.minutes,
              "dry": options.dry, "rates": {}, "results": [], "complete": False}  # fmt: skip
    interrupted = False
    try:
        run(report, options, place)
    except KeyboardInterrupt:
        interrupted = True
    reasons = Counter(row["skipped"] or "measured" for row in report["results"])
    print("\n".join(f"{count:4} rows: {reason}" for reason, count in reasons.most_common()))
    print(f"{options.output}: {'complete' if report['complete'] else 'not complete'}")
    wrong = problems(report, options, place) if options.dry and not interrupted else []
    print("\n".join(f"wrong: {each}" for each in wrong), end="\n" if wrong else "")
    return 130 if interrupted else int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
