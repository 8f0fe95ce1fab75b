"""Going on from the midst of a rollout: its tokens, its messages, and the environment's state.

TRL keeps no state of an environment but the last. Its state before a turn is made again: a reset
with the same row, and the same calls. What comes back is compared with what came back then.

Shape letters: F reward functions.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response

from podsrl.trl.batch import Rollouts
from podsrl.trl.sample_and_score import prepared_prompts


@dataclass
class Dialogue:
    """One rollout of several turns, with all that is needed to go on from before any of them."""

    row: dict[str, Any]
    """Of the data set, as the environment's reset is given it."""
    prompt: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int]
    messages: list[dict[str, Any]]
    log_probs: list[float] | None
    rewards_F: Tensor
    reward: float
    starts: list[int] = field(init=False)
    """Where each turn begins in `completion_ids`."""

    def __post_init__(self) -> None:
        before = [0, *self.tool_mask[:-1]]
        pairs = enumerate(zip(before, self.tool_mask, strict=True))
        self.starts = [i for i, (last, own) in pairs if own and not last]

    @property
    def num_turns(self) -> int:
        """How often the model wrote."""
        return len(self.starts)

    def until(self, turn: int) -> "Dialogue":
        """What came before the turn of that number; the rewards stay those of the whole."""
        start, roles = self.starts[turn], [message["role"] for message in self.messages]
        own = [place for place, role in enumerate(roles) if role == "assistant"]
        return replace(
            self,
            completion_ids=self.completion_ids[:start],
            tool_mask=self.tool_mask[:start],
            messages=self.messages[: own[turn]],
            log_probs=self.log_probs and self.log_probs[:start],
        )


def dialogue_of(rollouts: Rollouts, row: int, reward: float) -> Dialogue:
    """The rollout in that row; `reward` is its one combined reward."""
    prompt_ids, completion_ids, tool_mask, completions, log_probs, *_ = rollouts.generated
    return Dialogue(
        row=rollouts.inputs[row],
        prompt=rollouts.prompts[row],
        prompt_ids=prompt_ids[row],
        completion_ids=completion_ids[row],
        tool_mask=tool_mask[row],
        messages=completions[row],
        log_probs=log_probs and log_probs[row],
        rewards_F=rollouts.rewards_per_func[row],
        reward=reward,
    )


def turns_from(host: GRPOTrainer, dialogues: Sequence[Dialogue], turn: int) -> list[Dialogue]:
    """One rollout for each of the dialogues that shares all before its turn of that number.

    Equal dialogues should be neighbours: they share the reading of what they share. TRL's limits of
    tokens and of tool calls hold for the whole rollout. Rewards are still those of the dialogue.

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
        replace(
            head,
            row=rows[i],
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
    for i, message in enumerate(head.messages):
        if not message.get("tool_calls"):
            continue
        rest = itertools.takewhile(lambda each: each["role"] == "tool", head.messages[i + 1 :])
        said = [each["content"] for each in rest]
        answers = _answers(host, place, message["tool_calls"])
        if answers != said:
            raise ValueError(_differs(host, place, f"it answers {answers}, and not {said}"))


def _answers(host: GRPOTrainer, place: int, calls: Sequence[dict[str, Any]]) -> list[Any]:
    """What tools say to these calls, as TRL writes it down: asynchronous ones last."""
    at_once, later = host._sync_tool_dicts[place], host._async_tool_dicts[place]
    found = []
    for tools in (at_once, later):
        for call in calls:
            function = call.get("function", call)
            if (function.get("name") in later) == (tools is later):
                found.append(_answer(host, tools, call["type"], function))
    return found


def _answer(host: GRPOTrainer, tools: dict[str, Any], kind: str, function: dict[str, Any]) -> Any:
    try:
        if kind != "function":
            raise ValueError(f"Unsupported tool call type: {kind}")
        if function["name"] not in tools:
            raise ValueError(f"Tool {function['name']} not found.")
        result = tools[function["name"]](**function["arguments"])
        if asyncio.iscoroutine(result):
            result = asyncio.run_coroutine_threadsafe(result, host.async_loop).result()
    except Exception as error:  # whatever a tool raises, TRL tells the model
        result = {"error": str(error)}
    return result if isinstance(result, list) else str(result)


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
