"""Phases of a step and the memory it took."""

import torch

from podsrl.trl.clock import LINUX_PEAK, PhaseClock, peak_memory_gib, reset_peak_memory

CPU = torch.device("cpu")


def test_phases_add_up_and_are_handed_out_once():
    clock = PhaseClock(CPU)
    times = iter([0.0, 2.0, 10.0, 11.0, 20.0, 25.0])
    clock.now = lambda: next(times)
    # Sampling 0 to 2, rewards 2 to 10, nothing 10 to 11, sampling 11 to 20, selection 20 to 25.
    for name in ("sampling", "rewards", None, "sampling", "selection"):
        clock.begin(name)
    assert clock.pop() == {"sampling": 2.0 + 9.0, "rewards": 8.0, "selection": 5.0}
    assert clock.pop() == {}


def test_peak_counts_from_the_reset_on():
    large = torch.ones(64 * 2**20)  # 0.25 GiB
    before = peak_memory_gib(CPU)
    del large
    reset_peak_memory(CPU)
    after = peak_memory_gib(CPU)
    if LINUX_PEAK.exists():
        assert after < before - 0.2
    again = torch.ones(32 * 2**20)  # 0.125 GiB
    assert peak_memory_gib(CPU) >= min(before, after + 0.1)
    del again
