"""What is asked, how, and what answers are worth: the settings of training and evaluating alike."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from podsrl.plugins import load_plugins
from podsrl.tasks import Task, load_task
from podsrl.tasks.base import Row
from podsrl.tasks.majority import DEFAULT_GATE, MAJORITY
from podsrl.tasks.mixture import from_text
from podsrl.tasks.rewarded import with_grader, with_rewards

DEFAULT_TASK = "arithmetic"
# How questions are put; options of tasks that have fields of their own.
PROMPT_SETTINGS = ("system_prompt", "prompt_template", "answer_format", "answer_column")
# Which questions there are, as against how they are put.
DATASET_SETTINGS = (
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "datasets",
    "test_datasets",
    "test_split_size",
)
NAMES_OF_DATA = ("dataset_name", "datasets", "test_datasets")
DATA_SETTINGS = ("task", "data", *DATASET_SETTINGS)


@dataclass
class QuestionArguments:
    """The questions, how they are put, and the rewards."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "arithmetic (default), gsm8k, math, amc23, guess, reasoning_gym:<name>, "
            "jsonl:<path>, or dataset, the default with dataset_name or datasets."
        },
    )
    task_arguments: dict | str | None = field(
        default=None,
        metadata={"help": "Options of the task, as a YAML mapping or JSON text."},
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder or file with the task's data, instead of the hub."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Your own data: an id of the hub, a folder, or a file (docs/data.md)."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of dataset_name."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split of dataset_name to train on."}
    )
    dataset_test_split: str = field(
        default="test", metadata={"help": "Split of dataset_name that is held out."}
    )
    datasets: list[str] | None = field(  # mappings, too, which no flag's type can say
        default=None,
        metadata={
            "help": "A mixture to train on: paths, and mappings of path, name, data_dir, "
            "data_files, split, columns and fraction."
        },
    )
    test_datasets: list[str] | None = field(
        default=None, metadata={"help": "Held-out data, written as datasets are."}
    )
    test_split_size: float | None = field(
        default=None,
        metadata={
            "help": "Share of the data to train on that is held out instead. Default: 0.1 of a "
            "file or mixture without test_datasets."
        },
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
    grader: str | None = field(
        default=None,
        metadata={
            "help": "What decides which answers are right, instead of the task's: math, a name "
            "that plugins add, or FILE.py:FUNCTION."
        },
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards instead of the task's: its own by name, majority, and functions of "
            "yours as FILE.py:FUNCTION or MODULE:FUNCTION, and heads as probe:HEAD.safetensors."
        },
    )
    majority_gate: float | None = field(
        default=None,
        metadata={
            "help": "Reward majority: the least share of a prompt's rollouts that must agree for "
            f"the prompt to have a reward, 0 to 1. Default: {DEFAULT_GATE}."
        },
    )
    plugins: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files or modules of yours that add rules, estimators, objectives, tasks "
            "or graders."
        },
    )

    def __post_init__(self) -> None:
        self.datasets, self.test_datasets = map(from_text, (self.datasets, self.test_datasets))
        self._check_data()
        if self.majority_gate is not None and not 0 <= self.majority_gate <= 1:
            raise ValueError(f"majority_gate is {self.majority_gate}: a share, choose 0 to 1")
        if isinstance(self.task_arguments, str):
            self.task_arguments = _json("task_arguments", self.task_arguments)
        if not isinstance(self.task_arguments, dict | None):
            raise ValueError(
                f"task_arguments is {self.task_arguments!r}: write a mapping, as in "
                "--task_arguments '{\"num_test\": 512}'"
            )

    def _check_data(self) -> None:
        """Fill in the task that the data names; `ValueError` for data that no task asks for."""
        named = next((n for n in NAMES_OF_DATA if getattr(self, n) is not None), "")
        self.task = self.task or ("dataset" if named else DEFAULT_TASK)
        if named and self.task != "dataset":
            raise ValueError(
                f"task is {self.task}, and {named} is {getattr(self, named)!r}: leave one out; "
                "data of a task's own form is given with data"
            )
        for name in DATASET_SETTINGS:
            if not named and getattr(self, name) != getattr(QuestionArguments, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but there is neither dataset_name nor "
                    "datasets: name the data"
                )


def named_task(arguments: QuestionArguments, *, seed: int) -> Task:
    """Return the task that the settings name, its questions put as they say.

    Records of one's own may lack answers where `majority` is a reward and `correctness` is none.

    Raises: ValueError as `load_task` does, and for an option that is given twice.

    Example: `named_task(QuestionArguments(system_prompt="Be brief."), seed=0)`.
    """
    load_plugins(arguments.plugins or ())
    assert not isinstance(arguments.task_arguments, str)
    options = dict(arguments.task_arguments or {})
    names = PROMPT_SETTINGS + (DATASET_SETTINGS if arguments.task == "dataset" else ())
    for name in names:
        value = getattr(arguments, name)
        if value is None or (
            name in DATASET_SETTINGS and value == getattr(QuestionArguments, name)
        ):
            continue
        if name in options:
            raise ValueError(
                f"{name} is {value!r}, and {options[name]!r} in task_arguments: leave one out"
            )
        options[name] = value
    assert arguments.task is not None  # filled in
    named = arguments.reward_funcs or ()
    if is_own_data(arguments.task) and MAJORITY in named and "correctness" not in named:
        options.setdefault("needs_answers", False)
    return load_task(arguments.task, data=arguments.data, seed=seed, **options)


def as_rewarded(task: Task, arguments: QuestionArguments, rows: Sequence[Row]) -> Task:
    """Return the task with the grader and the rewards that the settings name, tried on rows of it.

    Raises: ValueError as `with_grader` and `with_rewards` do.
    """
    graded = with_grader(task, arguments.grader, rows[0])
    gate = DEFAULT_GATE if arguments.majority_gate is None else arguments.majority_gate
    return with_rewards(graded, arguments.reward_funcs, rows, majority_gate=gate)


def try_held_out(task: Task, arguments: QuestionArguments, rows: Sequence[Row]) -> None:
    """Try the rewards on held-out rows, which may lack a column that the others have.

    Raises: ValueError as `as_rewarded` does, saying of which rows.
    """
    try:
        as_rewarded(task, arguments, rows)
    except ValueError as error:
        raise ValueError(f"on held-out questions: {error}") from error


def with_answers(rows: list[Row], split: str) -> list[Row]:
    """Return the rows; ValueError where a question of an evaluation has no right answer."""
    without = [number for number, row in enumerate(rows, 1) if row.get("answer", "") is None]
    if without:
        raise ValueError(
            f"question {without[0]} of the {split} split has no answer, nor have {len(without)} of "
            f"{len(rows)}: hold out questions with answers (test_datasets), or set evaluate_limit "
            "to 0"
        )
    return rows


def is_own_data(task: str) -> bool:
    """Whether a task's questions are the user's records, which are all put in the same way."""
    return task == "dataset" or task.startswith("jsonl:")


def prompts_of(arguments: QuestionArguments) -> dict[str, Any]:
    """Return how questions are put and graded, as far as it is said, by name of the setting.

    Example: `prompts_of(QuestionArguments(system_prompt="Be brief."))` has that name alone.
    """
    told = {name: getattr(arguments, name) for name in (*PROMPT_SETTINGS, "grader")}
    return {name: value for name, value in told.items() if value is not None}


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is {text!r}, which is not JSON: {error}") from error
