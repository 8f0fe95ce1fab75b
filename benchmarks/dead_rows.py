"""Seconds of the update over the share of dead rows, with these rows in its passes and out of them.

    python benchmarks/dead_rows.py --output benchmarks/dead_rows.json

The packaged model, four prompts a step, n = 16, m = 4. The reward of 0, 1, 2, 3 of the prompts is
constant, step by step in turn, so that 0, 25, 50 and 75 % of the kept rows have advantage 0 and a
machine that changes its speed does so for all shares. Sides (`skip_dead_rows` on and off) have
trainers of their own, in turn, whose first step is not counted; medians. `of_line` is the seconds
over those of the straight line through all shares (least squares).
"""

import argparse
import gc
import json
import statistics
from collections import defaultdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from datasets import Dataset
from stopwatch import Stopwatch
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import load_model, load_tokenizer
from podsrl.runs.folder import device_name, versions
from podsrl.tasks import load_task

PROMPTS, WIDE, KEPT = 4, 16, 4


class Reward:
    """Rollouts of the first prompts of a batch get 0, of the others 0 and 1 in turn.

    In step i, from 0, the first (i - 1) mod 4 prompts: after one step, 0 to 3 in turn.
    """

    __name__ = "turns"

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        num_dead = (self.num_calls - 1) % PROMPTS
        self.num_calls += 1
        return [float(i // WIDE >= num_dead and i % 2 == 0) for i in range(len(completions))]


def seconds_of_updates(skips: bool, sizes: argparse.Namespace) -> list[float]:
    """Seconds of forward and backward passes of each counted step, by turns of dead prompts."""
    trainer = PODSTrainer(
        model=load_model(sizes.model),
        reward_funcs=[Reward()],
        args=PODSConfig(
            mkdtemp(),
            write_run=False,
            num_rollouts=WIDE,
            num_generations=KEPT,
            per_device_train_batch_size=PROMPTS * KEPT,
            max_steps=1 + PROMPTS * sizes.steps,
            max_completion_length=sizes.tokens,
            learning_rate=2e-5,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            skip_dead_rows=skips,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(load_task("arithmetic").rows("train", 64)),
        processing_class=load_tokenizer(sizes.model),
    )
    trainer.remove_callback(PrinterCallback)
    watch = Stopwatch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    del trainer
    gc.collect()
    return [step["update"] for step in watch.steps[1:]]


def measure(sizes: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of an update, by side and share of dead rows."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for repeat in range(sizes.repeats):
        for skips in [True, False] if repeat % 2 else [False, True]:
            side = "skipped" if skips else "all rows"
            found[side] += seconds_of_updates(skips, sizes)
            print(side, [round(value, 2) for value in found[side]], flush=True)
    return {
        side: {
            str(num_dead / PROMPTS): statistics.median(values[num_dead::PROMPTS])
            for num_dead in range(PROMPTS)
        }
        for side, values in found.items()
    }


def of_line(seconds: dict[str, float]) -> dict[str, float]:
    """Each share's seconds over those of the line through all of them; 1 where they are linear."""
    slope, start = statistics.linear_regression(
        [float(share) for share in seconds], seconds.values()
    )
    return {share: value / (start + slope * float(share)) for share, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=24, help="length limit of a completion")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a share, a trainer")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/dead_rows.json"))
    sizes = parser.parse_args()
    logging.disable_progress_bar()
    seconds = measure(sizes)
    result = {
        "seconds": seconds,
        "of_line": of_line(seconds["skipped"]),
        "all_rows_over_skipped": {
            share: seconds["all rows"][share] / value for share, value in seconds["skipped"].items()
        },
        "settings": {k: v for k, v in vars(sizes).items() if k != "output"},
        "versions": versions(
            device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        ),
    }
    sizes.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: result[k] for k in ("of_line", "all_rows_over_skipped")}, indent=2))


if __name__ == "__main__":
    main()
