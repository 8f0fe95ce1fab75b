"""Dialogues played as TRL plays them in training, without a trainer: for evaluations.

GRPOTrainer's own methods prepare the rows and take turns with the environments. They are called on
a host that has what they read and no more, as a trainer would bring along optimizer and processes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOTrainer
from trl.chat_template_utils import (
    add_response_schema,
    get_training_chat_template,
    is_chat_template_prefix_preserving,
    supports_tool_calling,
)

from podsrl.tasks.base import Row, Task
from podsrl.tasks.turns import tools_of
from podsrl.trl.dialogue import Dialogue, dialogue_of
from podsrl.trl.sample_and_score import Prepared
from podsrl.trl.tool_calls import render_once

Sample = Callable[[list[list[int]]], list[list[int]]]
"""Prompts in tokens -> a completion of each, its end token included."""
# Of GRPOTrainer, called as the host's own.
BORROWED = ("_tokenize_prompts", "_get_tool_suffix_ids", "_tool_call_loop")


def play(
    model: torch.nn.Module,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    sample: Sample,
    *,
    max_new_tokens: int,
) -> tuple[list[Dialogue], list[Any]]:
    """Return a dialogue for each row, all played side by side, and their environments at its end.

    sample: called once for each turn, with the dialogues so far that go on. max_new_tokens: of a
    dialogue after its prompt; it ends where what comes back would exceed it.

    Raises: ValueError as `check_tools` does.

    Example: where each first turn finds the number, `sample` is called twice: the model has a turn
    after each call's answer.
    """
    check_tools(tokenizer, task)
    host = _host(model, tokenizer, task, sample, max_new_tokens)
    rows = [dict(row) for row in rows]
    prompts = _prepared(host, rows)
    generated = GRPOTrainer._generate(host, prompts)
    dialogues = [dialogue_of(rows, prompts, generated, place) for place in range(len(rows))]
    return dialogues, host.environments


def check_tools(tokenizer: Any, task: Task) -> None:
    """Raise `ValueError` where a task has turns and the chat template cannot put a tool's call.

    What parses the calls is added to the tokenizer where TRL knows its template.
    """
    if task.environment is None:
        return
    what = f"{task.name} is played by calling tools, but the model's chat template"
    remedy = "take a model that was trained to call tools, such as Qwen/Qwen3-0.6B"
    if not supports_tool_calling(tokenizer):
        raise ValueError(f"{what} leaves their calls or answers out: {remedy}")
    names = ("response_template", "response_schema")
    if all(getattr(tokenizer, name, None) is None for name in names):
        try:
            add_response_schema(tokenizer)
        except ValueError as error:
            raise ValueError(
                f"{what} is not one whose calls TRL can read ({error}): {remedy}, or give the "
                "tokenizer a response_template"
            ) from error


def transcript(
    tokenizer: Any, completion_ids: Sequence[int], mask: Sequence[int]
) -> tuple[str, list[list[int]]]:
    """Return the text of a rollout, and where in it stands what the model did not write.

    Each pair is the first character of such a part and the one after it. Parts without a visible
    character are left out.

    Example: tokens "3", "high", "4" with mask (1, 0, 1): "3high4" and [[1, 5]].
    """
    text, given = "", []
    for is_own, run in groupby(zip(completion_ids, mask, strict=True), key=lambda pair: pair[1]):
        start = len(text)
        text += tokenizer.decode([token for token, _ in run], skip_special_tokens=True)
        if not is_own and len(text) > start:
            given.append([start, len(text)])
    return text, given


def _host(
    model: Any, tokenizer: Any, task: Task, sample: Sample, max_new_tokens: int
) -> SimpleNamespace:
    """What GRPOTrainer's methods of preparing and sampling read of a trainer that evaluates."""
    assert task.environment is not None
    tools = tools_of(task.environment())
    keeps_prefix = is_chat_template_prefix_preserving(tokenizer)
    host = SimpleNamespace(
        model=SimpleNamespace(training=False, config=model.config),
        accelerator=SimpleNamespace(device=model.device, gather=lambda tensor: tensor),
        processing_class=tokenizer,
        _tokenizer=tokenizer,
        chat_template=None if keeps_prefix else get_training_chat_template(tokenizer),
        chat_template_kwargs={},
        eos_token_ids=[tokenizer.eos_token_id],
        rollout_func=None,
        use_vllm=False,
        _is_vlm=False,
        tools=tools,
        _standalone_tools=[],
        environment_factories={None: task.environment},
        _multi_environment=False,
        _env_tools={None: tools},
        _environment_pool={None: []},
        max_tool_calling_iterations=task.max_calls,
        max_completion_length=max_new_tokens,
        num_generations_eval=1,
        state=SimpleNamespace(num_input_tokens_seen=0),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    for name in BORROWED:
        setattr(host, name, partial(getattr(GRPOTrainer, name), host))
    render_once(host)
    host._generate_single_turn = lambda prompt_ids, *_, **__: (sample(prompt_ids), None)
    return host


def _prepared(host: SimpleNamespace, rows: list[Row]) -> list[Any]:
    """The prompts that TRL makes of rows; their environments and tools are the host's then."""

    def leave(prompts: list[Any]) -> None:
        raise Prepared(prompts)

    host._generate = leave
    try:
        GRPOTrainer._generate_and_score_completions(host, rows)
    except Prepared as found:
        return found.prompts
    raise AssertionError("TRL has not asked for rollouts")
