"""A task with the rewards that a recipe names: the task's own, and a user's functions."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from podsrl.plugins import load_function
from podsrl.rewards.functions import unless_failed
from podsrl.rewards.graders import score_by_grader, try_grader
from podsrl.rewards.own import try_reward
from podsrl.tasks.base import Task, rewards_of
from podsrl.tasks.turns import refuse_turns, replayed

OF_MAKE_TASK = ("correctness", "format", "tag_count")


def with_rewards(
    task: Task, names: Sequence[str] | None, rows: Sequence[Mapping[str, Any]]
) -> Task:
    """Return the task with these rewards in place of its own; the same task for None.

    names: of the task's rewards ("correctness"), or references to functions
        ("my_reward.py:closeness"), whose default weight is 1 and which have no bounds. Functions
        are tried on two made-up answers to the first of `rows`.

    What is right, and so the accuracy, stays the task's. A completion whose grading failed has no
    reward of any function that stands after correctness.

    Raises `ValueError` for a name or function that cannot be used, naming file and line.
    """
    if names is None:
        return task
    if not names:
        raise ValueError("reward_funcs is empty: name one, or leave it out for the task's rewards")
    functions = [task.reward_funcs.get(name) or _load(task, name) for name in names]
    short = [_short(name, each) for name, each in zip(names, functions, strict=True)]
    if twice := [name for name in short if short.count(name) > 1]:
        raise ValueError(
            f"reward_funcs has {twice[0]} twice, and metrics go by that name: rename one of them"
        )
    _check_order(task, short)
    own = tuple(name for name in short if name not in task.reward_funcs)
    by_name = dict(zip(short, functions, strict=True))
    begin = None if task.environment is None else lambda row: replayed(task, row, [])
    for name in own:
        try_reward(name, by_name[name], rows, environment=begin)
    return replace(
        task,
        reward_funcs=_unless_ungraded(task, by_name),
        reward_weights={name: task.reward_weights.get(name, 1.0) for name in short},
        reward_bounds={
            name: task.reward_bounds[name] for name in short if name in task.reward_bounds
        },
        measured=own,
    )


def with_grader(task: Task, name: str | None, row: Mapping[str, Any]) -> Task:
    """Return the task whose answers this grader scores; the same task for None.

    name: of a grader in `GRADERS`, or FILE.py:FUNCTION. row: a question that it is tried on.

    Its score is the reward `correctness`, and an answer of score 1 is right, in training and in
    every evaluation.

    Raises: ValueError as `find_grader` and `try_grader` do, for a task of several turns, and for
    one whose rewards are none of those that `make_task` makes.
    """
    if name is None:
        return task
    refuse_turns(task, f"grader {name} reads a final answer", "leave grader out")
    if set(task.reward_funcs) - set(OF_MAKE_TASK):
        raise ValueError(
            f"grader is {name}, but {task.name} has rewards of its own: leave grader out"
        )
    try_grader(name, row)
    score = score_by_grader(name, task.extract_answer)
    return replace(
        task,
        score=score,
        reward_funcs=rewards_of(score, tags=task.has_format),
        reward_bounds={**task.reward_bounds, "correctness": (0.0, 1.0)},
    )


def _short(name: str, function: Callable[..., Any]) -> str:
    """The name in metrics: the function's own where the recipe has a path before it."""
    return str(getattr(function, "__name__", name)) if ":" in name else name


def _load(task: Task, name: str) -> Callable[..., Any]:
    if ":" in name:
        return load_function(name)
    known = list(task.reward_funcs)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"{task.name} has {', '.join(known)};"
    raise ValueError(f"reward_funcs names {name}: {hint} Own ones are written FILE.py:FUNCTION")


def _check_order(task: Task, names: Sequence[str]) -> None:
    """The task's rewards read what correctness, their first, could not grade: it goes first."""
    first = next(iter(task.reward_funcs))
    places = [place for place, name in enumerate(names) if name in task.reward_funcs]
    if first in names and places and names[places[0]] != first:
        raise ValueError(
            f"reward_funcs names {names[places[0]]} before {first}: put {first} first, as the "
            "others leave out what it could not grade"
        )


def _unless_ungraded(
    task: Task, functions: dict[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """The functions, those after correctness without a value where it has none."""
    names, leader = list(functions), next(iter(task.reward_funcs))
    if leader not in names:
        return functions
    place = names.index(leader)
    following = unless_failed(functions[leader], *(functions[name] for name in names[place + 1 :]))
    return functions | dict(zip(names[place:], following, strict=True))
