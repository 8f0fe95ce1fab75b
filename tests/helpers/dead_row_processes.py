"""Trains in several processes with dead rows in and out of the passes, and writes what came of it.

usage: torchrun ... dead_row_processes.py MODEL_FOLDER OUTPUT_FOLDER CASE ...
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from helpers.harness import build, logged, reward_of_hard_questions
from helpers.tiny import digit_reward
from podsrl.trl.exchange import Exchange

SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}


def taught_once() -> Any:
    """A reward that teaches in the first step and is constant ever after."""
    calls: list[int] = []

    def once(completions: list, **_: Any) -> list[float]:
        calls.append(1)
        return digit_reward(completions) if len(calls) == 1 else [1.0] * len(completions)

    return once


CASES: dict[str, dict[str, Any]] = {
    # One prompt a process and step.
    "dapo": {"max_steps": 6, **SGD},
    "grpo": {"max_steps": 4, "loss_type": "grpo", "gradient_accumulation_steps": 2, **SGD},
    "bnpo": {"max_steps": 4, "loss_type": "bnpo", **SGD},
    "twice": {"max_steps": 6, "num_iterations": 2, **SGD},
    "padded": {"max_steps": 4, "packed_update": False, "gradient_accumulation_steps": 2, **SGD},
    # Three steps without a gradient are enough: of six, four are made.
    "all dead": {
        "max_steps": 6,
        "stop_after_idle_steps": 3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.0,
    },
    "none dead": {"max_steps": 3, "gradient_accumulation_steps": 2},
    "none dead of four": {"max_steps": 3},  # there are six questions
}
REWARDS = {"all dead": taught_once, "none dead": lambda: digit_reward}
REWARDS["none dead of four"] = REWARDS["none dead"]


def train(folder: str, output: Path, case: str, *, skips: bool) -> dict[str, Any]:
    """Losses, the gradients and live rows of each step, and the optimizer's state at the end."""
    reward = REWARDS.get(case, lambda: reward_of_hard_questions)()
    options = {"per_device_train_batch_size": 4, "packed_update": True, **CASES[case]}
    trainer = build(folder, output, rewards=[reward], skip_dead_rows=skips, **options)
    found: dict[str, Any] = {"gradients": [], "live": [], "widths": []}
    loss = trainer._compute_loss

    def spy_loss(model: Any, inputs: dict[str, Any]) -> Any:
        found["live"].append(int((inputs["advantages"] != 0).sum()))
        found["widths"].append(len(inputs["advantages"]))
        return loss(model, inputs)

    trainer._compute_loss = spy_loss
    trainer.create_optimizer_and_scheduler(CASES[case]["max_steps"])
    step = trainer.optimizer.step

    def spy_step(*args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad.flatten() for p in trainer.model.parameters()]
        found["gradients"].append(torch.cat(gradients).clone())
        return step(*args, **kwargs)

    trainer.optimizer.step = spy_step
    trainer.train()
    weights = [p.detach().flatten() for p in trainer.model.parameters()]
    states = trainer.optimizer.state_dict()["state"].values()
    momenta = [state[name].flatten() for state in states for name in ("exp_avg", "exp_avg_sq")
               if name in state]  # fmt: skip
    return found | {
        "loss": logged(trainer, "loss"),
        "num_steps": trainer.state.global_step,
        "weights": torch.cat(weights),
        "momenta": torch.cat(momenta) if momenta else None,
    }


def exchanged() -> dict[str, Any]:
    """Ragged rows by Exchange and as Python's objects, of 3 of each 4 rows of the processes."""
    state = torch.distributed
    process, num_processes = state.get_rank(), state.get_world_size()
    random = torch.Generator().manual_seed(process)
    lengths = torch.randint(0, 9, (4 * num_processes,), generator=random).tolist()
    tokens = [torch.randint(0, 50_000, (n,), generator=random).tolist() for n in lengths]
    numbers = [torch.rand(n, generator=random, dtype=torch.float64).tolist() for n in lengths]
    # The last process keeps all that it sampled, and the first the fewest.
    kept = [row for row in range(4 * num_processes**2) if row % 4 or row >= 4 * num_processes]
    kept = kept[: len(kept) // num_processes * num_processes]
    share = len(kept) // num_processes
    own = slice(process * share, (process + 1) * share)
    rows = Exchange(
        kept,
        num_sampled=4 * num_processes,
        own=own,
        process=process,
        num_processes=num_processes,
        device=torch.device("cpu"),
    )
    all_tokens, all_numbers = gather_object(tokens), gather_object(numbers)
    return {
        "tokens": rows.tokens(tokens) == [all_tokens[row] for row in kept[own]],
        "numbers": rows.numbers(numbers) == [all_numbers[row] for row in kept[own]],
        "values": rows.values(tokens) == [all_tokens[row] for row in kept[own]],
    }


def main(folder: str, output: str, *cases: str) -> None:
    found: dict[str, Any] = {}
    for case in cases:
        pair = [train(folder, Path(output, case), case, skips=skips) for skips in (False, True)]
        found[case] = dict(zip(("off", "on"), pair, strict=True))
    found["exchanged"] = exchanged()
    torch.save(found, Path(output, f"found-{torch.distributed.get_rank()}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
