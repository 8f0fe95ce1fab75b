"""Trains under FSDP2 in several gloo processes, and writes what came of it; some cases under DDP.

usage: torchrun ... fsdp_processes.py MODEL_FOLDER OUTPUT_FOLDER CASE[=CHECKPOINT] ...

CHECKPOINT: of another launch, to go on from.

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
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

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
    "generate": {"fast_sampling": False, "max_steps": 1},
    "early": {
        "early_stop": True,
        "reward_bounds": [0.0, 1.0],
        "num_rollouts": 16,
        "max_completion_length": 48,
        "max_steps": 2,
    },
    # With twice the processes of "whole": half as many rows in each are the same questions.
    "moved": {"per_device_train_batch_size": 2},
}
DDP = "ddp "
"""Before the name of a case: the weights are copied, not sharded."""


def fsdp_on_cpu() -> None:
    """Have accelerate shard on CPUs, too."""
    init, plugins = state.AcceleratorState.__init__, []
    if init.__name__ == "patched":
        return

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


def whole_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Gathered on the first process; nothing on others, where they are sharded."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {name: weight.clone() for name, weight in weights.items()}


def reshards(model: torch.nn.Module) -> list[bool]:
    """Which groups of weights are sharded again after a forward pass."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for each in sharded for group in each._get_fsdp_state()._fsdp_param_groups]
    return [group.post_forward_mesh_info is not None for group in groups]


class WeightsAtStart(TrainerCallback):
    """The weights with which a run starts or goes on."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.weights = trainer, None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.weights is None:
            self.weights = whole_weights(self.trainer)


def train(folder: str, output: Path, case: str, checkpoint: str, passes: list[int]) -> dict:
    """Class of the wrapped model, choices, losses and whole weights of one run."""
    passes.clear()
    options = CASES[case.removeprefix(DDP)]
    trainer = build(
        folder,
        output / case.replace("resumed", "whole"),
        rewards=[reward_of_hard_questions],
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if case == "lora" else None,
        **{"per_device_train_batch_size": 4, "packed_update": True, **options},
        **({} if case.startswith(DDP) else SHARDED),
    )
    start = WeightsAtStart(trainer)
    trainer.add_callback(start)
    selections: list[Any] = []
    generate = trainer._generate

    def spy_generate(prompts: list) -> tuple:
        handed_on = generate(prompts)
        selections.append((trainer.batch.selection, trainer._selection_seed()))
        return handed_on

    trainer._generate = spy_generate
    if case.endswith("resumed"):
        checkpoint = str(output / case.replace("resumed", "whole") / "checkpoint-2")
    trainer.train(resume_from_checkpoint=checkpoint or None)
    return {
        "class": type(trainer.model_wrapped).__name__,
        "generate": trainer.prompt_once.fallback if trainer.prompt_once else "as told",
        "num_packed": len(passes),
        "rewards": [chosen.rewards_PN for chosen, _ in selections],
        "kept": [chosen.kept_PN for chosen, _ in selections],
        "seeds": [seed for _, seed in selections],
        "loss": logged(trainer, "loss"),
        "start": start.weights,
        "reshards": reshards(trainer.model_wrapped),
        "weights": whole_weights(trainer),
    }


def main(folder: str, output: str, *cases: str) -> None:
    passes, found = count_packed(), {}
    for case in sorted(cases, key=lambda case: not case.startswith(DDP)):
        if not case.startswith(DDP):
            fsdp_on_cpu()
        name, _, checkpoint = case.partition("=")
        found[name] = train(folder, Path(output), name, checkpoint, passes)
    torch.save(found, Path(output, f"found-{torch.distributed.get_rank()}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
