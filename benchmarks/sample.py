"""Sampling n rollouts per prompt: `generate` on repeated prompts against `podsrl.sampling.sample`.

    python benchmarks/sample.py --output benchmarks/sample.json

Both arms draw from the same four prompts, in turn, `--repeats` times after one round to warm up,
with end tokens ("until the end") and without ("all tokens", equal work in both arms). The JSON
holds medians, tokens per second, our seconds per phase, and the floor: the matrix products that
must be computed over what a large matrix product reaches in the same run. With `--lora-rank` the
model has adapters on all projections, and a third arm samples without merging them. On a machine
that others use, compare processor seconds under OMP_NUM_THREADS=1; they leave out waiting.
"""

import argparse
import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from podsrl.models import load_model, load_tokenizer
from podsrl.sampling import sample as sampling
from podsrl.sampling.settings import SamplingSettings

QUESTIONS = ("What is 34 + 7?", "Calculate 81 - 5 + 12.", "What is 6 + 90?", "Compute 45 - 12.")
SIZES = {"4 x 16": 16, "4 x 64": 64}
PHASES = {
    "read": "prompts",
    "start": "repeat_cache",
    "next_logits": "model",
    "next_tokens": "draw",
    "retire": "retire",
}


def time_phases() -> defaultdict[str, float]:
    """Make every phase of the sampler add its processor seconds to the dict that is returned."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            spent[phase] += time.process_time() - start
            return result

        return call

    for name, phase in PHASES.items():
        setattr(sampling, name, timed(getattr(sampling, name), phase))
    return spent


def run_ours(
    model: Any, prompts: list[list[int]], num_rollouts: int, settings: SamplingSettings, seed: int
) -> int:
    """Number of tokens sampled."""
    generator = torch.Generator(model.device).manual_seed(seed)
    result = sampling.sample(model, prompts, num_rollouts, settings=settings, generator=generator)
    return sum(map(len, result.completion_ids))


def run_unmerged(*request: Any) -> int:
    """`run_ours` with the adapters beside their weights."""
    merged, sampling.merged_adapters = sampling.merged_adapters, lambda *_, **__: nullcontext()
    try:
        return run_ours(*request)
    finally:
        sampling.merged_adapters = merged


def run_generate(
    model: Any, prompts: list[list[int]], num_rollouts: int, settings: SamplingSettings, seed: int
) -> int:
    """Number of tokens up to the end of each rollout, from padded and repeated prompts."""
    torch.manual_seed(seed)
    longest, pad = max(map(len, prompts)), settings.pad_token_id
    rows = [ids for ids in prompts for _ in range(num_rollouts)]
    output = model.generate(
        input_ids=torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows]),
        attention_mask=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
        do_sample=True,
        top_k=0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(settings.eos_token_ids) or None,
        pad_token_id=pad,
    )[:, longest:]
    ended_BT = torch.isin(output, torch.tensor(settings.eos_token_ids, dtype=torch.long))
    return int((ended_BT.cumsum(-1) - ended_BT.int() == 0).sum())


def measure(arm: Callable[..., int], *args: Any) -> dict[str, float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    num_tokens = arm(*args)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "num_tokens": num_tokens,
    }


def flops_per_cpu_second(dtype: torch.dtype) -> float:
    """What the product of two 2048 x 2048 matrices reaches, the best of five."""
    left, right = torch.randn(2, 2048, 2048).to(dtype)
    seconds = [measure(lambda: int((left @ right).numel()))["cpu_seconds"] for _ in range(5)]
    return 2 * 2048**3 / min(seconds)


def floor_flops(model: Any, num_prompt_tokens: int, num_tokens: int, num_prompts: int) -> float:
    """2 per weight and token: every layer for all tokens, the output head where one is drawn."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = model.get_output_embeddings().weight.numel()
    named = model.base_model.layers.named_parameters()
    layers = sum(p.numel() for name, p in named if p.ndim == 2 and "lora_" not in name)
    return 2.0 * (layers * (num_prompt_tokens + num_tokens) + head * (num_prompts + num_tokens))


def compare(
    model: Any, prompts: list[list[int]], num_rollouts: int, settings: SamplingSettings, args: Any
) -> dict[str, Any]:
    """Medians of both arms over alternating repeats."""
    arms: dict[str, Any] = {"generate": run_generate, "sample": run_ours}
    if args.lora_rank:
        arms["unmerged"] = run_unmerged
    rounds = []
    for seed in range(args.repeats + 1):
        if seed == 1:
            args.spent.clear()
        request = (model, prompts, num_rollouts, settings, seed)
        rounds.append({name: measure(arm, *request) for name, arm in arms.items()})
    result: dict[str, Any] = {}
    for name in arms:
        runs = [each[name] for each in rounds[1:]]
        result[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        result[name]["tokens_per_second"] = statistics.median(
            run["num_tokens"] / run["seconds"] for run in runs
        )
    ours = result["sample"]
    if "unmerged" not in arms:
        ours["cpu_seconds_per_phase"] = {k: v / args.repeats for k, v in args.spent.items()}
    # Rollouts end at random lengths; the ratio of times per token does not depend on them.
    for key in ("seconds", "cpu_seconds"):
        for arm in arms.keys() - {"sample"}:
            per_token = [
                (each[arm][key] / each[arm]["num_tokens"])
                / (each["sample"][key] / each["sample"]["num_tokens"])
                for each in rounds[1:]
            ]
            name = f"{key}_speedup" if arm == "generate" else f"{key}_speedup_of_merging"
            result[name] = statistics.median(per_token)
    # The first token of a rollout comes from the prompt, which is read once.
    decoded = ours["num_tokens"] - num_rollouts * len(prompts)
    flops = floor_flops(model, sum(map(len, prompts)), decoded, len(prompts))
    result["floor_cpu_seconds"] = flops / args.reach
    result["times_the_floor"] = ours["cpu_seconds"] / result["floor_cpu_seconds"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, dtype=args.dtype), load_tokenizer(args.model)
    if args.lora_rank:
        config = LoraConfig(r=args.lora_rank, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    args.spent, args.reach = time_phases(), flops_per_cpu_second(model.dtype)
    report: dict[str, Any] = {
        "model": args.model,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "repeats": args.repeats,
        "prompt_tokens": [len(ids) for ids in prompts],
        "new_tokens": args.new_tokens,
        "gflops_per_cpu_second": args.reach / 1e9,
        "sizes": {},
    }
    for size in args.sizes:
        ends = {"until the end": (tokenizer.eos_token_id,), "all tokens": ()}
        for label, eos in ends.items():
            settings = SamplingSettings(args.new_tokens, eos, tokenizer.pad_token_id)
            result = compare(model, prompts, SIZES[size], settings, args)
            report["sizes"][f"{size}, {label}"] = result
            print(size, label, json.dumps(result, indent=1), flush=True)
            if args.output:
                args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
