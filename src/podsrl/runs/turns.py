"""What a task with turns asks of a run: calls counted, tools in the prompts, nothing impossible."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from podsrl.tasks import Task
from podsrl.tasks.turns import refuse_turns
from podsrl.trl.config import PODSConfig


def fit_to_turns(config: PODSConfig, task: Task) -> None:
    """Fill in the calls of a task with turns; `ValueError` for settings that need one turn."""
    if task.environment is None:
        return
    if config.early_stop:
        refuse_turns(
            task,
            "early_stop scores a rollout when its tokens end",
            "leave early_stop out; sampling_rounds saves rollouts in its place",
        )
    if config.max_tool_calling_iterations is None:
        config.max_tool_calling_iterations = task.max_calls


@contextmanager
def experimental_environments() -> Iterator[None]:
    """Keep TRL's notice that environments are experimental off the screen.

    Who trains on a task of ours has not chosen them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are using 'environment_factory'")
        yield
