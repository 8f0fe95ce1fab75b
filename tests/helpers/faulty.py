"""A task whose reward function does something at its k-th call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from podsrl.tasks import questions


def at_call(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[list[float]], list[float]]
) -> None:
    """From now on the first reward of every task passes what it gives at that call to `act`."""
    load = questions.load_task

    def load_faulty(*args: Any, **kwargs: Any) -> Any:
        task = load(*args, **kwargs)
        name, function = next(iter(task.reward_funcs.items()))
        calls = []

        def faulty(*args: Any, **kwargs: Any) -> list[float]:
            calls.append(1)
            rewards = function(*args, **kwargs)
            return act(rewards) if len(calls) == number else rewards

        faulty.__name__ = function.__name__
        return dataclasses.replace(task, reward_funcs={**task.reward_funcs, name: faulty})

    monkeypatch.setattr(questions, "load_task", load_faulty)
