"""One data set with its rewards per file; `TASKS` names them all."""

import inspect
from collections.abc import Callable
from typing import Any

from podsrl.tasks.amc23 import amc23
from podsrl.tasks.arithmetic import arithmetic
from podsrl.tasks.base import Task
from podsrl.tasks.dataset import dataset
from podsrl.tasks.gsm8k import gsm8k
from podsrl.tasks.guess import guess
from podsrl.tasks.jsonl import jsonl
from podsrl.tasks.math import math
from podsrl.tasks.reasoning_gym import reasoning_gym
from podsrl.tasks.template import with_prompts

__all__ = ["TASKS", "Task", "load_task"]

TASKS: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic,
    "gsm8k": gsm8k,
    "math": math,
    "amc23": amc23,
    "guess": guess,
    "reasoning_gym": reasoning_gym,
    "jsonl": jsonl,
    "dataset": dataset,
}
# These take what follows the colon.
NEEDS_DETAIL = {"reasoning_gym": "reasoning_gym:<data set>", "jsonl": "jsonl:<path>"}


def load_task(
    spec: str,
    *,
    data: str | None = None,
    seed: int = 0,
    system_prompt: str | None = None,
    prompt_template: str | None = None,
    **arguments: Any,
) -> Task:
    """Return the task that `spec` names; nothing is downloaded before its rows are asked for.

    `spec`: arithmetic, gsm8k, math, amc23, guess, reasoning_gym:<data set>, jsonl:<path>, or
    dataset, whose data its arguments name. `data`: local files in place of the hub. `seed`: the
    train questions of generated tasks. `system_prompt`, `prompt_template`: how its questions are
    put (`template.with_prompts`). `arguments`: options of the task, for example `num_test=512` of
    arithmetic.

    Raises: ValueError for an unknown task or argument, naming those there are.

    Example: `load_task("gsm8k", data="gsm8k_folder").rows("test", limit=16)`.
    """
    name, _, detail = spec.partition(":")
    if name not in TASKS:
        known = [NEEDS_DETAIL.get(task, task) for task in TASKS]
        raise ValueError(f"task is {spec!r}: choose from {', '.join(known)}")
    if bool(detail) != (name in NEEDS_DETAIL):
        raise ValueError(f"task is {spec!r}: write {NEEDS_DETAIL.get(name, name)}")
    if (
        prompt_template is not None
        and "prompt_template" in inspect.signature(TASKS[name]).parameters
    ):
        arguments["prompt_template"], prompt_template = prompt_template, None
    _check_arguments(name, arguments)
    task = TASKS[name](*([detail] if detail else []), data=data, seed=seed, **arguments)
    return with_prompts(task, system_prompt=system_prompt, prompt_template=prompt_template)


def _check_arguments(name: str, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(TASKS[name]).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [
        p.name
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in ("data", "seed")
    ]
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"task {name} has no argument {argument!r}: it has {', '.join(known)}")
