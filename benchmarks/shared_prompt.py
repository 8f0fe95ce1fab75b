"""Sampling many rollouts of long prompts: keys and values copied per rollout against stored once.

    python benchmarks/shared_prompt.py --output benchmarks/shared_prompt.json

One prompt of random tokens; all rollouts have `--new-tokens` tokens, so both arms do equal work.
Each arm runs in a process of its own, in turn, `--repeats` times: seconds of sampling after one
short call to warm up, and by how much the process's peak memory grew over what it held before. The
JSON holds medians, the cache's bytes by count, and the largest difference of log-probs in nats
between tokens that both arms drew from equal contexts. A size that is measured anew replaces its
figures in the file and leaves the others. With `--top-p` below 1 the growth also shows what sorting
the vocabulary takes, beside what the memory plan counts for it. On a machine that others use,
compare processor seconds under OMP_NUM_THREADS=1; they leave out waiting.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from podsrl.models import load_model
from podsrl.sampling import sample as sampling
from podsrl.sampling.memory import bytes_per_row, cache_bytes_per_row
from podsrl.sampling.settings import SamplingSettings

ARMS = {"copied": False, "shared": True}
PROMPT_TOKENS = (64, 256, 1024, 2048)
NUM_ROLLOUTS = (16, 64, 256)


def load(args: argparse.Namespace) -> Any:
    model = load_model(args.model, dtype=args.dtype, attn_implementation="sdpa").eval()
    if args.layers:
        model.base_model.layers = model.base_model.layers[: args.layers]
        model.config.num_hidden_layers = args.layers
    return model


def settings_of(args: argparse.Namespace, num_new: int) -> SamplingSettings:
    return SamplingSettings(num_new, (), 0, top_p=args.top_p)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(arm: str, length: int, num_rollouts: int, args: argparse.Namespace) -> dict[str, Any]:
    """One arm in this process, which must not have sampled before."""
    model = load(args)
    sampling.sharing_pays = lambda *_, **__: ARMS[arm]
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(5, model.config.vocab_size, (length,), generator=generator).tolist()
    sampling.sample(model, [prompt[:8]], 1, settings=settings_of(args, 2))
    before, start, cpu_start = peak_bytes(), time.perf_counter(), time.process_time()
    rollouts = sampling.sample(
        model,
        [prompt],
        num_rollouts,
        settings=settings_of(args, args.new_tokens),
        generator=generator,
        max_rows=num_rollouts,
        return_log_probs=True,
    )
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_growth_bytes": peak_bytes() - before,
        "rollouts": (rollouts.completion_ids, rollouts.log_probs),
    }


def in_a_process(*request: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, request)


def largest_difference(first: Any, second: Any) -> tuple[float, float]:
    """Of log-probs up to where the arms' tokens part, and the share of rollouts that never do."""
    largest, num_equal = 0.0, 0
    pairs = zip(first[0], second[0], first[1], second[1], strict=True)
    for tokens, others, log_probs, other_log_probs in pairs:
        num_equal += tokens == others
        for pair in zip(tokens, others, log_probs, other_log_probs, strict=True):
            if pair[0] != pair[1]:
                break
            largest = max(largest, abs(pair[2] - pair[3]))
    return largest, num_equal / len(first[0])


def compare(
    length: int, num_rollouts: int, config: Any, args: argparse.Namespace
) -> dict[str, Any]:
    """Medians of both arms over alternating repeats."""
    rounds = [
        {arm: in_a_process(arm, length, num_rollouts, args) for arm in ARMS}
        for _ in range(args.repeats)
    ]
    settings, dtype = settings_of(args, args.new_tokens), getattr(torch, args.dtype)
    result: dict[str, Any] = {"repeats": args.repeats}
    for arm, share in ARMS.items():
        runs = [each[arm] for each in rounds]
        keys = ("seconds", "cpu_seconds", "peak_growth_bytes")
        result[arm] = {key: statistics.median(run[key] for run in runs) for key in keys}
        positions = num_rollouts * args.new_tokens + length * (1 if share else num_rollouts + 1)
        result[arm]["cache_bytes"] = positions * cache_bytes_per_row(config, 1, dtype=dtype)
        result[arm]["planned_bytes"] = num_rollouts * bytes_per_row(
            config,
            length,
            settings=settings,
            dtype=dtype,
            num_sharing=num_rollouts if share else 1,
        )
    for key in ("seconds", "cpu_seconds", "peak_growth_bytes", "cache_bytes"):
        result[f"{key}_ratio"] = result["copied"][key] / result["shared"][key]
    difference, share_equal = largest_difference(*(rounds[0][arm]["rollouts"] for arm in ARMS))
    return result | {
        "max_log_prob_difference": difference,
        "frac_rollouts_with_equal_tokens": share_equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, help="keep this many layers only, for a quick look")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--prompt-tokens", nargs="*", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--num-rollouts", nargs="*", type=int, default=NUM_ROLLOUTS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    once = ("output", "repeats", "prompt_tokens", "num_rollouts")
    report: dict[str, Any] = {
        **{key: value for key, value in vars(args).items() if key not in once},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "sizes": {},
    }
    if args.output and args.output.exists():
        report["sizes"] = json.loads(args.output.read_text())["sizes"]
    config = load(args).config
    for length in args.prompt_tokens:
        for num_rollouts in args.num_rollouts:
            result = compare(length, num_rollouts, config, args)
            report["sizes"][f"{length} x {num_rollouts}"] = result
            print(length, num_rollouts, json.dumps(result), flush=True)
            if args.output:
                args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
