"""bfloat16 products on a CPU with weights in blocks against plain ones, and sampling with either.

    python benchmarks/blocked_weights.py --output benchmarks/blocked_weights.json   # 6 minutes

Products: all layers of some layers of a model, weights of their own each, so that they come from
memory as in a model, over the rows that are multiplied at once. Sampling: the default recipe's
shape, 4 prompts of 16 rollouts of 24 tokens, none of which ends early, of the packaged model with
float32 weights under bfloat16 autocast, as it is and with LoRA's adapters on two projections (whose
frozen weights autocast casts at every step). Both arms in turn in one process, the first to go
changing; medians, and the median over pairs. `equal` says whether both arms' results are the same
bits: products are summed in the same order up to some hundred rows.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from podsrl.models import load_model
from podsrl.sampling import blocked_weights as blocks
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

MODELS = {
    # hidden size, size of keys and values, size between, layers taken
    "SmolLM2-135M": (576, 192, 1536, 30),
    "Qwen2.5-0.5B": (896, 128, 4864, 8),
    "Qwen2.5-1.5B": (1536, 256, 8960, 4),
}
ROWS = (1, 4, 16, 32, 64, 128, 256, 384, 512, 1024)
HAS_BLOCKS = blocks._has_blocks


def in_turn(arms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds of both arms by turns, after one call of each that is not counted."""
    names = list(arms)
    results = {name: arm() for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names if turn % 2 else names[::-1]:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    pairs = [
        blocked / plain for plain, blocked in zip(seconds["plain"], seconds["blocked"], strict=True)
    ]
    return {
        **{f"{name}_seconds": statistics.median(each) for name, each in seconds.items()},
        "share_median_pair": statistics.median(pairs),
        "share_quartiles": statistics.quantiles(pairs)[::2],
        "equal": same(results["plain"], results["blocked"]),
    }


def same(first: Any, second: Any) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def of_products(name: str, num_rows: int, repeats: int) -> dict[str, Any]:
    """The products of some layers; the bits compared are the last product's."""
    hidden, keys, between, num_layers = MODELS[name]
    torch.manual_seed(0)
    shapes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden)]
    shapes += [(hidden, between), (hidden, between), (between, hidden)]
    layers = nn.ModuleList(
        nn.Linear(wide, high, bias=False).bfloat16()
        for _ in range(num_layers)
        for wide, high in shapes
    )
    inputs = {size: torch.randn(num_rows, 1, size).bfloat16() for size in (hidden, between)}

    def multiply(forwards: list[Callable[[Any], Any]]) -> Any:
        for layer, forward in zip(layers, forwards, strict=True):
            result = forward(inputs[layer.in_features])
        return result

    plain = [layer.forward for layer in layers]
    with torch.no_grad(), blocks.blocked_weights(layers) as num_blocked:
        assert num_blocked == len(layers)
        blocked = [layer.forward for layer in layers]
        arms = {"plain": lambda: multiply(plain), "blocked": lambda: multiply(blocked)}
        return in_turn(arms, repeats)


def of_sampling(with_lora: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Sampling as `podsrl train` does it; blocks are made anew in each call, and count."""
    model: Any = load_model(args.model)
    if with_lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, model.config.vocab_size, (4, 40), generator=generator).tolist()

    def draw(has_blocks: Callable[[], bool]) -> Any:
        blocks._has_blocks = has_blocks
        rollouts = sample(
            model,
            prompts,
            args.num_rollouts,
            settings=SamplingSettings(args.new_tokens, (), 0),
            generator=torch.Generator().manual_seed(1),
            autocast_dtype=torch.bfloat16,
            return_log_probs=True,
        )
        return rollouts.completion_ids, rollouts.log_probs

    arms = {"plain": lambda: draw(lambda: False), "blocked": lambda: draw(HAS_BLOCKS)}
    return in_turn(arms, args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="whose sampling is timed")
    parser.add_argument("--num-rollouts", type=int, default=16, help="of each of 4 prompts")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", nargs="*", type=int, default=ROWS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not HAS_BLOCKS():
        parser.error("this processor has no bfloat16 products of oneDNN with weights in blocks")
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "repeats": args.repeats,
        "sampling": {},
        "products": {},
    }

    def note(part: dict[str, Any], name: str, found: dict[str, Any]) -> None:
        part[name] = found
        print(name, json.dumps(found), flush=True)
        if args.output:
            args.output.write_text(json.dumps(report, indent=1) + "\n")

    for name, with_lora in {"full weights": False, "LoRA on q and v": True}.items():
        note(report["sampling"], name, of_sampling(with_lora, args))
    for name in MODELS:
        of_model = report["products"].setdefault(name, {})
        for num_rows in args.rows:
            note(of_model, str(num_rows), of_products(name, num_rows, args.repeats))


if __name__ == "__main__":
    main()
