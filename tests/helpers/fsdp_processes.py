"""Trains under FSDP2 in several gloo processes, and writes what came of it.

usage: torchrun ... fsdp_processes.py MODEL_FOLDER OUTPUT_FOLDER CASE ...

Where a run uses the CPU, accelerate 1.15 passes over `fsdp=True` without a word and trains DDP:
`fsdp_on_cpu` makes it heed the setting, and what is written says which class the model was wrapped
in.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType
from peft import LoraConfig

from helpers.harness import build, logged, reward_of_hard_questions
from podsrl.packing import log_probs, serve

SHARDED = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    },
}
SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
CASES: dict[str, dict[str, Any]] = {
    # Without momenta, which make a full step of a gradient that is nothing but rounding.
    "packed": SGD,
    "padded": {"packed_update": False, **SGD},
    "whole": {"save_strategy": "steps", "save_steps": 2},
    "resumed": {},  # from the checkpoint of "whole"
    "pooled": {"budget": "pooled", "max_steps": 2},
    # Passes for old log-probs: as many on each process, however many of its rows teach.
    "twice": {"num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 4},
    "rounds": {"sampling_rounds": 4, "num_rollouts": 12, "max_steps": 2},
    "refill": {"refill_constant_groups": 1, "max_steps": 2},
    "lora": {"max_steps": 2},
}


def fsdp_on_cpu() -> None:
    """Have accelerate shard on CPUs, too."""
    init, plugins = state.AcceleratorState.__init__, []

    def patched(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        if options.get("fsdp_plugin"):
            plugins.append(options["fsdp_plugin"])
        # Each call takes over the process's own state anew, in which there is no FSDP.
        if plugins and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugins[-1]

    state.AcceleratorState.__init__ = patched


def count_packed() -> list[int]:
    """Grows by one with each pass over packed rows; packing is always called cheaper."""
    passes: list[int] = []
    original = log_probs.packed_log_probs

    def counted(*args: Any, **options: Any) -> Any:
        passes.append(1)
        return original(*args, **options)

    serve.packed_is_cheaper = lambda *_, **__: True
    serve.packed_log_probs = log_probs.packed_log_probs = counted
    return passes


def train(folder: str, output: Path, case: str, passes: list[int]) -> dict[str, Any]:
    """Class of the wrapped model, choices, losses and whole weights of one run."""
    passes.clear()
    trainer = build(
        folder,
        output / ("whole" if case == "resumed" else case),
        rewards=[reward_of_hard_questions],
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if case == "lora" else None,
        **{"per_device_train_batch_size": 4, "packed_update": True, **SHARDED, **CASES[case]},
    )
    selections: list[Any] = []
    generate = trainer._generate

    def spy_generate(prompts: list) -> tuple:
        handed_on = generate(prompts)
        selections.append((trainer.batch.selection, trainer._selection_seed()))
        return handed_on

    trainer._generate = spy_generate
    checkpoint = str(output / "whole" / "checkpoint-2") if case == "resumed" else None
    trainer.train(resume_from_checkpoint=checkpoint)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered on the first
    return {
        "class": type(trainer.model_wrapped).__name__,
        "num_packed": len(passes),
        "rewards": [chosen.rewards_PN for chosen, _ in selections],
        "kept": [chosen.kept_PN for chosen, _ in selections],
        "seeds": [seed for _, seed in selections],
        "loss": logged(trainer, "loss"),
        "weights": {name: weight.clone() for name, weight in (weights or {}).items()},
    }


def main(folder: str, output: str, *cases: str) -> None:
    fsdp_on_cpu()
    passes = count_packed()
    found = {case: train(folder, Path(output), case, passes) for case in cases}
    torch.save(found, Path(output, f"found-{torch.distributed.get_rank()}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
