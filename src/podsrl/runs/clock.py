"""The seconds a run has trained, apart from all others, and the end that they set it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from podsrl.phases import PHASES

BESIDE = ("loading", "evaluation", "saving")


class TrainingClock(TrainerCallback, ExportableState):
    """Adds up the four phases of all steps; ends training with the step that spends the budget.

    `seconds["training"]` is the sum of the phases in the trainer's metrics, so evaluating, saving
    and loading are outside; their seconds are counted beside it. All of them are saved in every
    checkpoint and go on from there when a run is resumed. With several processes the seconds of
    the main process count for all, so that all end after the same step.

    Make it when the run begins to load, and `attach` it to the trainer. budget_seconds: None for
    no end.
    """

    def __init__(self, budget_seconds: float | None = None) -> None:
        self.trainer: Any = None
        self.budget_seconds = budget_seconds
        self.restart()

    def restart(self) -> None:
        """Begin anew, for a trainer's next training."""
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(("training", *BESIDE), 0.0)
        self.earlier_wall_seconds = 0.0
        self._last_event = self.start

    def attach(self, trainer: Any) -> None:
        """Follow this PODSTrainer, whose own step clock runs before."""
        self.trainer = trainer
        trainer.add_callback(self)

    @property
    def spent(self) -> bool:
        """Whether the budget is used up."""
        budget = self.budget_seconds
        return budget is not None and self.seconds["training"] >= budget

    def wall_seconds(self) -> float:
        """Seconds since the run began to load, and those until the checkpoint it went on from."""
        return self.earlier_wall_seconds + time.perf_counter() - self.start

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """Count the enclosed seconds as loading, evaluation or saving."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._last_event = time.perf_counter()
            self.seconds[name] += self._last_event - start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        loading = time.perf_counter() - self.start - self.seconds["evaluation"]
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step and isinstance(saved, dict):
            for name, value in saved["attributes"].items():
                setattr(self, name, value)
        self.seconds["loading"] += loading

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        phases = self.trainer._metrics["train"]
        step_seconds = sum(phases[f"time/{phase}_seconds"][-1] for phase in PHASES)
        self.seconds["training"] += _of_main_process(step_seconds)
        if self.spent:
            control.should_training_stop = True
        self._last_event = time.perf_counter()
        return control

    def on_log(self, *_: Any, **__: Any) -> None:
        self._last_event = time.perf_counter()

    def on_evaluate(self, *_: Any, metrics: dict[str, Any] | None = None, **__: Any) -> None:
        """Of the trainer's own evaluations, as `eval_strategy` asks for them."""
        runtimes = (value for name, value in (metrics or {}).items() if name.endswith("_runtime"))
        self.seconds["evaluation"] += next(runtimes, 0.0)
        self._last_event = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        # The trainer saves right after the events of the step, and tells when it is done.
        self.seconds["saving"] += time.perf_counter() - self._last_event

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; asked for at the end of saving it, whose seconds count, too."""
        saving = self.seconds["saving"] + time.perf_counter() - self._last_event
        seconds = {**self.seconds, "saving": saving}
        wall = self.wall_seconds()
        return {"args": {}, "attributes": {"seconds": seconds, "earlier_wall_seconds": wall}}


def _of_main_process(seconds: float) -> float:
    state = PartialState()
    if state.num_processes == 1:
        return seconds
    told = torch.tensor(seconds, dtype=torch.float32, device=state.device)
    return float(broadcast(told, from_process=0).item())
