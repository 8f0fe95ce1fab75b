"""What PODSTrainer keeps of the rewards in kept_sets.json, in as many processes as torchrun starts.

usage: torchrun ... run_hosts.py MODEL_FOLDER OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from helpers.fsdp_processes import SHARDED, fsdp_on_cpu
from helpers.harness import build
from helpers.kept_sets import CASES, Case
from helpers.tiny import text_of


def kept_by_trainer(
    folder: str, output: Path, case: Case, *, num_processes: int, **options: Any
) -> dict[str, Any]:
    """The choice, and of this process the texts sampled and those handed on to the update."""
    num_prompts, n = len(case.rewards), len(case.rewards[0])
    record: dict[str, Any] = {}

    def written_down(completions: list, **_: Any) -> list[float | None]:
        process = trainer.accelerator.process_index
        flat = [reward for row in case.rewards for reward in row]
        own = flat[process * len(completions) :][: len(completions)]
        record["sampled"] = [text_of(completion) for completion in completions]
        return [None if reward != reward else reward for reward in own]

    trainer = build(
        folder,
        output,
        rewards=[written_down],
        num_generations=case.num_kept,
        num_rollouts=n,
        per_device_train_batch_size=num_prompts * case.num_kept // num_processes,
        max_steps=1,
        **options,
    )
    generate = trainer._generate

    def spy(prompts: list) -> tuple:
        handed_on = generate(prompts)
        record["kept"] = trainer.batch.selection.kept_PM.tolist()
        record["handed_on"] = [text_of(completion) for completion in handed_on[3]]
        return handed_on

    trainer._generate = spy
    trainer.train()
    record["class"] = type(trainer.model_wrapped).__name__
    return record


def main(folder: str, output: str) -> None:
    rank, num_processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    records: dict[str, Any] = {"DDP": {}, "FSDP2": {}}
    for how, options in (("DDP", {}), ("FSDP2", SHARDED)):
        if how == "FSDP2":
            fsdp_on_cpu()
        for case in CASES:
            records[how][case.name] = kept_by_trainer(
                folder, Path(output), case, num_processes=num_processes, **options
            )
    Path(output, f"hosts-{rank}.json").write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
