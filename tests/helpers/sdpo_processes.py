"""Trains `sdpo` with continuations in several processes, and tells of each what it knew and did.

usage: torchrun ... sdpo_processes.py MODEL_FOLDER OUTPUT_FOLDER
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from helpers.turns import Steady, build_turns
from podsrl.trl import branches
from podsrl.trl.branch_pairs import Pair


def told(pair: Pair) -> dict[str, Any]:
    """What is compared between the processes."""
    best, loser = pair.best, pair.dialogue
    record = {"rows": [pair.winner, pair.loser], "values": str(pair.values), "num": pair.num}
    record |= {"loser": loser.completion_ids, "loser_reward": loser.reward, "best": None}
    if best is not None:
        record |= {"best": best.completion_ids, "start": loser.starts[pair.first]}
        record |= {"reward": best.reward, "rewards": best.rewards_F.tolist()}
        record["num_calls"] = sum(message["role"] == "tool" for message in best.messages)
    return record


def main(folder: str, output: str) -> None:
    trainer = build_turns(
        folder,
        Path(output, "run"),
        "",
        turns={"environment_factory": Steady},
        objective="sdpo",
        sdpo_branches=2,
        num_rollouts=8,
        per_device_train_batch_size=8,
        max_completion_length=64,
        max_steps=2,
    )
    found: list[list[dict[str, Any]]] = []
    kept: list[list[list[int]]] = []
    continued: list[int] = []
    find, generate, go_on = trainer.branching._find_winners, trainer._generate, branches.turns_from

    def winners(pairs: list[Pair]) -> None:
        find(pairs)
        found.append([told(pair) for pair in pairs])

    def watched(prompts: list[Any]) -> tuple[Any, ...]:
        generated: tuple[Any, ...] = generate(prompts)
        kept.append(generated[1])
        return generated

    def counted(host: Any, dialogues: Any, turn: int) -> Any:
        continued.append(len(dialogues))
        return go_on(host, dialogues, turn)

    trainer.branching._find_winners, trainer._generate = winners, watched
    branches.turns_from = counted
    trainer.train()
    parameters = trainer.accelerator.unwrap_model(trainer.model).parameters()
    weights = [p.double().sum().item() for p in parameters]
    record = {"weights": weights, "pairs": found, "kept": kept, "continued": continued}
    Path(output, f"{os.environ['RANK']}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
