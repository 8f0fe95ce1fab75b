"""Seconds per phase of a training step."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LINUX_PEAK = Path("/proc/self/clear_refs")


class PhaseClock:
    """Adds up wall-clock seconds per named phase, waiting for the device at phase borders.

    Waiting twice per phase, a few times per generation batch, is what makes the figures true on
    CUDA, where a kernel queued in one phase would otherwise be paid for in the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Seconds on the host clock once all work queued on the device is done."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the enclosed block towards the phase."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    def pop(self) -> dict[str, float]:
        """The seconds per phase since the last call."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


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
