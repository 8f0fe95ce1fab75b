"""Trains on turns and images in several processes: stock, n = m, groups that straddle processes.

usage: torchrun ... turns_processes.py MODEL_FOLDER OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from helpers.harness import logged, recorded
from helpers.images import build_seeing
from helpers.turns import TURNS, build_turns
from podsrl import PODSTrainer

CASES: dict[str, dict[str, Any]] = {
    "stock": {"trainer_class": GRPOTrainer, "per_device_train_batch_size": 4},
    "ours": {"num_rollouts": 4, "per_device_train_batch_size": 4},
    "straddling": {"num_rollouts": 8, "per_device_train_batch_size": 2, "max_steps": 2},
}
LENGTH = {"max_completion_length": 32}


def train(folder: str, output: str, how: str, case: str) -> dict[str, Any]:
    if how == "images":
        trainer = build_seeing(
            Path(output, "seeing"), Path(output, how, case), "llava", **CASES[case]
        )
    else:
        trainer = build_turns(folder, Path(output, how, case), how, **CASES[case], **LENGTH)
    kept: list[dict[str, Any]] = []
    if isinstance(trainer, PODSTrainer):
        record(trainer, kept)
    trainer.train()
    parameters = trainer.accelerator.unwrap_model(trainer.model).parameters()
    weights = [p.double().sum().item() for p in parameters]
    return {"weights": weights, "loss": logged(trainer, "loss"), "kept": kept}


def record(trainer: PODSTrainer, kept: list[dict[str, Any]]) -> None:
    """Write down of each batch what this process sampled and trains on."""
    recorded(trainer)
    generate = trainer._generate

    def watched(prompts: list) -> tuple:
        _, completion_ids, masks, completions, *_ = found = generate(prompts)
        batch = trainer.batch
        entry = {"texts": list(map(str, completions)), "lengths": list(map(len, completion_ids))}
        entry["sampled"] = list(map(str, batch.rollouts.generated[3]))
        entry["masks"] = [len(mask) for mask in masks or completion_ids]
        entry["rewards"] = batch.selection.rewards_PN.tolist()
        entry["chosen"] = batch.selection.kept_rows_B.tolist()
        kept.append(entry)
        return found

    trainer._generate = watched


def main(folder: str, output: str) -> None:
    records = {
        f"{how} {case}": train(folder, output, how, case)
        for how in (*TURNS, "images")
        for case in CASES
    }
    Path(output, f"{os.environ['RANK']}.json").write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
