"""Tiny models that call tools, an environment, rollouts of one's own: what fills several turns."""

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from trl import GRPOTrainer

from helpers.harness import build
from helpers.tiny import digit_reward, make_model, make_tokenizer
from podsrl import PODSTrainer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # TRL warns of environments and rollout functions

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }} {{ message['content'] }}."
    "{% for call in message['tool_calls'] or [] %}"
    "{{ call['function']['name'] }} {{ call['function']['arguments'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if message['role'] == 'tool' %}{{ message['name'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def response_template(tool: str, argument: str) -> dict[str, Any]:
    """A letter of a to k calls the tool with what follows, up to the next digit or the end."""
    call = {"name": tool, "arguments": {argument: "{content}"}}
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "a ",
        "fields": {
            "tool_calls": {
                "open_pattern": "[a-k]",
                "close_pattern": "[0-9]",
                "content": "text",
                "repeats": True,
                "transform": {"type": "function", "function": call},
            },
            "content": {"close_pattern": "<eos>", "content": "text"},
        },
    }


def save_caller(folder: Path, *, tool: str = "look", argument: str = "text", **changes: Any) -> str:
    """Write a tiny model that calls a tool in most rollouts, and ends a turn often."""
    model = make_model(max_position_embeddings=512, **changes)
    # Half of the tokens end a turn: several turns then fit into a few dozen tokens.
    model.generation_config.eos_token_id = [1, *range(24, 47)]
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = response_template(tool, argument)
    tokenizer.save_pretrained(folder)
    return str(folder)


def look(text: str) -> str:
    """Say how long a text is.

    Args:
        text: the text.
    """
    return f"{len(text)} {text[:2]}"


class Counter:
    """An environment: it adds a number to the question, counts calls, and says what they earned."""

    made: ClassVar[list["Counter"]] = []

    def __init__(self) -> None:
        self.start = self.num_calls = self.num_resets = 0
        Counter.made.append(self)

    def reset(self, **row: Any) -> str:
        self.start, self.num_calls = len(row["answer"]) + self.num_resets, 0
        self.num_resets += 1
        return f" {self.start}"

    def look(self, text: str) -> str:
        """Count a text.

        Args:
            text: the text.
        """
        self.num_calls += 1
        return f"{self.start + self.num_calls} {text[:1]}"

    def get_reward(self) -> float:
        return float(self.num_calls)


class Steady(Counter):
    """A Counter whose words follow from the row and the calls alone; each call costs 1."""

    def reset(self, **row: Any) -> str:
        self.start, self.num_calls = len(row["answer"]), 0
        return f" {self.start}"

    def get_reward(self) -> float:
        return -float(self.num_calls)


def roll_out(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
    """Rollouts that a user samples: TRL's, with every third token given by the environment."""
    prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
    completion_ids, _ = trainer._generate_single_turn(
        prompt_ids, images, fields, trainer.num_generations
    )
    for ids in completion_ids:
        ids[2::3] = [5] * len(ids[2::3])
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": None,
        "env_mask": [[int(i % 3 != 2) for i in range(len(ids))] for ids in completion_ids],
        "place": [len(ids) for ids in completion_ids],
        "version": 3,
    }


def place_reward(completion_ids: list, place: list, version: list, **_: Any) -> list[float]:
    """Reads the columns that `roll_out` adds."""
    assert place == [len(ids) for ids in completion_ids] and set(version) == {3}
    return [float(length % 4) for length in place]


class Asker:
    """An environment whose tool nobody calls: it adds to the question, and pays for an even sum."""

    def __init__(self) -> None:
        self.num_resets = 0

    def reset(self, **row: Any) -> str:
        self.num_resets += 1
        return f" {self.num_resets}"

    def peek(self) -> str:
        """Say nothing."""
        return ""

    async def get_reward(self) -> float:
        return float(self.num_resets % 2)


TURNS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [look]},
    "environment": {"environment_factory": Counter},
    "both": {"tools": [look], "environment_factory": Asker},
    "rollout_func": {"rollout_func": roll_out},
}


def build_turns(
    folder: str,
    output: Path,
    how: str,
    *,
    trainer_class: type[GRPOTrainer] = PODSTrainer,
    turns: dict[str, Any] | None = None,
    rewards: list[Any] | None = None,
    **options: Any,
) -> GRPOTrainer:
    """`build` with one of TURNS, or with the arguments `turns`."""
    make = partial(trainer_class, **(TURNS[how] if turns is None else turns))
    if rewards is None:
        rewards = [digit_reward, place_reward] if how == "rollout_func" else [digit_reward]
    options = {"max_completion_length": 32, **options}
    return build(folder, output, trainer_class=trainer_class, make=make, rewards=rewards, **options)


def train(folder: str, output: Path, how: str, **options: Any) -> GRPOTrainer:
    """The trainer of `build_turns`, trained."""
    trainer = build_turns(folder, output, how, **options)
    trainer.train()
    return trainer
