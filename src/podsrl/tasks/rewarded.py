"""A task with the rewards that a recipe names: the task's own, and a user's functions."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from podsrl.plugins import PROBE, load_function
from podsrl.rewards.checks import CHECKS, NEEDS_TAGS
from podsrl.rewards.functions import unless_failed
from podsrl.rewards.graders import score_by_grader, try_grader
from podsrl.rewards.own import try_reward
from podsrl.tasks.base import Task, rewards_of
from podsrl.tasks.majority import DEFAULT_GATE, MAJORITY, majority_reward
from podsrl.tasks.turns import refuse_turns, replayed

OF_MAKE_TASK = ("correctness", "format", "tag_count")


def with_rewards(
    task: Task,
    names: Sequence[str] | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    majority_gate: float = DEFAULT_GATE,
) -> Task:
    """Return the task with these rewards in place of its own; the same task for None.

    names: of the task's rewards ("correctness"), "majority" (`majority_reward`, at
        `majority_gate`), of `CHECKS`, whose default weight is 0, a head ("probe:HEAD.safetensors",
        `podsrl.probe.reward`), whose default weight is 1, or references to functions
        ("my_reward.py:closeness"), whose default weight is 1 and which have no bounds. Functions
        are tried on two made-up answers to the first of `rows`.

    What is right, and so the accuracy, stays the task's. A completion whose grading failed has no
    reward of any function that stands after correctness, and a prompt without a majority none of
    any function after majority.

    Raises `ValueError` for a name or function that cannot be used, naming file and line.
    """
    if names is None:
        return task
    if not names:
        raise ValueError("reward_funcs is empty: name one, or leave it out for the task's rewards")
    if MAJORITY in names:
        refuse_turns(task, f"reward {MAJORITY} compares final answers", "leave it out")
    votes = majority_reward(task.extract_answer, task.score, gate=majority_gate)
    ours = {MAJORITY: votes, **CHECKS}
    known = {**task.reward_funcs, **ours, **task.reward_funcs}  # the task's first, and its own
    functions = [known.get(name) or _load(task.name, name, list(known)) for name in names]
    short = [_short(name, each) for name, each in zip(names, functions, strict=True)]
    if twice := [name for name in short if short.count(name) > 1]:
        raise ValueError(
            f"reward_funcs has {twice[0]} twice, and metrics go by that name: rename one of them"
        )
    _check_tags(task, names)
    _check_order(task, short)
    own = tuple(each for name, each in zip(names, short, strict=True) if ":" in name)
    heads = [each for name, each in zip(names, short, strict=True) if name.startswith(PROBE)]
    if heads:
        refuse_turns(task, f"reward {PROBE}... reads one completion", "leave it out")
    weights = dict.fromkeys(CHECKS, 0.0) | dict(task.reward_weights) | dict.fromkeys(own, 1.0)
    bounds = dict.fromkeys(ours, (0.0, 1.0)) | dict(task.reward_bounds)
    bounds = {name: each for name, each in bounds.items() if name not in own}
    bounds |= dict.fromkeys(heads, (0.0, 1.0))
    by_name = dict(zip(short, functions, strict=True))
    begin = None if task.environment is None else lambda row: replayed(task, row, [])
    for name in own:
        if name not in heads:  # which would load their models
            try_reward(name, by_name[name], rows, environment=begin)
    return replace(
        task,
        reward_funcs=_unless_ungraded(task, by_name),
        reward_weights={name: weights.get(name, 1.0) for name in short},
        reward_bounds={name: bounds[name] for name in short if name in bounds},
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


def _load(task: str, name: str, known: Sequence[str]) -> Callable[..., Any]:
    if name.startswith(PROBE):
        from podsrl.probe.reward import probe_reward

        return probe_reward(name.removeprefix(PROBE))
    if ":" in name:
        return load_function(name)
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"{task} has {', '.join(known)};"
    raise ValueError(f"reward_funcs names {name}: {hint} Own ones are written FILE.py:FUNCTION")


def _check_tags(task: Task, names: Sequence[str]) -> None:
    for name in NEEDS_TAGS:
        if name in names and not task.has_format:
            raise ValueError(
                f"reward_funcs names {name}, which compares the answer with the reasoning before "
                f"it, but answers of {task.name} are the last number of the text: set "
                "answer_format to tags, or write a check of your own"
            )


def _check_order(task: Task, names: Sequence[str]) -> None:
    """The others read what correctness could not grade, and which prompts have no majority."""
    first = next(iter(task.reward_funcs))
    if MAJORITY in names and names[0] != MAJORITY:
        raise ValueError(
            f"reward_funcs names {names[0]} before {MAJORITY}: put {MAJORITY} first, as the others "
            "leave out prompts without one"
        )
    places = [place for place, name in enumerate(names) if name in task.reward_funcs]
    if first in names and places and names[places[0]] != first:
        raise ValueError(
            f"reward_funcs names {names[places[0]]} before {first}: put {first} first, as the "
            "others leave out what it could not grade"
        )


def _unless_ungraded(
    task: Task, functions: dict[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """The functions, those after majority or correctness without a value where it has none."""
    names = list(functions)
    for leader in (MAJORITY, next(iter(task.reward_funcs))):
        if leader in names:
            place = names.index(leader)
            rest = [functions[name] for name in names[place + 1 :]]
            following = unless_failed(functions[leader], *rest)
            functions = functions | dict(zip(names[place:], following, strict=True))
    return functions
