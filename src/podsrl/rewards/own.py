"""A user's own reward functions: called as TRL calls them, and tried before anything is loaded."""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from podsrl.plugins import told_with_line

NUM_TRIED = 2


def call_reward(
    function: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    completion_ids: Sequence[list[int]],
    *,
    completions: Sequence[list[dict[str, Any]]] | None = None,
    environments: Sequence[Any] | None = None,
) -> Any:
    """Return what a reward function, plain or async, gives for one text of each row.

    It gets what TRL gives it: prompts, completions as messages, token ids, every column of the
    rows by its name, the trainer's state (a new one's), and two functions for logging, which do
    nothing here; with turns `completions`, which are one message of each text else, and the
    environments.
    """
    from transformers import TrainerState

    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name != "prompt"}
    given = function(
        prompts=[row["prompt"] for row in rows],
        completions=completions or [[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=list(completion_ids),
        **columns,
        **({} if environments is None else {"environments": environments}),
        trainer_state=TrainerState(),
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
    )
    return asyncio.run(given) if inspect.iscoroutine(given) else given


def try_reward(
    name: str,
    function: Callable[..., Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    environment: Callable[[Mapping[str, Any]], Any] | None = None,
) -> None:
    """Raise `ValueError` unless the function rewards two made-up answers, one of them right.

    It must give as many values as there are completions, each a finite number, or None for one
    that could not be scored.

    rows: questions of the task it will be used on; they are asked in turn.
    environment: makes that of a row, where the task has turns.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = code.co_filename if code else None
    asked = [rows[i % len(rows)] for i in range(NUM_TRIED)]
    texts = [f"<answer>{asked[0].get('answer', '')}</answer>", "I do not know."]
    try:
        made = None if environment is None else [environment(row) for row in asked]
        values = call_reward(function, asked, texts, [[0], [0, 1]], environments=made)
    except (Exception, SystemExit) as error:  # the user's code: anything may come out of it
        raise ValueError(
            f"{name} fails on two made-up answers: {told_with_line(error, where)}"
        ) from error
    begin = f"{where}, line {code.co_firstlineno}: {name}" if code else name
    if not isinstance(values, Sequence) and not hasattr(values, "tolist"):
        raise ValueError(f"{begin} returns {values!r}: return a list of one number per completion")
    values = list(values.tolist() if hasattr(values, "tolist") else values)
    if len(values) != NUM_TRIED:
        raise ValueError(
            f"{begin} returns {len(values)} values for {NUM_TRIED} completions: return one for each"
        )
    for value in values:
        if value is not None and not _is_number(value):
            raise ValueError(
                f"{begin} returns {value!r}: return finite numbers, or None where there is no score"
            )


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
