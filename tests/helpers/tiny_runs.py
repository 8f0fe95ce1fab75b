"""podsrl train on the tiny model: four steps that change every weight, in about a second."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

NUM_STEPS = 4
# Of a script that stands in for podsrl train, in `folder`: what a checkpoint is, saved when told to
# stop.
SAVES_WHEN_STOPPED = """
def stop(*_):
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        zipfile.ZipFile(checkpoint / name, "w").close()
    (checkpoint / "trainer_state.json").write_text("{}")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(folder / "ready").touch()
"""


def write_questions(path: Path, num: int = 40) -> Path:
    """A user's own file of questions, some of them held out."""
    rows = [{"question": f"last digit of {i}?", "answer": str(i % 10)} for i in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(model: str, questions: Path, folder: Path, /, **more: Any) -> list[str]:
    """The command line of a run; decay and the pull to the reference move the weights."""
    settings = {
        "task": f"jsonl:{questions}",
        "task_arguments": '{"answer_format": "number"}',
        "model": model,
        "output_dir": folder,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": NUM_STEPS,
        "evaluate_limit": 2,
        "learning_rate": "1e-2",
        "lr_scheduler_type": "constant",
        "beta": 0.1,
        "weight_decay": 0.5,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_checkpointing": "false",
        "use_cpu": "true",
        "bf16": "false",
        **more,
    }
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def tiny_recipe(model: str, **more: Any) -> dict[str, Any]:
    """What the arms of a comparison, or the trials of a search, have in common."""
    return {
        "task": "arithmetic",
        "model": model,
        "num_rollouts": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "train_limit": 16,
        "evaluate_limit": 4,
        "gradient_checkpointing": False,
        **more,
    }


def rows_of(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def learned(folder: Path) -> list[tuple[float, ...]]:
    """What each step of a run measured, without the times."""
    keys = ("step", "loss", "reward", "kl", "completions/mean_length")
    return [tuple(row[key] for key in keys) for row in rows_of(folder)]


def same_model(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights bit for bit."""
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, other)
    )
    return all(torch.equal(first[name], second[name]) for name in first)
