"""What a run's options say about its clock: when it ends, when it is evaluated."""

from dataclasses import dataclass, field
from typing import Any

# The others shape the learning rate by max_steps, which a run that ends by the clock never reaches.
STEADY_SCHEDULERS = ("constant", "constant_with_warmup")
UNREACHED_MAX_STEPS = 1_000_000


@dataclass
class ClockArguments:
    """When a run ends, when it is evaluated, and whether its model is saved."""

    evaluate_every_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate, into curve.jsonl, whenever this many more seconds were trained."
        },
    )
    training_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Stop after the step in which this many seconds of training are reached: "
            "sampling, rewards, selection and update, not evaluating, saving or loading."
        },
    )
    save_model: bool = field(default=True, metadata={"help": "Save the trained model in model/."})

    def __post_init__(self) -> None:
        for name in ("training_seconds", "evaluate_every_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be above 0, or left out")


def check_clock(arguments: Any, config: Any) -> None:
    """Make max_steps a mere upper bound where the clock ends the run.

    arguments: the run's RunArguments. config: its PODSConfig, whose max_steps is set.

    Raises `ValueError` for evaluations of no questions, and for a learning rate that follows
    max_steps: two runs would each stand at another place of it when the time is up.
    """
    if arguments.evaluate_every_seconds is not None and not arguments.evaluate_limit:
        raise ValueError(
            "evaluate_limit is 0, but evaluate_every_seconds asks for evaluations: set "
            "evaluate_limit to the number of held-out questions, for example 256"
        )
    if arguments.training_seconds is None:
        return
    scheduler = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    if scheduler not in STEADY_SCHEDULERS:
        raise ValueError(
            f"lr_scheduler_type is {scheduler}, which follows max_steps, but training_seconds ends "
            f"the run: choose {' or '.join(STEADY_SCHEDULERS)}"
        )
    if 0 < config.warmup_steps < 1:
        raise ValueError(
            f"warmup_steps is {config.warmup_steps}, a share of max_steps, but training_seconds "
            "ends the run: give a number of steps"
        )
    if config.max_steps <= 0:
        config.max_steps = UNREACHED_MAX_STEPS
