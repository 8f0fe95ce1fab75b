"""The training clock: what it counts, where it ends a run, and that a resumed run goes on."""

import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from podsrl.runs.clock import TrainingClock
from podsrl.runs.settings import ClockArguments, check_clock


class FakeTrainer:
    """Has the metrics that a PODSTrainer's step clock writes."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {"train": defaultdict(list)}

    def add_callback(self, callback: Any) -> None:
        self.callback = callback

    def spend(self, sampling: float, rewards: float, selection: float, update: float) -> None:
        values = {
            "sampling": sampling,
            "rewards": rewards,
            "selection": selection,
            "update": update,
        }
        for phase, seconds in values.items():
            self._metrics["train"][f"time/{phase}_seconds"].append(seconds)


def started(budget: float | None, state: TrainerState | None = None) -> TrainingClock:
    clock = TrainingClock(budget)
    clock.attach(FakeTrainer())
    clock.on_train_begin(None, state or TrainerState(), TrainerControl())  # type: ignore[arg-type]
    return clock


def step(clock: TrainingClock, *phases: float) -> bool:
    """Whether the clock ends training with this step."""
    clock.trainer.spend(*phases)
    control = TrainerControl()
    clock.on_step_end(None, TrainerState(), control)  # type: ignore[arg-type]
    return control.should_training_stop


def test_it_ends_with_the_step_that_spends_the_budget() -> None:
    clock = started(4.0)
    # 1 + 0.25 + 0.25 + 0.5 = 2 seconds a step: 2, 4
    assert not step(clock, 1.0, 0.25, 0.25, 0.5) and not clock.spent
    assert step(clock, 1.0, 0.25, 0.25, 0.5) and clock.spent
    assert clock.seconds["training"] == 4.0


def test_without_budget_it_only_counts() -> None:
    clock = started(None)
    assert not any(step(clock, 1e6, 0.0, 0.0, 0.0) for _ in range(3))
    assert clock.seconds["training"] == 3e6


def test_evaluating_and_saving_are_counted_beside() -> None:
    clock = started(10.0)
    with clock.beside("evaluation"):
        time.sleep(0.05)
    step(clock, 1.0, 1.0, 1.0, 1.0)
    with clock.beside("evaluation"):
        time.sleep(0.05)
    time.sleep(0.01)  # the trainer saves between the events of a step's end and on_save
    kept = clock.state()["attributes"]["seconds"]
    clock.on_save()
    assert clock.seconds["training"] == 4.0
    assert 0.1 <= clock.seconds["evaluation"] < 1
    assert 0.01 <= kept["saving"] <= clock.seconds["saving"] < 0.1 + kept["saving"]
    assert clock.seconds["saving"] < clock.wall_seconds() - clock.seconds["evaluation"]


def test_it_goes_on_from_a_checkpoint() -> None:
    first = started(10.0)
    step(first, 3.0, 0.0, 0.0, 4.0)
    saved = {"TrainingClock": first.state()}
    second = started(10.0, TrainerState(global_step=1, stateful_callbacks=saved))  # type: ignore
    assert second.seconds["training"] == 7.0 and not second.spent
    assert second.wall_seconds() >= first.earlier_wall_seconds
    assert step(second, 3.0, 0.0, 0.0, 0.0)


def test_a_new_run_does_not_take_over_what_the_state_holds_at_its_start() -> None:
    saved = {"TrainingClock": {"args": {}, "attributes": {"seconds": {"training": 9.0}}}}
    clock = started(10.0, TrainerState(global_step=0, stateful_callbacks=saved))  # type: ignore
    assert clock.seconds["training"] == 0.0


@pytest.mark.parametrize("name", ["training_seconds", "evaluate_every_seconds"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_seconds_must_be_above_zero(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        ClockArguments(**{name: value})


def test_evaluating_by_steps_or_by_seconds() -> None:
    with pytest.raises(ValueError, match="evaluate_every_steps is 0: it must be at least 1"):
        ClockArguments(evaluate_every_steps=0)
    with pytest.raises(ValueError, match="evaluate_every_seconds 9: leave one of them out"):
        ClockArguments(evaluate_every_steps=5, evaluate_every_seconds=9.0)


def options(**changes: Any) -> tuple[Any, Any]:
    config = {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_steps": -1}
    arguments = {"evaluate_every_seconds": 5.0, "evaluate_limit": 8, "training_seconds": 60.0}
    arguments["evaluate_every_steps"] = None
    for name, value in changes.items():
        (config if name in config else arguments)[name] = value
    return SimpleNamespace(**arguments), SimpleNamespace(**config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type is linear"),
        ({"warmup_steps": 0.1}, "warmup_steps is 0.1"),
        ({"evaluate_limit": 0}, "evaluate_limit is 0, but evaluate_every_seconds asks"),
        (
            {"evaluate_limit": 0, "evaluate_every_seconds": None, "evaluate_every_steps": 3},
            "evaluate_limit is 0, but evaluate_every_steps asks",
        ),
    ],
)
def test_what_does_not_go_with_a_clock_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_clock(*options(**changes))


def test_max_steps_is_an_upper_bound_only() -> None:
    arguments, config = options()
    check_clock(arguments, config)
    assert config.max_steps == 1_000_000
    arguments, config = options(max_steps=7)
    check_clock(arguments, config)
    assert config.max_steps == 7
    arguments, config = options(training_seconds=None, lr_scheduler_type="cosine")
    check_clock(arguments, config)
    assert config.max_steps == -1
