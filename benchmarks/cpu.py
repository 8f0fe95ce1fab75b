"""What bfloat16 costs on a CPU: weights in blocks, attention in float32, each on and off.

    python benchmarks/cpu.py --output benchmarks/cpu.json   # 6 minutes

Sampling: the default recipe's shape, 4 prompts of 16 rollouts of 24 tokens, none of which ends
early, of the packaged model with float32 weights under bfloat16 autocast, as it is and with LoRA's
adapters on two projections (whose frozen weights autocast casts at every step); weights plain and
in blocks. Products: of some layers of a model, with weights of their own each, so that they come
from memory as in a model, over the rows that are multiplied at once. Attention: of a packed row's
completions and their prompts, forwards and backwards, in bfloat16 and in float32, with the casts
that either needs.

Both sides in turn in one process, the first to go changing; medians, and the median over pairs.
`equal` says whether both sides' results are the same bits: products are summed in the same order up
to some hundred rows.
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
from torch.nn.functional import scaled_dot_product_attention

from podsrl.models import load_model
from podsrl.packing.precision import in_faster_precision
from podsrl.sampling import blocked_weights as blocks
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

MODELS = {
    # hidden size, size of keys and values, size between, layers taken
    "SmolLM2-135M": (576, 192, 1536, 30),
    "Qwen2.5-0.5B": (896, 128, 4864, 8),
    "Qwen2.5-1.5B": (1536, 256, 8960, 4),
}
ROWS = (1, 16, 64, 128, 256, 512)
# Rows, queries of each, keys of each.
SHAPES = ((4, 24, 72), (1, 48, 48), (16, 64, 110), (4, 24, 512), (4, 128, 512))
HAS_BLOCKS = blocks._has_blocks


def in_turn(arms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds of two arms by turns, one call of each before; the second's share of the first's."""
    names = list(arms)
    results = {name: arm() for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names if turn % 2 else names[::-1]:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    pairs = [new / old for old, new in zip(*seconds.values(), strict=True)]
    found = {
        **{f"{name}_seconds": statistics.median(each) for name, each in seconds.items()},
        "share_median_pair": statistics.median(pairs),
        "share_quartiles": statistics.quantiles(pairs)[::2],
    }
    return found | ({} if None in results.values() else {"equal": same(*results.values())})


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
    found = in_turn(arms, args.repeats)
    blocks._has_blocks = HAS_BLOCKS
    return found


def of_attention(shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Output and gradients of rows of completions that see their prompts and themselves."""
    num_rows, num_queries, num_keys = shape
    torch.manual_seed(0)
    # As they come from a layer under autocast: rotary positions leave float32, values do not.
    states = [torch.randn(num_rows, 9, num_queries, 64), torch.randn(num_rows, 3, num_keys, 64)]
    states = [*states, torch.randn(num_rows, 3, num_keys, 64).bfloat16()]
    for each in states:
        each.requires_grad_()
    later = torch.arange(num_keys) > torch.arange(num_keys)[num_keys - num_queries :, None]
    upstream = torch.randn(num_rows, 9, num_queries, 64).bfloat16()

    def attend(q: Any, k: Any, v: Any) -> Any:
        mask = torch.zeros(later.shape, dtype=q.dtype).masked_fill_(later, -torch.inf)
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def both_ways(function: Callable[..., Any]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            output = function(attend, *states)
        torch.autograd.grad(output, states, upstream)

    arms = {
        "bfloat16": lambda: both_ways(lambda function, *x: function(*x)),
        "float32": lambda: both_ways(in_faster_precision),
    }
    return in_turn(arms, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="whose sampling is timed")
    parser.add_argument("--num-rollouts", type=int, default=16, help="of each of 4 prompts")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rows", nargs="*", type=int, default=ROWS, help="of the products")
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
        "attention": {},
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
    for shape in SHAPES:
        name = f"{shape[0]} x {shape[1]} of {shape[2]} keys"
        note(report["attention"], name, of_attention(shape, args.repeats))


if __name__ == "__main__":
    main()
