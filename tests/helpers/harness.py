"""Builds tiny trainers that differ in one thing at a time."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from helpers.tiny import digit_reward, even_reward
from podsrl import PODSConfig, PODSTrainer

QUESTIONS = ["1+1", "2+3 is", "what is 7-4?", "9+9?", "10-1", "0+0 equals"]


EASY = set(QUESTIONS[:3])


def question_of(prompt: Any) -> str:
    """The text of a conversational prompt."""
    return prompt[0]["content"]


def reward_of_hard_questions(
    prompts: list, completions: list, answer: list, **_: Any
) -> list[float]:
    """1 for completions of even length; every completion of an easy question gets 1.

    The answer column is checked, so that rewards computed from another prompt's row would show.
    """
    assert [str(len(question_of(prompt))) for prompt in prompts] == answer
    scored = zip(prompts, even_reward(completions), strict=True)
    return [1.0 if question_of(prompt) in EASY else reward for prompt, reward in scored]


def dataset() -> Dataset:
    """Six short questions, conversational, with an `answer` column that rewards may read."""
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return Dataset.from_dict({"prompt": prompts, "answer": [str(len(q)) for q in QUESTIONS]})


def arguments(trainer_class: type[GRPOTrainer], output: Path, **options: Any) -> GRPOConfig:
    """The trainer's configuration: two prompts per step, m = 4, n = 8, three steps."""
    config_class = PODSConfig if issubclass(trainer_class, PODSTrainer) else GRPOConfig
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": 3,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    if config_class is PODSConfig:
        settings = {"num_rollouts": 8, "write_run": False, **settings}
    return config_class(**settings)


def build(
    folder: str,
    output: Path,
    *,
    trainer_class: type[GRPOTrainer] = PODSTrainer,
    rewards: list[Callable[..., Any]] | None = None,
    peft_config: Any = None,
    make: Callable[..., GRPOTrainer] | None = None,
    **options: Any,
) -> GRPOTrainer:
    """A trainer on the tiny model: two prompts per step, m = 4, n = 8, three steps.

    make: builds it in `trainer_class`'s place, from the same arguments by name.
    """
    return (make or trainer_class)(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=rewards or [digit_reward, even_reward],
        args=arguments(trainer_class, output, **options),
        train_dataset=dataset(),
        eval_dataset=dataset(),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=peft_config,
    )


def spy(target: Any, method: str) -> list[Any]:
    """Collects what a method of an object returns."""
    results, original = [], getattr(target, method)

    def call(*args: Any, **options: Any) -> Any:
        results.append(original(*args, **options))
        return results[-1]

    setattr(target, method, call)
    return results


class Recorder:
    """Stands where the rollout log does, and keeps what a PODSTrainer has to say of each batch."""

    def __init__(self) -> None:
        self.batches: list[SimpleNamespace] = []

    def write_batch(
        self, step: int, selection: Any, rows: Any, completions: Any, num_tokens: Any, **more: Any
    ) -> None:
        batch = {"step": step, "selection": selection, "rows": rows, "completions": completions}
        self.batches.append(SimpleNamespace(**batch, num_tokens=num_tokens, **more))

    @property
    def selections(self) -> list[Any]:
        """What was chosen in each batch."""
        return [batch.selection for batch in self.batches]


def recorded(trainer: PODSTrainer) -> Recorder:
    """What the trainer says of its batches from now on; a log attached before still gets it."""
    recorder, log = Recorder(), trainer.rollout_log
    if log is not None:
        write = log.write_batch

        def both(*args: Any, **options: Any) -> None:
            recorder.write_batch(*args, **options)
            write(*args, **options)

        log.write_batch = both
    else:
        trainer.rollout_log = recorder
    return recorder


TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


def numbers(trainer: GRPOTrainer) -> list[dict[str, float]]:
    """What was logged, without times and without what TRL does not log."""
    own = ("pods/", "time/", "memory/")
    return [
        {k: v for k, v in entry.items() if k not in TIMES and not k.startswith(own)}
        for entry in trainer.state.log_history
    ]


def logged(trainer: GRPOTrainer, key: str) -> list[float]:
    """The values that the trainer logged under the key, one per step."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]
