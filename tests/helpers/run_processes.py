"""Trains two steps per case in several processes and writes down rewards, choice and kept rows.

usage: torchrun ... run_processes.py MODEL_FOLDER OUTPUT_FOLDER ROWS_PER_PROCESS:NUM_ROLLOUTS ...
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from helpers.harness import build, reward_of_hard_questions
from helpers.tiny import even_reward, text_of
from podsrl.runs.clock import TrainingClock
from podsrl.runs.evaluations import EvaluationCurve
from podsrl.runs.rollout_log import attach_log
from podsrl.runs.settings import RunArguments
from podsrl.tasks import load_task


def train(folder: str, output: str, rows: int, num_rollouts: int) -> dict[str, Any]:
    def logging_reward(completions: list, log_extra: Any, **_: Any) -> list[float]:
        log_extra("text", [text_of(completion) for completion in completions])
        return even_reward(completions)

    trainer = build(
        folder,
        Path(output),
        rewards=[logging_reward],
        per_device_train_batch_size=rows,
        num_rollouts=num_rollouts,
        max_steps=2,
    )
    record: dict[str, Any] = {"selections": [], "kept": [], "texts": []}
    attach_log(trainer, Path(output, f"log-{rows}-{num_rollouts}"))
    generate, score = trainer._generate, trainer._generate_and_score_completions

    def spy_generate(prompts: list) -> tuple:
        kept = generate(prompts)
        texts = [text_of(completion) for completion in kept[3]]
        questions = [trainer.processing_class.decode(ids) for ids in kept[0]]
        record["kept"].append({"texts": texts, "prompts": questions})
        selection = trainer.batch.selection
        entry = {"rewards": selection.rewards_PN.tolist(), "kept": selection.kept_PM.tolist()}
        record["selections"].append({**entry, "seed": trainer._selection_seed()})
        return kept

    def spy_score(inputs: list) -> dict:
        result = score(inputs)
        record["texts"].append([text_of(c) for c in trainer._logs["completion"]])
        record.setdefault("questions", []).append([row["prompt"][0]["content"] for row in inputs])
        assert list(trainer._logs["extra"]["text"]) == record["texts"][-1]
        return result

    trainer._generate, trainer._generate_and_score_completions = spy_generate, spy_score
    trainer.train()
    record["log_history"] = trainer.state.log_history
    record["rank"] = trainer.accelerator.process_index
    return record


def train_pooled(folder: str, output: str) -> dict[str, Any]:
    """Two prompts of 7 rollouts, 2 and then 3 kept each on average, in one budget, refilled.

    Each process samples 7 rows, so that the groups are whole, but trains on rows of both.
    """
    trainer = build(
        folder,
        Path(output, "pooled"),
        rewards=[reward_of_hard_questions],
        per_device_train_batch_size=4,
        num_rollouts=7,
        num_generations_start=2,
        budget="pooled",
        refill_constant_groups=3,
        max_steps=2,
    )
    record: dict[str, Any] = {"steps": []}
    generate, score = trainer._generate, trainer._generate_and_score_completions
    step: dict[str, Any] = {}

    def spy_generate(prompts: list) -> tuple:
        kept = generate(prompts)
        step["texts"] = [text_of(completion) for completion in kept[3]]
        step["prompts"] = [trainer.processing_class.decode(ids) for ids in kept[0]]
        selection = trainer.batch.selection
        step.update(rewards=selection.rewards_PN.tolist(), kept=selection.kept_PN.tolist())
        return kept

    def spy_score(inputs: list) -> dict:
        result = score(inputs)
        step["advantages"] = result["advantages"].tolist()
        step["logged"] = [prompt[0]["content"] for prompt in trainer._logs["prompt"]]
        step["logged_advantages"] = list(trainer._logs["advantages"])
        record["steps"].append(dict(step))
        return result

    trainer._generate, trainer._generate_and_score_completions = spy_generate, spy_score
    trainer.train()
    record["log_history"] = trainer.state.log_history
    return record


def train_on_pairs(folder: str, output: str) -> dict[str, Any]:
    """One prompt a process; one that is easy has equal rewards, and no pair."""
    trainer = build(
        folder,
        Path(output, "pairs"),
        rewards=[reward_of_hard_questions],
        objective="dpo",
        per_device_train_batch_size=4,
        max_steps=3,
    )
    own: list[dict[str, float]] = []
    record = trainer.objective_step._record

    def spy_record(metrics: dict[str, Any]) -> None:
        own.append({name: value.item() for name, value in metrics.items()})
        record(metrics)

    trainer.objective_step._record = spy_record
    trainer.train()
    return {"own": own, "log_history": trainer.state.log_history}


def train_by_clock(folder: str, output: str) -> dict[str, Any]:
    """Train and evaluate by the clock, which on the second process goes three times as fast."""
    trainer = build(folder, Path(output, "clock"), max_steps=200)
    speed = 1 + 2 * trainer.accelerator.process_index
    trainer.clock.now = lambda: time.perf_counter() * speed
    clock = TrainingClock(0.5)
    clock.attach(trainer)
    curve = EvaluationCurve(
        trainer,
        clock,
        task=load_task("arithmetic"),
        arguments=RunArguments(evaluate_every_seconds=0.2, evaluate_limit=3),
        folder=Path(output),
    )
    trainer.add_callback(curve)
    trainer.train()
    weight = next(trainer.accelerator.unwrap_model(trainer.model).parameters())
    return {
        "steps": trainer.state.global_step,
        "seconds": clock.seconds["training"],
        "weight": weight.sum().item(),
    }


def train_recorded(folder: str, output: str) -> dict[str, Any]:
    """Two steps into a folder that holds a run: both processes go to the next."""
    taken = Path(output, "recorded")
    taken.mkdir(exist_ok=True)
    (taken / "config.json").write_text("{}")
    trainer = build(folder, taken, write_run=True, max_steps=2, save_strategy="steps")
    trainer.train()
    return {"output_dir": trainer.args.output_dir}


def main(folder: str, output: str, *cases: str) -> None:
    records = {case: train(folder, output, *map(int, case.split(":"))) for case in cases}
    records["pooled"] = train_pooled(folder, output)
    records["pairs"] = train_on_pairs(folder, output)
    records["clock"] = train_by_clock(folder, output)
    records["recorded"] = train_recorded(folder, output)
    rank = records[cases[0]]["rank"]
    Path(output, f"records-{rank}.json").write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
