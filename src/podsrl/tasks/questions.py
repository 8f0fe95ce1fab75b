"""What is asked, how, and what answers are worth: the settings of training and evaluating alike."""

import json
from dataclasses import dataclass, field
from typing import Any

from podsrl.plugins import load_plugins
from podsrl.tasks import Task, load_task

DEFAULT_TASK = "arithmetic"
# How questions are put; options of tasks that have fields of their own.
PROMPT_SETTINGS = ("system_prompt", "prompt_template", "answer_format", "answer_column")
# Which questions there are, as against how they are put.
DATA_SETTINGS = ("data",)


@dataclass
class QuestionArguments:
    """The questions, how they are put, and the rewards."""

    task: str = field(
        default=DEFAULT_TASK,
        metadata={"help": "arithmetic, gsm8k, math, amc23, reasoning_gym:<name> or jsonl:<path>."},
    )
    task_arguments: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the task, as a YAML mapping or JSON text."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder or file with the task's data, instead of the hub."}
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "System message of every prompt, instead of the one it has; empty for none."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "The user's message, with columns of the data in braces: '{question} Be brief.'"
        },
    )
    answer_format: str | None = field(
        default=None,
        metadata={
            "help": "Where the final answer stands: tags (the default of most tasks), which a "
            "system message asks for, or number, the last number of the text."
        },
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "Column of your own data with the right answer. Default: answer."},
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards instead of the task's: its own by name, and functions of yours as "
            "FILE.py:FUNCTION or MODULE:FUNCTION."
        },
    )
    plugins: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files or modules of yours that add rules, estimators, objectives or tasks."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.task_arguments, str):
            self.task_arguments = _json("task_arguments", self.task_arguments)
        if not isinstance(self.task_arguments, dict | None):
            raise ValueError(
                f"task_arguments is {self.task_arguments!r}: write a mapping, as in "
                "--task_arguments '{\"num_test\": 512}'"
            )


def named_task(arguments: QuestionArguments, *, seed: int) -> Task:
    """Return the task that the settings name, its questions put as they say.

    Raises: ValueError as `load_task` does, and for an option that is given twice.

    Example: `named_task(QuestionArguments(system_prompt="Be brief."), seed=0)`.
    """
    load_plugins(arguments.plugins or ())
    assert not isinstance(arguments.task_arguments, str)
    options = dict(arguments.task_arguments or {})
    for name in PROMPT_SETTINGS:
        value = getattr(arguments, name)
        if value is None:
            continue
        if name in options:
            raise ValueError(
                f"{name} is {value!r}, and {options[name]!r} in task_arguments: leave one out"
            )
        options[name] = value
    return load_task(arguments.task, data=arguments.data, seed=seed, **options)


def prompts_of(arguments: QuestionArguments) -> dict[str, Any]:
    """Return how questions are put, as far as it is said, by name of the setting.

    Example: `prompts_of(QuestionArguments(system_prompt="Be brief."))` has that name alone.
    """
    told = {name: getattr(arguments, name) for name in PROMPT_SETTINGS}
    return {name: value for name, value in told.items() if value is not None}


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is {text!r}, which is not JSON: {error}") from error
