"""Prompts in tokens, and those that leave a model no room to answer."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from podsrl.tasks.base import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG_PROMPTS = ("refuse", "drop")


def prompt_lengths(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    tools: list[Callable[..., Any]] | None = None,
) -> list[int]:
    """Return the tokens of each row's prompt, the chat template's own included.

    tools: what the template tells the model that it may call.
    """
    texts = [
        str(
            tokenizer.apply_chat_template(
                row["prompt"], tools=tools, tokenize=False, add_generation_prompt=True
            )
        )
        for row in rows
    ]
    # The template has written the special tokens already.
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def fit_prompts(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    context: int,
    max_new_tokens: int,
    policy: str,
    tools: list[Callable[..., Any]] | None = None,
) -> tuple[list[Row], int]:
    """Return the rows whose prompt and answer fit the model's context, and the number of the rest.

    context: tokens that the model reads and writes at most. max_new_tokens: those kept free for
    the answer. policy: `refuse` raises when there is a row too long, `drop` leaves it out. tools:
    as for `prompt_lengths`.

    Raises: ValueError naming how many are too long, the first and the longest of them, and the
    remedy; with `drop`, only when no row fits.

    Example: with a context of 256 and answers of 64, prompts of 192 tokens fit, of 193 do not.
    """
    if policy not in LONG_PROMPTS:
        raise ValueError(f"long_prompts is {policy!r}: choose from {', '.join(LONG_PROMPTS)}")
    room = context - max_new_tokens
    lengths = prompt_lengths(rows, tokenizer, tools) if rows else []
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= room]
    num_dropped = len(rows) - len(kept)
    if num_dropped and (policy == "refuse" or not kept):
        raise ValueError(_too_long(rows, lengths, context, max_new_tokens))
    return kept, num_dropped


def _too_long(rows: Sequence[Row], lengths: list[int], context: int, max_new_tokens: int) -> str:
    room = context - max_new_tokens
    long = [number for number, length in enumerate(lengths, 1) if length > room]
    first = " ".join(str(rows[long[0] - 1]["prompt"][-1]["content"])[:40].split())
    remedy = "leave them out (long_prompts drop), or take a model with a longer context"
    if max(lengths) < context:
        remedy = f"set the length limit of answers to {context - max(lengths)} or less, {remedy}"
    elif len(long) == len(rows):
        remedy = "shorten them, or take a model with a longer context"
    return (
        f"{len(long)} of {len(rows)} prompts do not fit: the longest has {max(lengths)} tokens, "
        f"which with answers of {max_new_tokens} exceeds the model's context of {context}; the "
        f"first is question {long[0]}, {first!r}: {remedy}"
    )
