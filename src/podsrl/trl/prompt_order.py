"""Prompts in an order that a resumed run repeats."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class ResumableSampler(Sampler[int]):
    """TRL's sampler, with an order that follows from the seed and the epoch alone.

    TRL draws one permutation per epoch from a generator that lives as long as the process, so a
    run resumed in its second epoch gets the first epoch's order again: it repeats prompts that it
    has just trained on and never comes to others. A run that is not interrupted gets the same
    order from both.

    sampler: one that shuffles. num_epochs_done: asked when an epoch begins.

    Example: seed 0, 3 prompts: 1 epoch done gives the second permutation that a generator with
    seed 0 draws, in every process and whether or not the first was drawn before.
    """

    def __init__(self, sampler: RepeatSampler, num_epochs_done: Callable[[], int]) -> None:
        self.sampler, self.num_epochs_done = sampler, num_epochs_done

    def __iter__(self) -> Iterator[int]:
        generator = self.sampler.generator
        generator.manual_seed(self.sampler.seed)
        for _ in range(self.num_epochs_done()):
            torch.randperm(self.sampler.num_samples, generator=generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
