"""Forward and backward of kept rollouts: padded rows against packed rows, alternating in one run.

    python benchmarks/packed.py --output benchmarks/packed.json

Arms: `padded` (TRL's call), `dense` (packed row, S x S mask), `shared` (packed row, attention per
prompt and per completion, causal order in the place of masks), `masked` (as `shared`, but with the
masks that hide padding), `alone` (as `shared`, but every rollout brings its own prompt: what is won
without sharing). Each size runs all arms in turn, `--repeats` times; the JSON holds medians, their
ratios to `padded`, tokens read, the bytes that attention's masks take until the backward pass, and
the largest difference of log-probs in nats. On a machine that others use, compare processor seconds
under OMP_NUM_THREADS=1; they leave out waiting.
"""

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from podsrl.models import load_model
from podsrl.packing import attention
from podsrl.packing.attention import MAX_LENGTHS, SHARED_PREFIX
from podsrl.packing.log_probs import packed_log_probs
from podsrl.packing.pack import pack

ARMS = {
    "padded": "sdpa",
    "dense": "sdpa",
    "shared": SHARED_PREFIX,
    "masked": SHARED_PREFIX,
    "alone": SHARED_PREFIX,
}
# Prompts, kept rollouts of each, prompt tokens, completion tokens at most, at least. "~": the last
# prompt has all its tokens, the others fewer and fewer, down to half.
SIZES = {
    "4 x 4, 48 + 20": (4, 4, 48, 20, 20),
    "4 x 4, 48 + 6..24": (4, 4, 48, 24, 6),
    "1 x 16, 48 + 20": (1, 16, 48, 20, 20),
    "1 x 8, 150 + 100": (1, 8, 150, 100, 100),
    "1 x 8, 150 + 200": (1, 8, 150, 200, 200),
    "1 x 8, 16 + 200": (1, 8, 16, 200, 200),
    "1 x 8, 512 + 1024": (1, 8, 512, 1024, 1024),
    "4 x 4, ~512 + 512": (4, 4, 512, 512, 512),
}


def make_batch(
    size: tuple[int, int, int, int, int], vocabulary: int, *, unequal: bool = False
) -> tuple[Tensor, ...]:
    """Random prompts and completions in TRL's padded layout, and each row's prompt number."""
    num_prompts, num_kept, width, longest, shortest = size
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(num_prompts).repeat_interleave(num_kept)
    prompts = torch.randint(vocabulary, (num_prompts, width), generator=generator)[group]
    shape = (len(group), longest)
    completions = torch.randint(vocabulary, shape, generator=generator)
    lengths = torch.randint(shortest, longest + 1, (len(group), 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    mask[0] = 1
    missing = torch.arange(num_prompts).flip(0) * width // (2 * max(1, num_prompts - 1))
    filled = torch.arange(width) >= (missing if unequal else missing * 0)[group][:, None]
    return prompts, filled.long(), completions, mask, group


def log_probs(arm: str, model: Any, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    """Log-probs of the completions (B, T) as the arm computes them, and the tokens it read."""
    prompts, prompt_mask, completions, mask, group = batch
    if arm != "padded":
        owner = torch.arange(len(group)) if arm == "alone" else group
        packed = pack(prompts, prompt_mask, completions, mask, owner)
        return packed_log_probs(model, packed, compute_entropy=True)[0], packed.num_tokens
    ids, filled = torch.cat([prompts, completions], 1), torch.cat([prompt_mask, mask], 1)
    labels = ids.masked_fill(filled == 0, -100)
    labels[:, : prompts.shape[1]] = -100
    outputs = model(input_ids=ids, attention_mask=filled, labels=labels, fused_lm_head=True)
    return outputs.log_probs[:, -completions.shape[1] :], ids.numel()


def measure(arm: str, model: Any, batch: tuple[Tensor, ...], bf16: bool) -> dict[str, Any]:
    """Seconds of one forward and backward pass, with what it computed."""
    model.set_attn_implementation(ARMS[arm])
    model.zero_grad(set_to_none=True)
    attention.MAX_LENGTHS = 0 if arm == "masked" else MAX_LENGTHS
    masks: dict[int, int] = {}
    config = model.config
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )

    def note(saved: Tensor) -> Tensor:
        # Masks are what attention keeps without a gradient, as wide as there are keys; rotations
        # are as wide as a head.
        is_mask = saved.is_floating_point() and saved.ndim == 4 and not saved.requires_grad
        if is_mask and saved.shape[-1] != head_size:
            masks[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    start, cpu_start = time.perf_counter(), time.process_time()
    with (
        torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved),
    ):
        values, num_tokens = log_probs(arm, model, batch)
    forward = time.perf_counter()
    values.sum().backward()
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "forward_seconds": forward - start,
        "num_tokens": num_tokens,
        "mask_bytes": sum(masks.values()),
        "values": values.detach(),
    }


def compare(model: Any, batch: tuple[Tensor, ...], bf16: bool, repeats: int) -> dict[str, Any]:
    """Medians per arm over alternating repeats, after one round to warm up."""
    rounds = [{arm: measure(arm, model, batch, bf16) for arm in ARMS} for _ in range(repeats + 1)]
    truth, result = rounds[0]["padded"]["values"], {}
    for arm in ARMS:
        runs = [timed[arm] for timed in rounds[1:]]
        result[arm] = {
            key: statistics.median(run[key] for run in runs)
            for key in ("seconds", "cpu_seconds", "forward_seconds", "num_tokens", "mask_bytes")
        }
        error = (runs[0]["values"] - truth).abs().max().item()
        result[arm]["max_log_prob_difference"] = error
    for arm in ARMS:
        for key in ("seconds", "cpu_seconds"):
            result[arm][f"{key}_speedup"] = result["padded"][key] / result[arm][key]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="keep this many layers only, for a quick look")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model = load_model(args.model, attn_implementation="sdpa").train()
    if args.layers:
        model.base_model.layers = model.base_model.layers[: args.layers]
        model.config.num_hidden_layers = args.layers
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    report: dict[str, Any] = {
        "model": args.model,
        "num_layers": model.config.num_hidden_layers,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "repeats": args.repeats,
        "results": {},
    }
    for name in args.sizes:
        batch = make_batch(SIZES[name], model.config.vocab_size, unequal="~" in name)
        for precision in ("float32", "bf16 autocast"):
            result = compare(model, batch, precision != "float32", args.repeats)
            report["results"][f"{name}, {precision}"] = result
            speedups = {arm: f"{result[arm]['cpu_seconds_speedup']:.2f}" for arm in ARMS}
            print(name, precision, f"{result['padded']['seconds']:.2f} s", speedups, flush=True)
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
