"""Seconds per phase of a training step, and memory, as the trainer's metrics."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from podsrl.phases import PHASES

LINUX_PEAK = Path("/proc/self/clear_refs")


class PhaseClock:
    """Adds up wall-clock seconds per named phase, waiting for the device at phase borders.

    Waiting at each border, a few times per generation batch, is what makes the figures true on
    CUDA, where a kernel queued in one phase would otherwise be paid for in the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._phase: str | None = None
        self._since = 0.0

    def now(self) -> float:
        """Seconds on the host clock once all work queued on the device is done."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize(self.device)
        return time.perf_counter()

    def begin(self, phase: str | None) -> None:
        """Count towards this phase from now on, and no longer towards the last; None: to none."""
        now = self.now()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def pop(self) -> dict[str, float]:
        """The seconds per phase since the last call; no phase goes on."""
        if self._phase is not None:
            self.begin(None)
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


class StepClock(TrainerCallback):
    """Writes the seconds per phase of every optimizer step into the trainer's metrics."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.clock.pop()
        self.start = self.trainer.clock.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = self.trainer.clock.pop()
        seconds["update"] = self.trainer.clock.now() - self.start - sum(seconds.values())
        for phase in PHASES:
            self.trainer._metrics["train"][f"time/{phase}_seconds"].append(seconds.get(phase, 0.0))


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory held so far in GiB: by the device's allocator, or by this process on CPU.

    So far: since the start, or the last `reset_peak_memory`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_gib` count from now on; on CPU only Linux can, elsewhere nothing changes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX_PEAK.exists():
        LINUX_PEAK.write_text("5")
