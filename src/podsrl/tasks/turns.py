"""Tasks of several turns: an environment answers what the model calls, and says what it earned.

An environment is TRL's: `reset(**row)` begins a rollout, and every other public method is a tool
that the model may call, with a docstring that says what its arguments are. Beside these it has
`score`, a property from 0 to 1, where 1 is success. What it answers should follow from the row and
the calls alone, so that it is made anew, at any turn, by calling again what was called.
"""

import inspect
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from podsrl.tasks.base import Row, Task

# Public methods of an environment that are no tools, as TRL has it.
NO_TOOLS = ("reset", "get_reward")


def make_turns_task(
    name: str,
    load_split: Callable[[str], Sequence[Row]],
    *,
    environment: Callable[[], Any],
    max_calls: int,
    max_new_tokens: int,
) -> Task:
    """Return a task whose rollouts are dialogues with an environment, made anew for each.

    max_calls: tools called in turn at most; after the last the model has one more turn.
    max_new_tokens: of a whole dialogue, those of the environment included.

    Its one reward is `correctness`, the environment's `score`. There is no final answer in a text,
    so there are no votes, and `score` of the task raises.

    Raises: ValueError for an environment without `reset` or `score`, without a tool or with one
    that is async.

    Example: `guess.py` is such a task.
    """
    _check(name, environment())
    return Task(
        name=name,
        load_split=load_split,
        extract_answer=lambda text: None,
        score=_not_by_text,
        reward_funcs={"correctness": correctness},
        reward_weights={"correctness": 1.0},
        reward_bounds={"correctness": (0.0, 1.0)},
        has_format=False,
        max_new_tokens=max_new_tokens,
        environment=environment,
        max_calls=max_calls,
    )


def correctness(environments: Sequence[Any], **_: Any) -> list[float | None]:
    """Return the score that each rollout's environment gives."""
    return [float(environment.score) for environment in environments]


def tools_of(environment: Any) -> list[Callable[..., Any]]:
    """Return the methods of an environment that a model may call, in the order of their names."""
    members = inspect.getmembers(type(environment), inspect.isfunction)
    names = [name for name, _ in members if name not in NO_TOOLS and not name.startswith("_")]
    return [getattr(environment, name) for name in names]


class AnswersDiffer(ValueError):
    """A tool, called as before, answers otherwise than it did."""


def replayed(task: Task, row: Row, messages: Sequence[Mapping[str, Any]]) -> Any:
    """Return an environment of the task as it is after these messages of a rollout of the row.

    messages: of the rollout alone, as many of its turns as are to be made again.

    Raises: AssertionError for a task of one turn; `AnswersDiffer` as `call_again` does.

    Example: no messages give the environment as it is when the rollout begins.
    """
    assert task.environment is not None
    environment = task.environment()
    environment.reset(**row)
    tools = {tool.__name__: tool for tool in tools_of(environment)}
    call_again(tools, messages, max_calls=task.max_calls)
    return environment


def call_again(
    tools: Mapping[str, Callable[..., Any]],
    messages: Sequence[Mapping[str, Any]],
    *,
    max_calls: int | None,
    last: Container[str] = (),
) -> None:
    """Call the tools as the messages of a rollout called them, as training does it.

    A call that fails is answered with its error there, and is made again like any other; those
    after `max_calls` turns that called are not made (None: all are). Answers that stand in the
    messages must come again; a call at their end may be without one.

    last: names of tools whose answers stand behind those of all others of a turn.

    Raises: `AnswersDiffer` with the first answers that are others.

    Example: of a game for 5, `guess(3)` and its answer "higher" leave the environment with one
    guess; with "lower" there it raises.
    """
    calling = [i for i, message in enumerate(messages) if message.get("tool_calls")]
    for place in calling[:max_calls]:
        calls = [(_named(call), call) for call in messages[place]["tool_calls"]]
        calls.sort(key=lambda pair: pair[0].get("name") in last)
        answers = [_answer(tools, function, call["type"]) for function, call in calls]
        rest = itertools.takewhile(lambda each: each["role"] == "tool", messages[place + 1 :])
        said = [each["content"] for each in rest]
        if answers[: len(said)] != said:
            raise AnswersDiffer(f"it answers {answers}, and not {said}")


def _named(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function that a call names, with its arguments."""
    function: Mapping[str, Any] = call.get("function", call)
    return function


def _answer(tools: Mapping[str, Callable[..., Any]], function: Mapping[str, Any], kind: str) -> Any:
    try:
        if kind != "function":
            raise ValueError(f"Unsupported tool call type: {kind}")
        if function["name"] not in tools:
            raise ValueError(f"Tool {function['name']} not found.")
        result = tools[function["name"]](**function["arguments"])
    except Exception as error:  # whatever a tool raises, TRL tells the model
        result = {"error": str(error)}
    return result if isinstance(result, list) else str(result)


def refuse_turns(task: Task, what: str, remedy: str) -> None:
    """Raise ValueError where the task has turns, which `what` cannot go with.

    Example: of a task of one turn nothing is said.
    """
    if task.environment is not None:
        raise ValueError(f"{what}, but {task.name} has several turns: {remedy}")


def _check(name: str, environment: Any) -> None:
    missing = [each for each in ("reset", "score") if not hasattr(type(environment), each)]
    tools = tools_of(environment)
    if not tools:
        missing.append("a method that the model may call")
    if missing:
        raise ValueError(f"the environment of {name} lacks {' and '.join(missing)}: add it")
    for tool in tools:
        if inspect.iscoroutinefunction(tool):
            raise ValueError(
                f"{tool.__name__} of the environment of {name} is async, which evaluations do not "
                "play: make it a plain method"
            )


def _not_by_text(texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    raise ValueError(
        "the environment scores a rollout of several turns, not its text: let "
        "podsrl.evaluate.evaluate play it"
    )
