"""PODS from top to bottom: sample, reward, select, advantage, update, evaluate.

Policy Optimization with Down-Sampling (Xu, Savani, Fang, Kolter; arXiv 2504.13818) trains a
language model on its own answers. For every prompt x:

    sample     n rollouts o_1 .. o_n from the model: cheap, as they are decoded side by side
    reward     each by a rule:  r_i = 1 if the answer is right, else 0
    select     the m whose rewards differ most:  S = argmax over |S| = m of Var {r_i : i in S}
    advantage  of the kept:  A_i = (r_i - mean_S r) / (std_S r + 1e-4)
    update     on the kept alone, for this is what costs memory: minimise, over i in S, tokens t,

        - min(w_it A_i, clip(w_it, 1 - 0.2, 1 + 0.2) A_i) + beta w_it (exp(d_it) - d_it - 1)

        w_it = p(o_it | x, o_i<t) / p_old(o_it | x, o_i<t)            importance ratio
        d_it = log p_ref(o_it | x, o_i<t) - log p(o_it | x, o_i<t)    KL to a reference model

    evaluate   greedy answers to problems never trained on

`select` and `advantages` come from the package; all else stands here. PODSTrainer is tested against
this file. The task is to add two numbers up to 99; the default model is the packaged one of 135
million parameters, which two CPU cores can train:

    python examples/loop.py --steps 20

Departures from PODSTrainer: one process, one reward function, a constant learning rate, sampling
without top-k or top-p. As in TRL, padding on the left shifts the positions in a row, which models
with rotary (relative) positions do not notice.

Shape letters: P prompts, N rollouts sampled and M kept per prompt, B rows, L prompt tokens,
T completion tokens, V words of the vocabulary.
"""

import copy
import random
import re
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from podsrl import select
from podsrl.core.advantage import advantages
from podsrl.models import load_model, load_tokenizer

Problem = tuple[str, int]  # question and answer
Rows = list[list[int]]  # token ids, of one prompt or completion in each row


@dataclass(frozen=True)
class Options:
    model: str = "smollm2-135m"  # the packaged model, a local folder or a hub id
    steps: int = 20
    num_prompts: int = 4
    num_rollouts: int = 16  # n: sampled per prompt
    num_kept: int = 4  # m: kept per prompt
    rule: str = "max_variance"  # a key of podsrl.RULES
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    learning_rate: float = 2e-5
    temperature: float = 1.0
    max_new_tokens: int = 24
    num_iterations: int = 1  # optimizer steps on the same rollouts
    rows_per_pass: int = 16  # rows that go through the model at a time in an update
    clip: float = 0.2
    beta: float = 0.0  # above 0 a second copy of the model is kept as reference
    max_grad_norm: float = 1.0
    num_test: int = 256
    seed: int = 0


# The task: sums of two numbers from 1 to 99 -------------------------------------------------------


def make_problems(num_test: int) -> tuple[list[Problem], list[Problem]]:
    """All problems, shuffled, in two parts: to train on, and `num_test` to evaluate on."""
    pairs = [(a, b) for a in range(1, 100) for b in range(1, 100)]
    problems = [(f"State the final answer only: {a} + {b} =", a + b) for a, b in pairs]
    random.Random(0).shuffle(problems)
    return problems[num_test:], problems[:num_test]


# Sample -------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    num_rollouts: int,
    *,
    max_new_tokens: int,
    temperature: float,
) -> tuple[Rows, Rows]:
    """Prompt ids and completion ids of P * N rollouts, the N of a question in consecutive rows.

    A completion ends with the end token, or without it at `max_new_tokens`. Temperature 0 always
    takes the likeliest token.
    """
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompt_ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    input_ids, mask = pad(prompt_ids, "left", model.device)
    end, cache = tokenizer.eos_token_id, None
    columns: list[Tensor] = []
    finished_B = torch.zeros(len(chats) * num_rollouts, dtype=torch.bool, device=model.device)
    while len(columns) < max_new_tokens and not finished_B.all():
        inputs = {"input_ids": input_ids, "attention_mask": mask, "past_key_values": cache}
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        cache, logits_BV = output.past_key_values, output.logits[:, -1].float()
        if not columns:
            # The prompt is read once per group; each rollout gets a copy of what was computed.
            cache.batch_repeat_interleave(num_rollouts)
            logits_BV = logits_BV.repeat_interleave(num_rollouts, dim=0)
            mask = mask.repeat_interleave(num_rollouts, dim=0)
        if temperature == 0:
            input_ids = logits_BV.argmax(dim=-1, keepdim=True)
        else:
            input_ids = torch.multinomial((logits_BV / temperature).softmax(dim=-1), num_samples=1)
        mask = torch.cat([mask, torch.ones_like(input_ids)], dim=1)
        finished_B |= input_ids.squeeze(1) == end
        columns.append(input_ids)
    completion_ids = [until(end, row) for row in torch.cat(columns, dim=1).tolist()]
    return [ids for ids in prompt_ids for _ in range(num_rollouts)], completion_ids


def until(end: int, row: list[int]) -> list[int]:
    """The row up to and with the first `end`; all of it if there is none."""
    return row[: row.index(end) + 1] if end in row else row


def pad(rows: Rows, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, and the mask that is 1 on their tokens and 0 on padding."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


# Reward -------------------------------------------------------------------------------------------


def reward(text: str, answer: int) -> float:
    """1 if the last number in the text is the answer, else 0."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    return float(bool(numbers) and float(numbers[-1]) == answer)


# Select and advantage -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """The kept rollouts, one row each: all that the update sees."""

    prompt_ids: Rows
    completion_ids: Rows
    advantages_B: Tensor


def keep(prompt_ids: Rows, completion_ids: Rows, rewards_PN: Tensor, kept_PM: Tensor) -> Batch:
    """The rows and advantages of the kept rollouts; the others are never looked at again."""
    num_prompts, num_rollouts = rewards_PN.shape
    first_row_P1 = torch.arange(num_prompts, device=kept_PM.device).unsqueeze(1) * num_rollouts
    rows = (first_row_P1 + kept_PM).flatten().tolist()
    advantages_B = advantages(rewards_PN, kept_PM).flatten()
    return Batch([prompt_ids[i] for i in rows], [completion_ids[i] for i in rows], advantages_B)


# Update -------------------------------------------------------------------------------------------


def log_probs(
    model: PreTrainedModel, prompt_ids: Rows, completion_ids: Rows, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token after all before it, and the mask, both (B, T)."""
    prompt_BL, prompt_mask_BL = pad(prompt_ids, "left", model.device)
    completion_BT, mask_BT = pad(completion_ids, "right", model.device)
    logits = model(
        input_ids=torch.cat([prompt_BL, completion_BT], dim=1),
        attention_mask=torch.cat([prompt_mask_BL, mask_BT], dim=1),
        use_cache=False,
        logits_to_keep=completion_BT.shape[1] + 1,
    ).logits
    # The logits at one position are for the token at the next.
    log_probs_BTV = (logits[:, :-1].float() / temperature).log_softmax(dim=-1)
    return log_probs_BTV.gather(-1, completion_BT.unsqueeze(-1)).squeeze(-1), mask_BT


def loss(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    options: Options,
    *,
    num_tokens: float,
    reference_log_probs_BT: Tensor | None = None,
) -> Tensor:
    """The formula above, summed over tokens, over a denominator that says what counts alike.

    grpo     every rollout, whatever its length: mean over its tokens, then over rollouts
    bnpo     every token in this call
    dapo     every token in the step, of which `num_tokens` is the average per call
    dr_grpo  every token of every step: the denominator is B * max_new_tokens
    """
    advantages_B1 = advantages_B.unsqueeze(1)
    ratio_BT = (log_probs_BT - old_log_probs_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - options.clip, 1 + options.clip)
    loss_BT = -torch.min(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    if reference_log_probs_BT is not None:
        difference_BT = reference_log_probs_BT - log_probs_BT
        kl_BT = difference_BT.exp() - difference_BT - 1
        loss_BT = loss_BT + options.beta * ratio_BT * kl_BT
    sum_B, length_B = (loss_BT * mask_BT).sum(dim=1), mask_BT.sum(dim=1)
    if options.loss_type == "grpo":
        return (sum_B / length_B).mean()
    if options.loss_type == "bnpo":
        return sum_B.sum() / length_B.sum()
    if options.loss_type == "dapo":
        return sum_B.sum() / num_tokens
    return sum_B.sum() / (len(sum_B) * options.max_new_tokens)


def update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    options: Options,
    reference: PreTrainedModel | None = None,
) -> float:
    """Take `num_iterations` optimizer steps on the batch; return the loss of the last one.

    The gradients of `rows_per_pass` rows at a time add up before a step. The old policy is the
    model as it comes in, so every importance ratio of the first step is 1.
    """
    num_rows = len(batch.prompt_ids)
    starts = range(0, num_rows, min(options.rows_per_pass, num_rows))
    if num_rows % starts.step:
        raise ValueError(
            f"{num_rows} kept rows do not split into passes of {starts.step} rows: "
            "choose rows_per_pass so that it divides num_prompts * num_kept."
        )
    num_tokens = sum(len(ids) for ids in batch.completion_ids) / len(starts)
    old: dict[int, Tensor] = {}
    for _ in range(options.num_iterations):
        total = 0.0
        for start in starts:
            rows = slice(start, start + starts.step)
            tokens = batch.prompt_ids[rows], batch.completion_ids[rows], options.temperature
            reference_BT = None
            if reference is not None:
                with torch.no_grad():
                    reference_BT, _ = log_probs(reference, *tokens)
            log_probs_BT, mask_BT = log_probs(model, *tokens)
            pass_loss = loss(
                log_probs_BT,
                old.setdefault(start, log_probs_BT.detach()),
                batch.advantages_B[rows],
                mask_BT,
                options,
                num_tokens=num_tokens,
                reference_log_probs_BT=reference_BT,
            ) / len(starts)
            pass_loss.backward()
            total += pass_loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return total


# Evaluate -----------------------------------------------------------------------------------------


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    max_new_tokens: int,
) -> float:
    """Share of the problems whose greedy answer is right."""
    num_right = 0.0
    for start in range(0, len(problems), 64):
        chunk = problems[start : start + 64]
        questions = [question for question, _ in chunk]
        _, completion_ids = sample(
            model, tokenizer, questions, 1, max_new_tokens=max_new_tokens, temperature=0
        )
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        num_right += sum(reward(t, answer) for t, (_, answer) in zip(texts, chunk, strict=True))
    return num_right / len(problems)


# All together -------------------------------------------------------------------------------------


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    draw = random.Random(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer, model = load_tokenizer(options.model), load_model(options.model).to(device)
    reference = copy.deepcopy(model) if options.beta else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    train_problems, test_problems = make_problems(options.num_test)

    accuracy = evaluate(model, tokenizer, test_problems, options.max_new_tokens)
    print(f"before: {accuracy:.1%} of {options.num_test} test problems right", flush=True)

    for step in range(options.steps):
        began = time.perf_counter()
        problems = draw.sample(train_problems, options.num_prompts)
        prompt_ids, completion_ids = sample(
            model,
            tokenizer,
            [question for question, _ in problems],
            options.num_rollouts,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
        )
        sampled = time.perf_counter()

        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        answers = [answer for _, answer in problems for _ in range(options.num_rollouts)]
        rewards = [reward(t, answer) for t, answer in zip(texts, answers, strict=True)]
        rewards_PN = torch.tensor(rewards, device=model.device).view(options.num_prompts, -1)

        kept_PM = select(rewards_PN, keep=options.num_kept, rule=options.rule, seed=step)
        batch = keep(prompt_ids, completion_ids, rewards_PN, kept_PM)
        value = update(model, optimizer, batch, options, reference)

        variance = rewards_PN.gather(1, kept_PM).var(dim=1, correction=0).mean()
        seconds = f"{sampled - began:.1f} s sampling, {time.perf_counter() - sampled:.1f} s update"
        print(
            f"step {step + 1:3d}  reward {rewards_PN.mean():.3f}  kept variance {variance:.3f}  "
            f"loss {value:+.4f}  {seconds}",
            flush=True,
        )

    accuracy = evaluate(model, tokenizer, test_problems, options.max_new_tokens)
    print(f"after: {accuracy:.1%} of {options.num_test} test problems right")


if __name__ == "__main__":
    main(*HfArgumentParser(Options).parse_args_into_dataclasses())
