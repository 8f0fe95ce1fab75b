"""Seconds per phase of every step of TRL's trainer or ours."""

import time
from collections import defaultdict
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

PHASES = ("sampling", "rewards", "selection", "update", "optimizer", "other")


class Stopwatch(TrainerCallback):
    """Seconds per phase of every step, for TRL's trainer and ours alike."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.steps: list[dict[str, float]] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: defaultdict[str, int] = defaultdict(int)
        self.trainer, self.start, self.mark = trainer, 0.0, 0.0
        self._wrap("_generate_single_turn", "sampling")
        self._wrap("_select", "selection")
        self._wrap("_compute_loss", "update")
        self._wrap("_get_per_token_logps_and_entropies", "log_probs")
        trainer.reward_funcs = [self._timed(f, "rewards") for f in trainer.reward_funcs]
        backward = trainer.accelerator.backward
        trainer.accelerator.backward = self._timed(backward, "update")

    def _wrap(self, name: str, phase: str) -> None:
        if hasattr(self.trainer, name):
            setattr(self.trainer, name, self._timed(getattr(self.trainer, name), phase))

    def _timed(self, function: Any, phase: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.seconds[phase] += self.now() - start
            if phase == "sampling":
                self.tokens["prompt"] = sum(map(len, args[0]))
                self.tokens["sampled"] = sum(map(len, result[0]))
                self.tokens["steps"] = max(map(len, result[0]))
            return result

        return call

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.seconds.clear()
        self.start = self.now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.mark = self.now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.seconds["optimizer"] += self.now() - self.mark

    def on_step_end(self, *_: Any, **__: Any) -> None:
        step = {phase: self.seconds[phase] for phase in PHASES}
        step["total"] = self.now() - self.start
        step["other"] = step["total"] - sum(step[phase] for phase in PHASES[:-1])
        self.steps.append({**step, **self.tokens})
