"""Seconds of one training step, arm by arm, phase by phase, and how far each is from its floor.

    python benchmarks/step.py --output benchmarks/step.json
    python benchmarks/step.py --tokens 1024 --cases "tiny 4 x (16 -> 4)"

Four cases: one prompt 64 -> 16 or 16 -> 4 and four prompts 16 -> 4 on the packaged model, and the
last on an untrained model of 2.4 M parameters. A case that is measured anew replaces its figures in
the JSON and leaves the others. No rollout ends before the length limit, and rewards fall by a coin,
so that no group is dead: what dead rows save is measured by dead_rows.py. The arms of a case run
in one process, in turn, forwards and backwards, `--repeats` times; each time an arm's trainer is
made anew, and its first step, which allocates what later ones use, is not counted.
Phases: sampling, rewards, selection, log-probs and update (forward and backward), optimizer, and
everything else; the JSON holds medians. Peak memory is the process's resident peak since the arm
began (the kernel's counter is set back), or the allocator's on CUDA. On a CPU it includes what the
allocator kept of the arms and cases before: memory.py has a process for each figure.

The floor of a phase is the time of the floating-point operations and of the bytes it cannot do
without, at what a large matrix product and a large copy reach in the same run, whichever is longer.
"""

import argparse
import gc
import json
import statistics
import time
import zlib
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import warm_up
from datasets import Dataset
from stopwatch import Stopwatch
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import load_model, load_tokenizer
from podsrl.runs.folder import device_name, versions
from podsrl.tasks import load_task
from podsrl.trl.clock import peak_memory_gib, reset_peak_memory

OFF: dict[str, Any] = {"fast_sampling": False, "packed_update": False, "skip_dead_rows": False}


@dataclass(frozen=True)
class Case:
    """Model and sizes of a comparison: prompts per step, n = wide, m = kept."""

    model: str
    prompts: int
    wide: int
    kept: int


CASES = {
    "packaged 1 x (64 -> 16)": Case("smollm2-135m", 1, 64, 16),
    "packaged 1 x (16 -> 4)": Case("smollm2-135m", 1, 16, 4),
    "packaged 4 x (16 -> 4)": Case("smollm2-135m", 4, 16, 4),
    "tiny 4 x (16 -> 4)": Case("tiny", 4, 16, 4),
}


def arms(case: Case) -> dict[str, dict[str, Any]]:
    """Name -> trainer options: n, m and which of our parts are on."""
    wide, kept = case.wide, case.kept
    pods = {"num_rollouts": wide, "num_generations": kept}
    grpo = {
        f"grpo {wide}/{wide}, TRL": {"num_generations": wide},
        f"grpo {kept}/{kept}, TRL": {"num_generations": kept},
    }
    return {
        # The stock arms of the packaged model take minutes a step: once is enough.
        **(grpo if case.prompts == 1 or case.model == "tiny" else {}),
        f"pods {wide}/{kept}, TRL's paths": {**pods, **OFF},
        f"pods {wide}/{kept}, our sampling": {**pods, **OFF, "fast_sampling": True},
        f"pods {wide}/{kept}, packed update": {**pods, **OFF, "packed_update": True},
        f"pods {wide}/{kept}": pods,
    }


def coin(completions: list[Any], **kwargs: Any) -> list[float]:
    """1 for half of all completions, whatever they say, and always the same for one."""
    return [float(zlib.crc32(repr(completion).encode()) % 2) for completion in completions]


def run_arm(case: Case, options: dict[str, Any], sizes: argparse.Namespace) -> list[dict]:
    """Figures of every counted step of one arm, in a trainer of its own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reset_peak_memory(device)
    task = load_task("arithmetic")
    pods = "num_rollouts" in options
    config = (PODSConfig if pods else GRPOConfig)(
        output_dir=mkdtemp(),
        per_device_train_batch_size=options["num_generations"] * case.prompts,
        max_steps=1 + sizes.steps,
        max_completion_length=sizes.tokens,
        learning_rate=2e-5,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=sizes.bf16,
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **({"write_run": False} if pods else {}),
        **options,
    )
    trainer = (PODSTrainer if pods else GRPOTrainer)(
        model=make_model(case.model),
        reward_funcs=coin,
        args=config,
        train_dataset=Dataset.from_list(task.rows("train", 64)),
        processing_class=never_ending(case.model),
    )
    trainer.remove_callback(PrinterCallback)
    watch = Stopwatch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    peak = peak_memory_gib(device)
    del trainer
    gc.collect()
    return [{**step, "peak_memory_gib": peak} for step in watch.steps[1:]]


def make_model(name: str) -> Any:
    """The packaged model, or the untrained one of warm_up.py: 2.4 M parameters, few tokens."""
    tiny = name == "tiny"
    model = warm_up.make_model(make_tokenizer(name), 192, 4) if tiny else load_model(name)
    model.generation_config.eos_token_id = None  # else TRL ends at the model's own besides
    return model


def make_tokenizer(name: str) -> Any:
    if name != "tiny":
        return load_tokenizer(name)
    rows = load_task("arithmetic").rows("train", 2000)
    return warm_up.make_tokenizer(
        [f"{row['prompt'][0]['content']} {row['answer']}" for row in rows]
    )


def never_ending(name: str) -> Any:
    """The tokenizer with an end of text that has no row in the model's head: it is never drawn."""
    tokenizer = make_tokenizer(name)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    return tokenizer


def machine_rates() -> dict[str, float]:
    """Floating-point operations and copied bytes per second that this machine reaches now."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = torch.randn(2, 2048, 2048, device=device)
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)

    def seconds(function: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "flops": 2 * 2048**3 / seconds(lambda: torch.matmul(a, b)),
        "bytes": 2 * source.numel() * 4 / seconds(lambda: target.copy_(source)),
    }


def floors(case: Case, step: dict[str, float], options: dict, rates: dict) -> dict[str, float]:
    """Least seconds of sampling, update and optimizer for the tokens of this step.

    Sampling: every prompt read once and every sampled token through all weights once; and the
    weights read once per decoding step. Update: prompt read once and kept tokens, forward and
    backward (3 x 2 operations a weight). Optimizer: four reads and three writes per parameter.
    """
    model = make_model(case.model)
    total = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    num_rollouts = options.get("num_rollouts", options["num_generations"])
    prompt_tokens = step["prompt"] / num_rollouts
    kept_tokens = step["sampled"] * options["num_generations"] / num_rollouts
    body = total - head
    sampling_flops = 2 * body * prompt_tokens + 2 * total * step["sampled"]
    update_flops = 6 * body * (prompt_tokens + kept_tokens) + 6 * head * kept_tokens
    return {
        "sampling": max(
            sampling_flops / rates["flops"], step["steps"] * 4 * total / rates["bytes"]
        ),
        "update": update_flops / rates["flops"],
        "optimizer": 7 * 4 * total / rates["bytes"],
    }


def summarise(steps: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the counted steps of all repeats, and tokens per second."""
    median = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
    median["sampled_tokens_per_second"] = statistics.median(
        step["sampled"] / step["sampling"] for step in steps
    )
    totals = [step["total"] for step in steps]
    return {**median, "total_min": min(totals), "total_max": max(totals), "num_steps": len(steps)}


def measure(case: Case, sizes: argparse.Namespace) -> dict[str, Any]:
    """All arms in turn, `repeats` times."""
    collected: defaultdict[str, list] = defaultdict(list)
    rates = []
    for repeat in range(sizes.repeats):
        rates.append(machine_rates())
        in_order = list(arms(case).items())
        for name, options in reversed(in_order) if repeat % 2 else in_order:
            if sizes.arms and name not in sizes.arms:
                continue
            collected[name] += run_arm(case, options, sizes)
            seconds = collected[name][-1]["total"]
            print(f"{case.model} repeat {repeat} {name}: {seconds:.2f} s", flush=True)
    best = {key: max(rate[key] for rate in rates) for key in rates[0]}
    result: dict[str, Any] = {"rates": best, "arms": {}}
    for name, steps in collected.items():
        options = arms(case)[name]
        figures = summarise(steps)
        least = floors(case, figures, options, best)
        figures["floor"] = least
        figures["over_floor"] = {phase: figures[phase] / least[phase] for phase in least}
        result["arms"][name] = figures
    return {**result, "ratios": ratios(result["arms"], case)}


def ratios(each: dict[str, Any], case: Case) -> dict[str, float]:
    """The ratios that the README quotes."""
    wide, kept = case.wide, case.kept
    ours, before = f"pods {wide}/{kept}", f"pods {wide}/{kept}, TRL's paths"
    over_ours = {name: figures["total"] / each[ours]["total"] for name, figures in each.items()}
    stock = {
        "grpo wide over ours": over_ours.get(f"grpo {wide}/{wide}, TRL"),
        "grpo narrow over ours": over_ours.get(f"grpo {kept}/{kept}, TRL"),
    }
    return {
        **{name: ratio for name, ratio in stock.items() if ratio is not None},
        "before over ours": over_ours[before],
        "sampling: TRL over ours": each[before]["sampling"] / each[ours]["sampling"],
        "update: TRL over ours": each[before]["update"] / each[ours]["update"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--arms", nargs="*", help="by name; default: all of the case")
    parser.add_argument("--tokens", type=int, default=24, help="length limit of a completion")
    parser.add_argument("--steps", type=int, default=1, help="counted steps per repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bf16", action="store_true", help="autocast, where the hardware has it")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/step.json"))
    sizes = parser.parse_args()
    logging.disable_progress_bar()
    result = json.loads(sizes.output.read_text()) if sizes.output.exists() else {"cases": {}}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in sizes.cases:
        case = CASES[name]
        measured = {**asdict(case), **measure(case, sizes)}
        measured["settings"] = {
            k: v for k, v in vars(sizes).items() if k not in ("output", "cases")
        }
        measured["versions"] = versions(device_name(device))
        result["cases"][name if sizes.tokens == 24 else f"{name}, {sizes.tokens} tokens"] = measured
        sizes.output.write_text(json.dumps(result, indent=2) + "\n")
        print(name, json.dumps(measured["ratios"], indent=2), flush=True)


if __name__ == "__main__":
    main()
