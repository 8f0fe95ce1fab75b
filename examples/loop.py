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

`Selector` (select, advantage), problems and models come from the package; all else stands here, and
PODSTrainer is tested against it. The problems are sums and differences such as 15 - 43; the default
model is the packaged one of 135 million parameters, which two CPU cores can train:

    python examples/loop.py --steps 20

Departures from PODSTrainer: one process, one reward, one pass per update, a constant learning rate,
sampling without top-k or top-p. As in TRL, padding on the left shifts the positions in a row, which
models with rotary (relative) positions do not notice.

Shape letters: P prompts, N rollouts sampled and M kept per prompt, B rows, L prompt tokens,
T completion tokens, V words of the vocabulary.
"""

import copy
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import HfArgumentParser
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from podsrl.core.selection import Selection, Selector
from podsrl.models import load_model, load_tokenizer
from podsrl.rewards.answers import last_number
from podsrl.tasks.arithmetic import arithmetic

Problems = list[dict[str, Any]]  # "prompt": chat messages; "answer": a number as text
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
    clip: float = 0.2
    beta: float = 0.0  # above 0 a second copy of the model is kept as reference
    max_grad_norm: float = 1.0
    num_test: int = 256
    seed: int = 0


@torch.no_grad()
def sample(
    model: Model, tokenizer: Tokenizer, problems: Problems, options: Options
) -> tuple[Rows, Rows]:
    """Prompt ids and completion ids of P * N rollouts, the N of a problem in consecutive rows.

    A completion ends with the end token, or without it at `max_new_tokens`. Temperature 0 always
    takes the likeliest token.
    """
    chats = [problem["prompt"] for problem in problems]
    prompt_ids = tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
    ids, mask = pad(prompt_ids, "left", model.device)
    end, cache, columns = tokenizer.eos_token_id, None, []
    num_rows = len(chats) * options.num_rollouts
    ended_B = torch.zeros(num_rows, dtype=torch.bool, device=model.device)
    while len(columns) < options.max_new_tokens and not ended_B.all():
        reading = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        output = model(ids, attention_mask=mask, **reading)
        cache, logits_BV = output.past_key_values, output.logits[:, -1].float()
        if not columns:
            # The prompt is read once per problem; each rollout gets a copy of what was computed.
            cache.batch_repeat_interleave(options.num_rollouts)
            logits_BV = logits_BV.repeat_interleave(options.num_rollouts, dim=0)
            mask = mask.repeat_interleave(options.num_rollouts, dim=0)
        if options.temperature == 0:
            ids = logits_BV.argmax(dim=-1, keepdim=True)
        else:
            ids = torch.multinomial((logits_BV / options.temperature).softmax(dim=-1), 1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        ended_B |= ids.squeeze(1) == end
        columns.append(ids)
    # A row goes on until all have ended: cut it after its first end token.
    rows = torch.cat(columns, dim=1).tolist()
    completion_ids = [row[: row.index(end) + 1] if end in row else row for row in rows]
    return [row for row in prompt_ids for _ in range(options.num_rollouts)], completion_ids


def pad(rows: Rows, side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows as one tensor, and the mask that is 1 on their tokens and 0 on padding."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids.to(device), mask.to(device)


def reward(text: str, answer: str) -> float:
    """1 if the last number in the text is the answer, else 0."""
    number = last_number(text)
    return float(number is not None and float(number) == float(answer))


@dataclass(frozen=True)
class Batch:
    """The kept rollouts, one row each: all that the update sees."""

    prompt_BL: Tensor
    prompt_mask_BL: Tensor
    completion_BT: Tensor
    mask_BT: Tensor
    advantages_B: Tensor


def keep(prompt_ids: Rows, completion_ids: Rows, chosen: Selection) -> Batch:
    """The rows and advantages of the kept rollouts; the others are never looked at again."""
    rows, device = chosen.kept_rows_B.tolist(), chosen.rewards_PN.device
    prompts = pad([prompt_ids[row] for row in rows], "left", device)
    completions = pad([completion_ids[row] for row in rows], "right", device)
    return Batch(*prompts, *completions, chosen.advantages_B)


def log_probs(model: Model, batch: Batch, temperature: float) -> Tensor:
    """Log-probability of each completion token after all before it, (B, T)."""
    ids = torch.cat([batch.prompt_BL, batch.completion_BT], dim=1)
    mask = torch.cat([batch.prompt_mask_BL, batch.mask_BT], dim=1)
    num_logits = batch.completion_BT.shape[1] + 1
    # The logits at one position are for the token at the next.
    output = model(ids, attention_mask=mask, use_cache=False, logits_to_keep=num_logits)
    log_probs_BTV = (output.logits[:, :-1].float() / temperature).log_softmax(dim=-1)
    return log_probs_BTV.gather(-1, batch.completion_BT.unsqueeze(-1)).squeeze(-1)


def loss(
    new_BT: Tensor, old_BT: Tensor, reference_BT: Tensor | None, batch: Batch, options: Options
) -> Tensor:
    """The formula above, summed over tokens, over a denominator that says what counts alike.

    grpo        every rollout, whatever its length: mean over its tokens, then over rollouts
    dapo, bnpo  every token of the batch; they differ where a batch takes several passes
    dr_grpo     every token of every step: the denominator is B * max_new_tokens
    """
    advantages_B1 = batch.advantages_B.unsqueeze(1)
    ratio_BT = (new_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - options.clip, 1 + options.clip)
    loss_BT = -torch.min(ratio_BT * advantages_B1, clipped_BT * advantages_B1)
    if reference_BT is not None:
        difference_BT = reference_BT - new_BT
        loss_BT = loss_BT + options.beta * ratio_BT * (difference_BT.exp() - difference_BT - 1)
    sum_B, length_B = (loss_BT * batch.mask_BT).sum(dim=1), batch.mask_BT.sum(dim=1)
    if options.loss_type == "grpo":
        return (sum_B / length_B).mean()
    if options.loss_type == "dr_grpo":
        return sum_B.mean() / options.max_new_tokens
    return sum_B.sum() / length_B.sum()


def update(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    options: Options,
    reference: Model | None = None,
) -> float:
    """Take `num_iterations` optimizer steps on the batch; return the loss of the last one."""
    with torch.no_grad():
        reference_BT = log_probs(reference, batch, options.temperature) if reference else None
    old_BT = None
    for _ in range(options.num_iterations):
        new_BT = log_probs(model, batch, options.temperature)
        # The old policy is the model as it comes in: every ratio of the first step is 1.
        old_BT = new_BT.detach() if old_BT is None else old_BT
        value = loss(new_BT, old_BT, reference_BT, batch, options)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return value.item()


def evaluate(model: Model, tokenizer: Tokenizer, problems: Problems, options: Options) -> float:
    """Share of the problems whose greedy answer is right."""
    greedy = replace(options, num_rollouts=1, temperature=0.0)
    texts: list[str] = []
    for start in range(0, len(problems), 64):
        _, completion_ids = sample(model, tokenizer, problems[start : start + 64], greedy)
        texts += tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    pairs = zip(texts, problems, strict=True)
    return sum(reward(text, problem["answer"]) for text, problem in pairs) / len(problems)


def main(options: Options) -> None:
    torch.manual_seed(options.seed)
    tokenizer, model = load_tokenizer(options.model), load_model(options.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reference = copy.deepcopy(model) if options.beta else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    num_train = options.steps * options.num_prompts
    task = arithmetic(seed=options.seed, num_train=num_train, num_test=options.num_test)
    train, test = task.rows("train"), task.rows("test")

    selector = Selector(num_kept=options.num_kept, rule=options.rule)
    accuracy = evaluate(model, tokenizer, test, options)
    print(f"before: {accuracy:.1%} of {len(test)} test problems right", flush=True)
    for step in range(options.steps):
        began = time.perf_counter()
        problems = train[step * options.num_prompts :][: options.num_prompts]
        prompt_ids, completion_ids = sample(model, tokenizer, problems, options)
        sampled = time.perf_counter()

        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        answers = [problem["answer"] for problem in problems for _ in range(options.num_rollouts)]
        rewards = [reward(text, answer) for text, answer in zip(texts, answers, strict=True)]
        rewards_PN = torch.tensor(rewards, device=model.device).view(len(problems), -1)

        chosen = selector(rewards_PN.unsqueeze(-1), seed=step)  # one reward function
        batch = keep(prompt_ids, completion_ids, chosen)
        value = update(model, optimizer, batch, options, reference)

        variance = chosen.numbers()["kept_reward_variance"]
        seconds = f"{sampled - began:.1f} s sampling, {time.perf_counter() - sampled:.1f} s update"
        figures = f"reward {rewards_PN.mean():.3f}  kept variance {variance:.3f}  loss {value:+.4f}"
        print(f"step {step + 1:3d}  {figures}  {seconds}", flush=True)

    accuracy = evaluate(model, tokenizer, test, options)
    print(f"after: {accuracy:.1%} of {len(test)} test problems right")


if __name__ == "__main__":
    main(*HfArgumentParser(Options).parse_args_into_dataclasses())
