"""Answers of a model to questions, or the dialogues that it has about them, and their verdicts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podsrl.rewards.own import call_reward
from podsrl.tasks.base import Row, Task
from podsrl.tasks.turns import replayed, tools_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from podsrl.sampling.complete import Completion

Report = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One completion and its verdict."""

    text: str
    answer: str | None
    """The final answer found in the text."""
    correct: bool | None
    """None where grading crashed or hung."""
    num_tokens: int
    """Tokens of the completion, the end token included."""
    truncated: bool
    """Whether the length limit cut it off."""
    keeps_format: bool


@dataclass(frozen=True, kw_only=True)
class PlayedAnswer(Answer):
    """One dialogue and its verdict; `num_tokens` counts those that the model wrote."""

    num_calls: int
    """Calls of tools that were answered."""
    given: list[list[int]]
    """First character, and the one after the last, of what the model did not write in the text."""
    messages: list[dict[str, Any]]


def encode(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    rows: Sequence[Row],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the prompts in tokens, those of a task with turns with its tools.

    Raises: ValueError where a prompt and its answer exceed the model's context.
    """
    tools = None if task.environment is None else tools_of(task.environment())
    texts = [
        tokenizer.apply_chat_template(
            row["prompt"], tools=tools, tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    # The template has written the special tokens already.
    prompts: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    if room is not None and longest + max_new_tokens > room:
        lower = f"lower max_new_tokens to {room - longest} or less"
        other = "take that question out, or take a model with a longer context"
        raise ValueError(
            f"the longest prompt, question {lengths.index(longest) + 1}, has {longest} tokens, "
            f"with max_new_tokens={max_new_tokens} more than the model's {room}: "
            f"{lower if longest < room else other}"
        )
    return prompts


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions of a task, whom they are put to and how: the same for greedy and drawn answers."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    task: Task
    rows: Sequence[Row]
    prompts: list[list[int]]
    """In tokens, one for each row."""
    max_new_tokens: int
    """Of an answer; of a dialogue, what comes back included."""
    batch_size: int
    """Prompts that are gone on with together."""
    seed: int
    report: Report
    """Told how many answers there are more."""

    def answered(self, num_repeats: int, temperature: float | None) -> list[Answer]:
        """Return `num_repeats` graded answers to each question, one after the other.

        Plain decoding, or dialogues that are played to their end where the task has turns.

        temperature: None for the likeliest token each time.
        """
        answers = _completed if self.task.environment is None else _played
        return answers(self, num_repeats, temperature)


def _completed(asked: Questions, num_repeats: int, temperature: float | None) -> list[Answer]:
    # Loaded here, as reports need no torch.
    from podsrl.sampling.complete import complete

    completions = complete(
        asked.model,
        asked.prompts,
        num_repeats,
        config=_decoding(asked, temperature),
        batch_size=asked.batch_size,
        seed=asked.seed,
        report=asked.report,
    )
    repeated = [row for row in asked.rows for _ in range(num_repeats)]
    return graded(asked.task, asked.tokenizer, completions, repeated)


def _played(asked: Questions, num_repeats: int, temperature: float | None) -> list[Answer]:
    from podsrl.sampling.complete import complete
    from podsrl.trl.play import play, transcript

    config = _decoding(asked, temperature)
    draws = random.Random(asked.seed)  # every turn has draws of its own

    def sample(prompt_ids: list[list[int]]) -> list[list[int]]:
        completions = complete(
            asked.model,
            prompt_ids,
            1,
            config=config,
            batch_size=asked.batch_size,
            seed=draws.getrandbits(62),
            report=lambda count: None,
        )
        return [tokens for tokens, _ in completions]

    repeated = [row for row in asked.rows for _ in range(num_repeats)]
    host = asked.model, asked.tokenizer, asked.task
    dialogues, environments = play(*host, repeated, sample, max_new_tokens=asked.max_new_tokens)
    asked.report(len(dialogues))
    answers: list[Answer] = []
    for dialogue, environment in zip(dialogues, environments, strict=True):
        text, given = transcript(asked.tokenizer, dialogue.completion_ids, dialogue.tool_mask)
        answers.append(
            PlayedAnswer(
                text=text,
                answer=None,
                correct=environment.score >= 1.0,
                num_tokens=sum(dialogue.tool_mask),
                truncated=dialogue.completion_ids[-1] not in config.eos_token_id,
                keeps_format=False,
                num_calls=sum(message["role"] == "tool" for message in dialogue.messages),
                given=given,
                messages=dialogue.messages,
            )
        )
    return answers


def _decoding(asked: Questions, temperature: float | None) -> Any:
    from podsrl.sampling.complete import plain_config

    most = asked.max_new_tokens
    return plain_config(asked.model, asked.tokenizer, max_new_tokens=most, temperature=temperature)


def own_rewards(
    name: str,
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    answers: Sequence[Answer],
    rows: Sequence[Row],
) -> list[float]:
    """Return what the reward of this name gives for one answer to each row, where it gives any."""
    texts = [answer.text for answer in answers]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    more: dict[str, Any] = {}
    if task.environment is not None:
        played = [answer for answer in answers if isinstance(answer, PlayedAnswer)]
        more["completions"] = messages = [answer.messages for answer in played]
        more["environments"] = [replayed(task, *each) for each in zip(rows, messages, strict=True)]
    values = call_reward(task.reward_funcs[name], rows, texts, ids, **more)
    return [float(value) for value in values if value is not None]


def graded(
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    completions: Sequence["Completion"],
    rows: Sequence[Row],
) -> list[Answer]:
    """Return the verdict of the task on each completion, which answers the row in its place."""
    texts = tokenizer.batch_decode([tokens for tokens, _ in completions], skip_special_tokens=True)
    scores = task.score(texts, rows)
    return [
        Answer(
            text=text,
            answer=task.extract_answer(text),
            correct=None if score is None else score >= 1.0,
            num_tokens=len(tokens),
            truncated=truncated,
            keeps_format=task.keeps_format(text),
        )
        for text, score, (tokens, truncated) in zip(texts, scores, completions, strict=True)
    ]
