"""How settings are read and refused: one error each, with the remedy."""

import json
from collections.abc import Mapping
from typing import Any


def check_needs(what: str, needs: Mapping[str, Any], otherwise: str) -> None:
    """Raise `ValueError` for the first need that is not met.

    what: who needs it. needs: each in words, its reason with it, and whether it is met. otherwise:
    what to do where it is not to be changed.

    Example: `check_needs("early_stop needs", {"use_vllm=False": False}, "leave early_stop out")`
    says "early_stop needs use_vllm=False. Change it, or leave early_stop out."
    """
    for need, is_met in needs.items():
        if not is_met:
            raise ValueError(f"{what} {need}. Change it, or {otherwise}.")


def refuse_cases(what: str, cases: Mapping[str, Any], otherwise: str) -> None:
    """Raise `NotImplementedError` for the first case that holds.

    what: who does not serve it, to the verb. cases: each in words, and whether it holds. otherwise:
    what to do.

    Example: `refuse_cases("x does not serve", {"images": True}, "leave x out.")` says "x does not
    serve images: leave x out."
    """
    for case, holds in cases.items():
        if holds:
            raise NotImplementedError(f"{what} {case}: {otherwise}")


def from_json(name: str, value: Any, example: str) -> Any:
    """Return the value of a setting, which a flag gives as JSON.

    Raises `ValueError` for text that is none.

    Example: the text `[1]` gives [1], and so does [1].
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is {value!r}, no JSON: write {example}.") from error
