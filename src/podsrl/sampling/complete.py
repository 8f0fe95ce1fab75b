"""Completions of prompts by plain decoding: our sampler where it serves the model, else `generate`.

Shape letters: B rows generated together, T tokens.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from podsrl.sampling.sample import sample
from podsrl.sampling.settings import NEUTRAL, can_sample, settings_from

logger = logging.getLogger(__name__)

Completion = tuple[list[int], bool]
"""Its tokens, the end token included, and whether the length limit cut it off."""


def complete(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    num_completions: int,
    *,
    config: GenerationConfig,
    batch_size: int,
    seed: int,
    report: Callable[[int], None],
) -> list[Completion]:
    """Return `num_completions` completions of each prompt, prompt by prompt, in their order.

    config: from `plain_config`. Prompts of similar length are taken together, longest first, at
    most `batch_size` rows at a time; `report(count)` follows each batch, or each prompt where
    num_completions is more than batch_size. Where `can_sample` gives a reason against our
    sampler, `model.generate` does the work, and one warning says so.

    Draws follow `seed`, and with our sampler they do not depend on `batch_size` or the device.
    The global random state and the model's mode are left as they were.

    Example: 2 prompts and num_completions=3 give 6 completions, the first 3 for prompt 0.
    """
    reason = can_sample(model, config)
    if reason is None:
        return _sample(
            model,
            prompt_ids,
            num_completions,
            config=config,
            batch_size=batch_size,
            seed=seed,
            report=report,
        )
    logger.warning("answering through generate, which is slower: %s", reason)
    repeated = [ids for ids in prompt_ids for _ in range(num_completions)]
    return _generate(
        model, repeated, config=config, batch_size=batch_size, seed=seed, report=report
    )


def plain_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float | None,
) -> GenerationConfig:
    """Return plain decoding at this temperature; None: greedy.

    Of the model's own generation config the end tokens are used, next to the tokenizer's;
    what else it has (top_k, penalties) is switched off.
    """
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    ends = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    # min_new_tokens=0 overrides a min_length already, and generate warns where both are set.
    off = {name: value for name, value in NEUTRAL.items() if name != "min_length"}
    if temperature:
        off |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    return GenerationConfig(
        **off,
        do_sample=temperature is not None,
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )


def _sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    num_completions: int,
    *,
    config: GenerationConfig,
    batch_size: int,
    seed: int,
    report: Callable[[int], None],
) -> list[Completion]:
    settings = settings_from(model, config)
    # The sampler draws prompt by prompt; on the CPU that gives the same numbers in any batches.
    generator = torch.Generator().manual_seed(seed)
    completions: list[list[Completion]] = [[] for _ in prompt_ids]
    for batch in batches(prompt_ids, max(1, batch_size // num_completions)):
        rollouts = sample(
            model,
            [prompt_ids[i] for i in batch],
            num_completions,
            settings=settings,
            generator=generator,
            max_rows=batch_size,
        ).completion_ids
        for place, tokens in enumerate(rollouts):
            truncated = tokens[-1] not in settings.eos_token_ids
            completions[batch[place // num_completions]].append((tokens, truncated))
        report(len(rollouts))
    return [completion for group in completions for completion in group]


def _generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    *,
    config: GenerationConfig,
    batch_size: int,
    seed: int,
    report: Callable[[int], None],
) -> list[Completion]:
    completions: list[Completion] = [([], False)] * len(prompt_ids)
    devices = [model.device] if model.device.type == "cuda" else []
    was_training = model.training
    model.eval()
    try:
        # `generate` draws from the global state only, which is the caller's.
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            for batch in batches(prompt_ids, batch_size):
                inputs = _pad([prompt_ids[i] for i in batch], config.pad_token_id, model.device)
                tokens_BT = model.generate(**inputs, generation_config=config)
                new_BT = tokens_BT[:, inputs["input_ids"].shape[1] :].tolist()
                for i, row in zip(batch, new_BT, strict=True):
                    completions[i] = _until_end(row, config.eos_token_id)
                report(len(batch))
    finally:
        model.train(was_training)
    return completions


def batches(prompt_ids: Sequence[list[int]], size: int) -> list[list[int]]:
    """Places of the prompts, longest first, `size` at a time."""
    # If memory is short, it shows in the first batch.
    order = sorted(range(len(prompt_ids)), key=lambda i: (-len(prompt_ids[i]), i))
    return [order[first : first + size] for first in range(0, len(order), size)]


def _pad(
    prompt_ids: Sequence[list[int]], pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    width = max(map(len, prompt_ids))
    padded = [[pad_token_id] * (width - len(ids)) + ids for ids in prompt_ids]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    return {
        "input_ids": torch.tensor(padded, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _until_end(tokens: list[int], ends: Sequence[int]) -> Completion:
    """The tokens up to the first end token, and whether there was none."""
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1], False
    return tokens, True
