"""Seconds per phase of every optimizer step, as metrics of the trainer."""

from typing import Any

from transformers import TrainerCallback

from podsrl.phases import PHASES


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
