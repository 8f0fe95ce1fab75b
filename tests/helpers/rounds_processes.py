"""Trains in rounds in several processes and writes down what each of them saw.

usage: torchrun ... rounds_processes.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch

from helpers.harness import build, recorded, reward_of_hard_questions
from helpers.tiny import text_of
from podsrl.trl.rounds import InRounds

# Rows of a process, in groups of 4: whole groups, and three groups over two processes.
CASES: dict[str, dict[str, Any]] = {
    "whole": {"per_device_train_batch_size": 8, "sampling_rounds": 3},
    "straddling": {"per_device_train_batch_size": 6, "sampling_rounds": 2},
    "refilled": {
        "per_device_train_batch_size": 4,
        "sampling_rounds": 3,
        "refill_constant_groups": 2,
    },
}


def logging_reward(completions: list, log_extra: Any, **columns: Any) -> list[float]:
    log_extra("text", [text_of(completion) for completion in completions])
    return reward_of_hard_questions(completions=completions, **columns)


def train(folder: str, output: Path, resume: str | None = None, **options: Any) -> dict[str, Any]:
    """Four steps, with a checkpoint after two; or from there on."""
    settings = {"num_rollouts": 16, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = build(folder, output, rewards=[logging_reward], **settings, **options)
    recorder, record = recorded(trainer), {"kept": [], "calls": []}
    generate, sample = trainer._generate, trainer.sample.sample

    def spy_generate(prompts: list) -> tuple:
        kept = generate(prompts)
        selection = trainer.batch.selection
        texts = [text_of(completion) for completion in kept[3]]
        entry = {"texts": texts, "prompts": [trainer.processing_class.decode(x) for x in kept[0]]}
        entry |= {"rewards": selection.rewards_PN, "kept": selection.kept_PN}
        record["kept"].append(entry)
        return kept

    def spy_sample(rows: list, size: int = 0) -> Any:
        record["calls"].append((len(rows), size))
        return sample(rows, size)

    trainer._generate = spy_generate
    trainer.sample = InRounds(trainer, spy_sample)
    trainer.train(resume_from_checkpoint=resume)
    record["num_batches"] = len(recorder.batches)
    weights = trainer.accelerator.unwrap_model(trainer.model).parameters()
    record["weights"] = torch.cat([each.detach().flatten() for each in weights])
    keys = ("pods/mean_num_rollouts", "pods/num_sampling_rounds", "loss")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    record["logged"] = [{key: entry[key] for key in keys} for entry in history]
    record["text_logged"] = list(trainer._logs["extra"]["text"])
    record["completion_logged"] = [text_of(each) for each in trainer._logs["completion"]]
    record["rank"] = trainer.accelerator.process_index
    return record


def main(folder: str, output: str) -> None:
    found = {case: train(folder, Path(output, case), **options) for case, options in CASES.items()}
    found["again"] = train(folder, Path(output, "again"), **CASES["whole"])
    checkpoint = str(Path(output, "whole/checkpoint-2"))
    found["resumed"] = train(folder, Path(output, "resumed"), checkpoint, **CASES["whole"])
    torch.save(found, Path(output, f"found-{found['again']['rank']}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
