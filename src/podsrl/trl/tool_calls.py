"""What TRL works out anew for every tool call, though nothing of it has changed: worked out once.

In a dialogue of five short turns with a small model these were most of the time of sampling: two
renderings of the chat template for each answer, and each tool's schema for each call that is read.
No token changes: a schema follows from the tool's signature and docstring, and the tokens that
stand around an answer from the answer.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from transformers.utils import get_json_schema

NUM_KNOWN = 256  # answers whose tokens are kept; they may be long

Messages = list[dict[str, Any]]


def render_once(host: Any) -> None:
    """Give a GRPOTrainer's prompts and its reader of calls schemas, and equal answers equal tokens.

    A chat template takes schemas where it takes functions, of which it would make them each time.

    Raises: what transformers raises of a tool whose docstring makes no schema.

    Example: without tools nothing changes.
    """
    if not host.tools:
        return
    host.tools = as_schemas(host.tools)
    if host.environment_factories is not None:
        host._env_tools = {name: as_schemas(tools) for name, tools in host._env_tools.items()}
    host._get_tool_suffix_ids = remembered(host._get_tool_suffix_ids)


def as_schemas(tools: Iterable[Any]) -> list[Any]:
    """The tools as the chat template would have them; what is neither function nor method stays."""
    return [
        get_json_schema(tool) if inspect.isfunction(tool) or inspect.ismethod(tool) else tool
        for tool in tools
    ]


def remembered(render: Callable[[Messages], list[int]]) -> Callable[[Messages], list[int]]:
    """`render` of tool messages, asked once for messages that are the same text.

    Messages with anything but text, such as images, are rendered each time.
    """

    @functools.lru_cache(maxsize=NUM_KNOWN)
    def known(texts: tuple[tuple[tuple[str, str], ...], ...]) -> list[int]:
        return render([dict(items) for items in texts])

    def suffix_ids(messages: Messages) -> list[int]:
        if not all(isinstance(value, str) for each in messages for value in each.values()):
            return render(messages)
        return list(known(tuple(tuple(each.items()) for each in messages)))

    return suffix_ids
