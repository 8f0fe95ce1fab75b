"""Going on from the midst of a rollout: its tokens, its messages, and the environment's state.

TRL keeps no state of an environment but the last. Its state before a turn is made again: a reset
with the same row, and the same calls. What comes back is compared with what came back then.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from trl import GRPOTrainer
from trl.chat_template_utils import parse_response

from podsrl.tasks.turns import AnswersDiffer, call_again
from podsrl.trl.dialogue import Dialogue
from podsrl.trl.sample_and_score import prepared_prompts


def turns_from(host: GRPOTrainer, dialogues: Sequence[Dialogue], turn: int) -> list[Dialogue]:
    """One rollout for each of the dialogues that shares all before its turn of that number.

    Equal dialogues should be neighbours: they share the reading of what they share. TRL's limits of
    tokens and of tool calls hold for the whole rollout.

    Raises: `ValueError` where an environment answers otherwise than it did.
    """
    rows, heads = [dict(each.row) for each in dialogues], [each.until(turn) for each in dialogues]
    prompts = prepared_prompts(host, rows)
    for place, (head, prompt) in enumerate(zip(heads, prompts, strict=True)):
        bring_back(host, place, prompt, head)
    contexts = [head.prompt_ids + head.completion_ids for head in heads]
    written, log_probs = host._generate_single_turn(contexts, None, {}, host.args.sdpo_branches)
    room = [host.max_completion_length - len(head.completion_ids) for head in heads]
    written = [ids[:most] for ids, most in zip(written, room, strict=True)]
    if log_probs is not None:
        log_probs = [
            [*(head.log_probs or []), *own[:most]]
            for head, own, most in zip(heads, log_probs, room, strict=True)
        ]
    with _calls_made(host, turn):
        tool_mask, messages, completion_ids, log_probs, *_ = host._tool_call_loop(
            [[*prompt, *head.messages] for prompt, head in zip(prompts, heads, strict=True)],
            [head.prompt_ids for head in heads],
            [head.completion_ids + ids for head, ids in zip(heads, written, strict=True)],
            _messages(host, written, contexts),
            log_probs,
            None,
            {},
        )
    return [
        Dialogue(
            row=rows[i],
            prompt=head.prompt,
            prompt_ids=head.prompt_ids,
            completion_ids=completion_ids[i],
            tool_mask=[*head.tool_mask, *tool_mask[i][len(head.tool_mask) :]],
            messages=[*head.messages, *messages[i]],
            log_probs=log_probs and log_probs[i],
        )
        for i, head in enumerate(heads)
    ]


def bring_back(host: GRPOTrainer, place: int, prompt: Any, head: Dialogue) -> None:
    """Make the dialogue's calls to the environment in that place, which was just reset.

    Tools without an environment have no state, and are not called again.

    prompt: what the environment's reset made of the question.

    Raises: `ValueError` where that, or an answer, differs from what it was.
    """
    if host.environments is None:
        return
    if prompt != head.prompt:
        raise ValueError(_differs(host, place, "its reset adds other words to the question"))
    at_once = host._sync_tool_dicts[place]
    later = {
        name: partial(_waited_for, host, tool)
        for name, tool in host._async_tool_dicts[place].items()
        if name not in at_once
    }
    most = host.max_tool_calling_iterations
    try:
        call_again({**at_once, **later}, head.messages, max_calls=most, last=later)
    except AnswersDiffer as error:
        raise ValueError(_differs(host, place, str(error))) from error


def _waited_for(host: GRPOTrainer, tool: Callable[..., Any], **arguments: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(tool(**arguments), host.async_loop).result()


def _messages(
    host: GRPOTrainer, written: Sequence[list[int]], contexts: Sequence[list[int]]
) -> list[list[dict[str, Any]]]:
    """What the model wrote, read as TRL reads it: with its tool calls."""
    tools = [host.tools] * len(written)
    if host.environment_factories is not None:
        tools = [host._env_tools[name] for name in host._batch_environments]
    return [
        [parse_response(host._tokenizer, ids, prefix=context, tools=own)]
        for ids, context, own in zip(written, contexts, tools, strict=True)
    ]


@contextmanager
def _calls_made(host: GRPOTrainer, num: int) -> Iterator[None]:
    """TRL counts rounds of tool calls from here: for a while it has so many fewer left."""
    before = host.max_tool_calling_iterations
    host.max_tool_calling_iterations = before - num
    try:
        yield
    finally:
        host.max_tool_calling_iterations = before


def _differs(host: GRPOTrainer, place: int, what: str) -> str:
    name = type(host.environments[place]).__name__
    return (
        f"sdpo_segment='value_drop' goes on from the midst of a rollout, but a reset with the same "
        f"row and the same calls do not bring the environment {name} back there: {what}. Let all "
        "that it says follow from the row and the calls, or set sdpo_segment='fixed'."
    )
