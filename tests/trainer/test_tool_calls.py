"""What TRL works out for every tool call is worked out once, and is what TRL works out."""

from pathlib import Path
from typing import Any

import pytest
from transformers.utils import get_json_schema
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response

from helpers.harness import numbers
from helpers.turns import CHAT_TEMPLATE, build_turns, look, save_caller
from podsrl.trl import tool_calls
from podsrl.trl.tool_calls import NUM_KNOWN, as_schemas, remembered


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_caller(tmp_path_factory.mktemp("caller"), argument="times")


class Adder:
    """An environment whose tool reads a number, and says one of two answers."""

    def reset(self, **_: Any) -> None:
        self.num_calls = 0

    def look(self, times: int = 1) -> str:
        """Count.

        Args:
            times: how often.
        """
        self.num_calls += 1
        return f"{type(times).__name__[0]}{self.num_calls % 2}"

    def get_reward(self) -> float:
        return float(self.num_calls)


def told(messages: list[dict[str, Any]]) -> list[int]:
    return [len(each["content"]) for each in messages]


def test_equal_answers_are_rendered_once_and_images_each_time() -> None:
    asked: list[Any] = []

    def render(messages: list[dict[str, Any]]) -> list[int]:
        asked.append(messages)
        return told(messages)

    suffix_ids = remembered(render)
    high, low = ({"role": "tool", "name": "a", "content": word} for word in ("high", "low"))
    for messages in ([high], [low], [high], [high, low], [low], [high, low]):
        found = suffix_ids([dict(each) for each in messages])
        assert found == told(messages)
        found.append(9)  # a list of its own each time
    assert asked == [[high], [low], [high, low]]
    # Another tool that says the same is another message.
    suffix_ids([{**high, "name": "b"}])
    image = {"role": "tool", "name": "a", "content": [{"type": "image", "image": "x"}]}
    assert suffix_ids([image]) == suffix_ids([image]) == [1]
    assert len(asked) == 6
    for number in range(NUM_KNOWN):
        suffix_ids([{**high, "content": str(number)}])
    suffix_ids([high])
    assert asked[-1] == [high]  # of long ago


def test_a_template_writes_schemas_as_it_writes_functions(folder: str, tmp_path: Path) -> None:
    """And calls are read with the argument's type: a number for the environment, of either."""
    trainer = build_turns(
        folder, tmp_path, "", trainer_class=GRPOTrainer, turns={"environment_factory": Adder}
    )
    tokenizer, tools = trainer.processing_class, trainer._env_tools[None]
    schemas = as_schemas([*tools, look, {"name": "known"}, len])
    assert schemas[:2] == [get_json_schema(tools[0]), get_json_schema(look)]
    assert schemas[2:] == [{"name": "known"}, len]  # which the template takes, or refuses
    tokenizer.chat_template = "{{ tools | tojson }}" + CHAT_TEMPLATE
    message = [{"role": "user", "content": "1"}]
    texts = [
        tokenizer.apply_chat_template(message, tools=each, tokenize=False)
        for each in (tools, schemas[:1])
    ]
    assert texts[0] == texts[1] and "how often" in texts[0]
    ids = [tokenizer.convert_tokens_to_ids(each) for each in ("a", "7")]
    prefix = tokenizer("a ")["input_ids"]
    read = [parse_response(tokenizer, ids, prefix, each) for each in (tools, schemas[:1])]
    assert read[0] == read[1]


def test_training_asks_for_each_schema_once(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock TRL renders two messages for every answer; ours a few, and trains the same."""
    made = []
    schema = tool_calls.get_json_schema
    monkeypatch.setattr(
        tool_calls, "get_json_schema", lambda tool: made.append(tool) or schema(tool)
    )
    rendered, found = {}, {}
    for name, options in (("stock", {"trainer_class": GRPOTrainer}), ("ours", {"num_rollouts": 4})):
        turns = {"environment_factory": Adder}
        trainer = build_turns(folder, tmp_path / name, "", turns=turns, max_steps=2, **options)
        calls = rendered[name] = []
        render = type(trainer.processing_class).apply_chat_template

        def counted(*args: Any, calls: Any = calls, render: Any = render, **kwargs: Any) -> Any:
            calls.append(kwargs.get("tools"))
            return render(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer.processing_class), "apply_chat_template", counted)
            trainer.train()
        found[name] = numbers(trainer)
    assert found["ours"] == found["stock"]
    assert len(made) == 2  # of the union of all tools, and of the environment's
    # Beside one for each of 16 prompts, two for each answer, of which there are several kinds.
    assert len(rendered["stock"]) > 16 + 20 > len(rendered["ours"]) > 16
