"""A pilot: rollouts of some training prompts, to know how often the policy is right, and how sure.

Shape letters: P prompts, R rollouts of each, F reward functions.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from podsrl.core.combine import combine
from podsrl.models import load_model, load_tokenizer
from podsrl.plan.measure import layout
from podsrl.plan.noise import UNKNOWN, Group, Noise, measure_noise
from podsrl.rewards.own import call_reward
from podsrl.runs.settings import RunArguments, parse_settings
from podsrl.runs.training import load_questions
from podsrl.sampling.complete import complete, plain_config
from podsrl.sampling.modes import autocast
from podsrl.tasks.base import Row, Task
from podsrl.trl.config import PODSConfig

ROWS_AT_A_TIME = 128

Report = Callable[[str, int, int], None]
"""Hears what is done, and how much of how much: ("rollouts", 128, 1024)."""


@dataclass(frozen=True)
class Pilot:
    """What was sampled and what it took."""

    rewards_PR: Tensor
    """Float64, without the prompts of which a reward failed."""
    noise: Noise
    num_prompts: int
    num_rollouts: int
    num_failed: int
    """Prompts left out, because a rollout of theirs has no reward."""
    seconds: float
    stopped: bool = False
    """Whether Ctrl-C ended it early."""

    @property
    def is_binary(self) -> bool:
        """Whether there are no more than two different rewards."""
        return self.rewards_PR.unique().numel() <= 2

    @property
    def num_right_P(self) -> Tensor:
        """Of each prompt, the rollouts with the higher of two rewards; a lone reward <= 0 is wrong.

        Example: rewards (0, 1, 1) and (0, 0, 0): 2 and 0.
        """
        high = self.rewards_PR.max()
        is_lone = self.rewards_PR.min() == high
        return ((self.rewards_PR == high) & ~(is_lone & (high <= 0))).sum(1)


def run_pilot(
    recipe: Mapping[str, Any],
    num_prompts: int,
    num_rollouts: int,
    *,
    report: Report = lambda what, done, total: None,
) -> Pilot:
    """Sample as the recipe's training would at its start, reward, and measure rho.

    The prompts are drawn from the training rows by the recipe's seed. Sampling is our sampler's or
    `generate`, with the recipe's precision, temperature, top_p, top_k and length limit, some
    128 rollouts at a time. Adapters, which change nothing before training, and quantization are
    left out. On Ctrl-C the prompts sampled so far and the gradients taken so far are the pilot.

    Raises:
        ValueError: fewer than 1 prompt or 2 rollouts, and whatever the recipe's task and model say.
        KeyboardInterrupt: Ctrl-C before the first prompts were sampled.
    """
    if num_prompts < 1 or num_rollouts < 2:
        raise ValueError(
            f"the pilot has {num_prompts} prompts of {num_rollouts} rollouts: it needs 1 of 2 at "
            "least; --pilot 0 leaves it out"
        )
    start = time.perf_counter()
    settings = parse_settings(recipe)
    arguments, config, _ = settings
    task, rows = load_questions(arguments, config.seed)
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))
    rows = [rows[i] for i in drawn[:num_prompts].tolist()]
    model, tokenizer = _load(*settings)
    prompt_ids, completion_ids, stopped = _sample_until_stopped(
        model, tokenizer, task, rows, num_rollouts, config, report
    )
    rows = rows[: len(prompt_ids)]
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    rewards_PR = score(task, rows, texts, completion_ids, config.reward_weights).double()
    has_all_P = ~rewards_PR.isnan().any(1)
    groups = [
        Group(prompt_ids[p], completion_ids[p * num_rollouts : (p + 1) * num_rollouts], rewards)
        for p, rewards in enumerate(rewards_PR)
        if has_all_P[p]
    ]
    noise = UNKNOWN
    if not stopped:
        noise = measure_noise(
            model,
            groups,
            temperature=config.temperature,
            per_token=config.loss_type == "grpo",
            num_prompts=layout(config).num_prompts,
            report=lambda done, total: report("gradients", done, total),
        )
    return Pilot(
        rewards_PR[has_all_P],
        noise,
        len(rows),
        num_rollouts,
        int((~has_all_P).sum()),
        time.perf_counter() - start,
        stopped or noise.stopped,
    )


def _load(arguments: RunArguments, config: PODSConfig, model_config: Any) -> tuple[Any, Any]:
    name = model_config.model_name_or_path or arguments.model
    model = load_model(name, dtype=model_config.dtype or "float32")
    return model.to(config.device), load_tokenizer(name)


def _sample_until_stopped(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    num_rollouts: int,
    config: PODSConfig,
    report: Report,
) -> tuple[list[list[int]], list[list[int]], bool]:
    """`_sample` of all rows, or of as many as were done at Ctrl-C, and whether it came."""
    prompt_ids: list[list[int]] = []
    completion_ids: list[list[int]] = []
    size = max(1, ROWS_AT_A_TIME // num_rollouts)
    try:
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            found = _sample(
                model, tokenizer, task, chosen, num_rollouts, config, seed=config.seed + first
            )
            prompt_ids += found[0]
            completion_ids += found[1]
            report("rollouts", len(completion_ids), len(rows) * num_rollouts)
    except KeyboardInterrupt:
        if not prompt_ids:
            raise
        return prompt_ids, completion_ids[: len(prompt_ids) * num_rollouts], True
    return prompt_ids, completion_ids, False


def _sample(
    model: Any,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    num_rollouts: int,
    config: PODSConfig,
    *,
    seed: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the prompts, and of `num_rollouts` completions of each, prompt by prompt."""
    texts = [
        tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    # The template has written the special tokens already.
    prompt_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    generation = plain_config(
        model,
        tokenizer,
        max_new_tokens=config.max_completion_length or task.max_new_tokens,
        temperature=config.temperature,
    )
    generation.update(top_p=config.top_p, top_k=config.top_k or 0, min_p=config.min_p or 0.0)
    dtype = torch.bfloat16 if config.bf16 else torch.float16 if config.fp16 else None
    with autocast(model.device, dtype):
        completions = complete(
            model,
            prompt_ids,
            num_rollouts,
            config=generation,
            batch_size=max(num_rollouts, ROWS_AT_A_TIME),
            seed=seed,
            report=lambda _: None,
        )
    return prompt_ids, [tokens for tokens, _ in completions]


def score(
    task: Task,
    rows: Sequence[Row],
    texts: Sequence[str],
    completion_ids: Sequence[list[int]],
    weights: Sequence[float] | None,
) -> Tensor:
    """Return the rewards of equally many texts of each row, (P, R), NaN where none could be given.

    The task's reward functions are called as TRL calls them, and added up with the weights, by
    default the task's.
    """
    num_repeats = len(texts) // len(rows)
    repeated = [row for row in rows for _ in range(num_repeats)]
    functions = task.reward_funcs.values()
    rewards = [call_reward(each, repeated, texts, completion_ids) for each in functions]
    numbers = [[float("nan") if x is None else float(x) for x in values] for values in rewards]
    rewards_PRF = torch.tensor(numbers).T.reshape(len(rows), num_repeats, len(rewards))
    weights = weights or [task.reward_weights[name] for name in task.reward_funcs]
    return combine(rewards_PRF, torch.tensor(weights))
