"""What stopping saves, and whom it prefers: simulated groups, and a model with the same draws.

    python benchmarks/early_stop.py --output benchmarks/early_stop.json

Simulated: binary rewards; lengths are log-normal, cut off at the limit, and wrong answers are
longer (or not) by a factor; all rollouts of a group draw one token per step, and a decision is made
every few steps, as in training. Model: rollouts of the arithmetic task from the packaged model,
sampled twice from the same random numbers, without and with stopping, so that what would have come
is known. Saved tokens are counted against the rollouts as they would have ended; "estimate" and "at
most" are what the metrics pods/frac_tokens_saved and pods/frac_tokens_saved_at_most would say.
`kept_mean_length` is the mean over the rollouts that max_variance keeps. Seconds are the
processor's, since the machine may be shared.
"""

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from podsrl import select
from podsrl.core.early_stop import choice_is_final
from podsrl.core.statistics import group_variance
from podsrl.models import DEFAULT_MODEL, load_model, load_tokenizer
from podsrl.sampling.early_stop import EarlyStop, steps_between_decisions, tokens_to_come
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings
from podsrl.tasks import load_task

NUM_GROUPS = 4096
MAX_LENGTH = 512
MEDIAN_LENGTH = 150
SIZES = ((16, 4), (64, 16))
PASS_RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
LENGTH_FACTORS = (1.0, 1.5, 2.0)  # median length of wrong over right answers


def simulate(
    num_rollouts: int, num_kept: int, *, pass_rate: float, length_factor: float
) -> dict[str, Any]:
    """Shares saved and lengths kept over `NUM_GROUPS` groups."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_GROUPS, num_rollouts)
    rewards_PN = (torch.rand(shape, generator=generator) < pass_rate).double()
    medians_PN = torch.where(rewards_PN > 0, MEDIAN_LENGTH, MEDIAN_LENGTH * length_factor)
    log_lengths_PN = medians_PN.log() + 0.5 * torch.randn(shape, generator=generator)
    length_PN = log_lengths_PN.exp().round().clamp(1, MAX_LENGTH)
    stop_P1 = stopping_steps(rewards_PN, length_PN, num_kept)
    has_ended_PN = length_PN <= stop_P1
    seen_PN = rewards_PN.masked_fill(~has_ended_PN, torch.nan)
    drawn_PN = torch.minimum(length_PN, stop_P1)
    sizes = {"num_kept": num_kept, "max_length": MAX_LENGTH}
    return describe(rewards_PN, seen_PN, length_PN, drawn_PN, sizes=sizes)


def stopping_steps(rewards_PN: Tensor, length_PN: Tensor, num_kept: int) -> Tensor:
    """Tokens (P, 1) that unfinished rollouts of each group have when they are stopped."""
    every = steps_between_decisions(MAX_LENGTH)
    stop_P1 = torch.full((len(rewards_PN), 1), float(MAX_LENGTH), dtype=torch.float64)
    for num_tokens in range(2 * every, MAX_LENGTH, every):
        # What ended in the window before the last one has been scored during the last one.
        seen_PN = rewards_PN.masked_fill(length_PN > num_tokens - every, torch.nan)
        is_final_P = choice_is_final(seen_PN, num_kept, low=0.0, high=1.0)
        stop_P1[is_final_P] = stop_P1[is_final_P].clamp(max=num_tokens)
    return stop_P1


def describe(
    rewards_PN: Tensor,
    seen_PN: Tensor,
    length_PN: Tensor,
    drawn_PN: Tensor,
    *,
    sizes: dict[str, int],
) -> dict[str, Any]:
    """Compare groups that were stopped (NaN in seen_PN) with the same groups sampled in full."""
    num_kept, max_length = sizes["num_kept"], sizes["max_length"]
    is_stopped_PN = drawn_PN < length_PN
    at_most = (max_length - drawn_PN)[is_stopped_PN].sum()
    estimate = tokens_to_come(drawn_PN, ~is_stopped_PN, max_length=max_length).sum()
    result: dict[str, Any] = {
        "frac_tokens_saved": 1 - float(drawn_PN.sum() / length_PN.sum()),
        "frac_tokens_saved_estimate": float(estimate / (estimate + drawn_PN.sum())),
        "frac_tokens_saved_at_most": float(at_most / (at_most + drawn_PN.sum())),
        "frac_rollouts_stopped": float(is_stopped_PN.double().mean()),
        "mean_length": float(length_PN.mean()),
    }
    variance_of = {}
    for name, each_PN in (("full", rewards_PN), ("early", seen_PN)):
        kept_PM = select(each_PN, num_kept)
        length_PM, reward_PM = length_PN.gather(1, kept_PM), each_PN.gather(1, kept_PM)
        variance_of[name] = group_variance(reward_PM)
        result[f"kept_mean_length_{name}"] = float(length_PM.mean())
        for answer, is_one in (("right", reward_PM == 1), ("wrong", reward_PM == 0)):
            lengths = length_PM[is_one]
            mean = float(lengths.mean()) if len(lengths) else None
            result[f"kept_mean_length_{answer}_{name}"] = mean
    change_P = variance_of["full"] - variance_of["early"]
    result["largest_change_of_kept_variance"] = float(change_P.abs().max())
    return result


class Bench:
    """The packaged model on the arithmetic task, batch by batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model, self.tokenizer = load_model(args.model), load_tokenizer(args.model)
        task = load_task("arithmetic")
        self.rows = task.rows("train", args.batches * args.prompts)
        self.correctness = task.reward_funcs["correctness"]
        self.prompt_ids = [
            self.tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_dict=False
            )
            for row in self.rows
        ]
        self.settings = SamplingSettings(
            task.max_new_tokens, (self.tokenizer.eos_token_id,), self.tokenizer.pad_token_id
        )
        self.num_prompts = args.prompts
        self.num_rollouts, self.num_kept = SIZES[0]

    def score(self, first: int, numbers: list[int], tokens: list[list[int]]) -> Tensor:
        """Rewards (rollouts, 1) of these rollouts of the batch that begins with row `first`."""
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        answers = [self.rows[first + i // self.num_rollouts]["answer"] for i in numbers]
        scores = self.correctness(completions=texts, answer=answers)
        return torch.tensor([[torch.nan if each is None else each] for each in scores])

    def run(self, first: int, *, stopping: bool) -> tuple[float, Tensor, Tensor]:
        """Processor seconds, rewards (P, N) and lengths (P, N) of one batch."""
        start = time.process_time()
        with EarlyStop(
            partial(self.score, first),
            torch.ones(1),
            num_groups=self.num_prompts,
            num_rollouts=self.num_rollouts,
            num_kept=self.num_kept,
            bounds=(0.0, 1.0),
            steps_between_decisions=steps_between_decisions(self.settings.max_new_tokens),
        ) as monitor:
            tokens = sample(
                self.model,
                self.prompt_ids[first : first + self.num_prompts],
                self.num_rollouts,
                settings=self.settings,
                generator=torch.Generator().manual_seed(first),
                monitor=monitor if stopping else None,
            ).completion_ids
            everybody = list(range(len(tokens)))
            rewards_B1 = monitor.finish() if stopping else self.score(first, everybody, tokens)
        seconds = time.process_time() - start
        lengths_B = torch.tensor([float(len(each)) for each in tokens], dtype=torch.float64)
        rewards_PN = rewards_B1.double().view(-1, self.num_rollouts)
        return seconds, rewards_PN, lengths_B.view(-1, self.num_rollouts)


def run_model(args: argparse.Namespace) -> dict[str, Any]:
    """Both arms on every batch, taking turns at going first."""
    bench = Bench(args)
    runs: dict[bool, list[tuple[float, Tensor, Tensor]]] = {False: [], True: []}
    for batch in range(args.batches):
        for stopping in (False, True) if batch % 2 else (True, False):
            runs[stopping].append(bench.run(batch * args.prompts, stopping=stopping))
        print(f"batch {batch + 1} of {args.batches}", flush=True)
    rewards_PN, length_PN, seen_PN, drawn_PN = (
        torch.cat([each[column] for each in runs[stopping]])
        for stopping in (False, True)
        for column in (1, 2)
    )
    sizes = {"num_kept": bench.num_kept, "max_length": bench.settings.max_new_tokens}
    median = {
        name: statistics.median(each[0] for each in runs[stopping])
        for name, stopping in (("full", False), ("early", True))
    }
    return {
        "name": args.model,
        "num_groups": len(rewards_PN),
        "num_rollouts": bench.num_rollouts,
        **sizes,
        "pass_rate": float(rewards_PN.nanmean()),
        "frac_groups_stopped": float((drawn_PN < length_PN).any(1).double().mean()),
        "median_cpu_seconds_per_batch": median,
        **describe(rewards_PN, seen_PN, length_PN, drawn_PN, sizes=sizes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=4, help="prompts per batch")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "simulated": [
            {
                "num_rollouts": num_rollouts,
                "num_kept": num_kept,
                "pass_rate": pass_rate,
                "length_factor": factor,
                **simulate(num_rollouts, num_kept, pass_rate=pass_rate, length_factor=factor),
            }
            for num_rollouts, num_kept in SIZES
            for pass_rate in PASS_RATES
            for factor in LENGTH_FACTORS
        ],
    }
    report["model"] = run_model(args)
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    else:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
