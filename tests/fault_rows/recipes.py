"""Recipes that cannot be meant: each must be refused in one line, with nothing left behind."""

from pathlib import Path
from typing import Any

import yaml

from fault_rows import tiny
from fault_rows.case import Attempt, Row, Verdict, spread
from fault_rows.outcome import refused_in_one_line

NAN, INFINITY = float("nan"), float("inf")
# Setting -> values that no run can have.
VALUES: dict[str, list[Any]] = {
    "temperature": [0, -1, NAN],
    "top_p": [-1, 2, NAN],
    "top_k": [-5],
    "min_p": [-1, 2],
    "repetition_penalty": [0],
    "learning_rate": [-1, NAN, INFINITY, "fast"],
    "reward_weights": [[1, 2], ["a"], [NAN]],
    "max_completion_length": [0, -1, 100_000],
    "seed": [-1, 1.5, "abc"],
    "per_device_train_batch_size": [0, -8, 6, 8.5],
    "gradient_accumulation_steps": [0, -1],
    "max_steps": [0, 1.5, "ten"],
    "num_rollouts": [2, 0, -4, 8.5, [8], "many"],
    "num_generations": [0, -1, 5, None],
    "selection_rule": ["best", 5],
    "advantage": ["best"],
    "advantage_from": ["none"],
    "budget": ["loose"],
    "refill_constant_groups": [-1],
    "task": [5, "", "chess", "jsonl:", "jsonl:/no/such/file", "gsm8k:x"],
    "task_arguments": ["[1]", "{", {"bad": 1}, 5],
    "data": ["/no/such/file"],
    "model": ["./no/such/folder", "", 5],
    "train_limit": [0, -1, 1, 1.5],
    "evaluate_limit": [-1, 1.5, "all"],
    "evaluate_samples": [-1],
    "log_rollouts": ["some"],
    "training_seconds": [0, -1, NAN],
    "evaluate_every_seconds": [0, -1],
    "lr_scheduler_type": ["zigzag"],
    "save_strategy": ["sometimes"],
    "save_steps": [0, -1],
    "logging_steps": [-1],
    "warmup_steps": [-1],
    "weight_decay": [NAN],
    "beta": [-1, NAN],
    "epsilon": [-1],
    "max_grad_norm": [NAN],
    "adam_beta1": [2],
    "adam_epsilon": [-1],
    "optim": ["magic"],
    "loss_type": ["best"],
    "dtype": ["float7"],
    "attn_implementation": ["nope"],
    "learning_rat": [0.1],
    "deepspeed": ["/no/such/file.json"],
}
# What is no recipe, or not one mapping.
TEXTS: dict[str, str | bytes] = {
    "an open bracket": "max_steps: [1",
    "a tab": "a:\n\t- b",
    "a list": "- max_steps\n- 4\n",
    "a word": "hello\n",
    "a key twice": "max_steps: 1\n",  # after the whole recipe, in which it stands already
    "a number as key": "1: 2\n",
    "null as key": "~: 2\n",
    "an object of Python": "seed: !!python/object/apply:os.getpid []\n",
    "not UTF-8": b"# caf\xe9\n",
    "zero bytes": b"\x00\x00\x00",
    "an unclosed quote": 'seed: "1',
}


def cases() -> dict[str, tuple[str, Any]]:
    values = {f"{key}: {value!r}": (key, value) for key, many in VALUES.items() for value in many}
    return {**values, **{f"text: {name}": ("", text) for name, text in TEXTS.items()}}


CASES = cases()


def refuse_recipe(attempt: Attempt) -> Verdict:
    """Train by the recipe; its run folder may not be there afterwards."""
    name, (key, value) = spread(CASES, attempt.number)
    recipe = attempt.folder / "recipe.yaml"
    settings = tiny.settings(attempt.bench.scratch, attempt.run_folder)
    settings["task_arguments"] = {"answer_format": "number"}
    settings |= {"gradient_checkpointing": False, "use_cpu": True, "bf16": False}
    if key:
        recipe.write_text(yaml.safe_dump({**settings, key: value}), encoding="utf-8")
    else:
        content = value if isinstance(value, bytes) else value.encode()
        recipe.write_bytes(yaml.safe_dump(settings).encode() + content)
    before = {path.name for path in attempt.folder.iterdir()}
    ended = attempt.run(["train", str(recipe)])
    wrong = refused_in_one_line(ended)
    left = left_behind(attempt.folder, before)
    return Verdict(wrong or (f"left {left} behind" if left else None), name)


def left_behind(folder: Path, before: set[str]) -> str:
    """What was made in the folder, our own record of the printed text aside."""
    found = {path.name for path in folder.iterdir()} - before
    return ", ".join(sorted(name for name in found if not name.startswith("printed")))


ROWS = {"recipes": Row("recipes that cannot be meant", len(CASES), 8, refuse_recipe)}
