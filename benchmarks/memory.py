"""Peak memory of training steps as n grows while m stays: each n in a process of its own.

    python benchmarks/memory.py --output benchmarks/memory.json

The figure is the largest resident memory of the process over two steps, model and optimizer
included (on CUDA: of the allocator). With m fixed, the update's memory should not follow n.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import torch

SIZES = (16, 64, 256)
KEPT = 16


def peak_gib(num_rollouts: int) -> float:
    """Peak memory of two steps on the packaged model, one prompt per step, in this process."""
    from datasets import Dataset

    from podsrl import PODSConfig, PODSTrainer
    from podsrl.models import load_model, load_tokenizer
    from podsrl.tasks import load_task
    from podsrl.trl.clock import peak_memory_gib

    task = load_task("arithmetic")
    config = PODSConfig(
        mkdtemp(),
        write_run=False,
        num_rollouts=num_rollouts,
        num_generations=KEPT,
        fast_sampling=True,
        packed_update=True,
        per_device_train_batch_size=KEPT,
        max_steps=2,
        max_completion_length=task.max_new_tokens,
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = PODSTrainer(
        model=load_model("smollm2-135m"),
        reward_funcs=list(task.reward_funcs.values()),
        args=config,
        train_dataset=Dataset.from_list(task.rows("train", 16)),
        processing_class=load_tokenizer("smollm2-135m"),
    )
    trainer.train()
    return peak_memory_gib(trainer.accelerator.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", type=int, help="measure this n in this process and print it")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/memory.json"))
    options = parser.parse_args()
    if options.only:
        print(f"peak {peak_gib(options.only)}")
        return
    peaks = {}
    for size in SIZES:
        command = [sys.executable, __file__, "--only", str(size)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[size] = float(printed.rsplit("peak ", 1)[1])
        print(f"n = {size}, m = {KEPT}: {peaks[size]:.2f} GiB", flush=True)
    result = {
        "num_kept": KEPT,
        "peak_gib": peaks,
        "largest_over_smallest": peaks[SIZES[-1]] / peaks[SIZES[0]],
        "torch": torch.__version__,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
