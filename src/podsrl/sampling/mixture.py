"""Decoding by several models that take turns token by token: the one with the higher value.

Collab (arXiv 2503.21720): the next token is the one that, of all that the models propose, has the
highest Q - alpha KL: Q the value of the answer so far with it if its model went on, KL that of the
model's next token from a reference's. Here a model proposes one token, its likeliest or one that
it draws, and Q is read from its own hidden state behind that token.

Shape letters: J models, P prompts, B rows decoded together, T new tokens, H hidden size, V
vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.blocked_weights import blocked_weights
from podsrl.sampling.cache import computing_dtype
from podsrl.sampling.logits import next_tokens, uniform_numbers
from podsrl.sampling.memory import (
    SHARE_OF_FREE_MEMORY,
    bytes_per_row,
    free_bytes,
    plan_chunks,
    rows_within,
)
from podsrl.sampling.modes import autocast, evaluation, merged_adapters
from podsrl.sampling.monitor import length_until_end
from podsrl.sampling.rows import Prompts, Rows, next_logits, read, retire, start
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.tap import taking

AGREED = -1
"""Of a token that all models proposed, in the place of a model's number."""


@dataclass(frozen=True)
class Agent:
    """A model of the mixture, and what its states are worth."""

    model: PreTrainedModel
    layer: int
    """Whose states `value` reads, as `podsrl.sampling.tap` counts."""
    value: Callable[[Tensor], Tensor]
    """States (B, H) behind tokens -> chance of success (B,), as `podsrl.probe.head.Head.score`."""


@dataclass(frozen=True)
class Pull:
    """What keeps a mixture near a reference."""

    model: PreTrainedModel
    alpha: float
    """Chance of success that a nat of KL(model, reference) of the next token is worth."""


@dataclass(frozen=True)
class Mixed:
    """One answer of a mixture."""

    token_ids: list[int]
    """Up to and with the first end token."""
    chosen: list[int]
    """Whose each token is: a model's number from 0, or `AGREED`."""


def choose(proposed_JB: Tensor, values_JB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the proposed token of the highest value in each row, and which model's it is.

    Of equal values the first model's; a NaN is chosen only where the first model's is one.

    Example: proposals (5, 7) of two models with values (0.3, 0.4): token 7 of model 1.
    """
    model_B = torch.zeros_like(proposed_JB[0])
    best_B = values_JB[0]
    for number, value_B in enumerate(values_JB):
        is_better_B = value_B > best_B
        model_B = torch.where(is_better_B, number, model_B)
        best_B = torch.where(is_better_B, value_B, best_B)
    return proposed_JB.gather(0, model_B[None])[0], model_B


def divergence(logits_BV: Tensor, reference_BV: Tensor) -> Tensor:
    """KL of softmax(logits) from the reference's, in nats, float32 (B,).

    Example: logits (0, 0) and reference (0, log 3), that is halves against 1/4 and 3/4:
    log(2)/2 + log(2/3)/2 = .144.
    """
    own_BV, other_BV = logits_BV.float().log_softmax(-1), reference_BV.float().log_softmax(-1)
    return (own_BV.exp() * (own_BV - other_BV)).sum(-1)


def decode_mixture(
    agents: Sequence[Agent],
    prompt_ids: list[list[int]],
    settings: SamplingSettings,
    *,
    num_rollouts: int = 1,
    generator: torch.Generator | None = None,
    max_rows: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    pull: Pull | None = None,
) -> tuple[list[Mixed], list[int]]:
    """Return answers to each prompt, prompt by prompt, and how many tokens each model has read.

    A token on which all models agree is read once by each. Where they disagree in any row of those
    decoded together, each first reads what it proposed, for its value, and then what was chosen; so
    a model reads at most two tokens for each of an answer, its prompt apart.

    Where `settings` draw, all models draw a token with the same uniform number, so that they agree
    where their distributions do: agents of one model give the rollouts of `podsrl.sampling.sample`
    from the same generator, where that copies prompts (short ones), to the bit. A token so chosen
    has no probability that a loss could read.

    agents: at least one, of one tokenizer and on one device. settings, generator, max_rows,
    autocast_dtype: as of `sample`; of the settings all is followed, by each model. pull: its model
    reads each token once and its count comes last; None is a pull of alpha 0.

    Example: two agents of one model give its greedy answers, each token `AGREED`.
    """
    found: list[list[Mixed]] = [[] for _ in prompt_ids]
    models = [*(each.model for each in agents), *([pull.model] if pull else [])]
    num_read = [0] * len(models)
    with _ready(agents, models, settings, autocast_dtype) as states_of, torch.no_grad():
        most = max_rows or _rows_that_fit(models, prompt_ids, settings)
        for of_prompts, counts in plan_chunks(len(prompt_ids), num_rollouts, most):
            ids = [prompt_ids[i] for i in of_prompts]
            prompts = [read(model, ids, settings) for model in models]
            for count in counts:
                source_B = torch.arange(len(ids), device=models[0].device).repeat_interleave(count)
                uniform_BT = uniform_numbers(source_B, settings, generator)
                decoders = [
                    _Decoder(model, of_model, source_B, settings)
                    for model, of_model in zip(models, prompts, strict=True)
                ]
                rows = _decode(agents, states_of, decoders, uniform_BT, settings, pull)
                for i, place in enumerate(of_prompts):
                    found[place] += rows[i * count : (i + 1) * count]
                num_read = [a + each.num_read for a, each in zip(num_read, decoders, strict=True)]
    return [mixed for of_prompt in found for mixed in of_prompt], num_read


def _decode(
    agents: Sequence[Agent],
    states_of: Sequence[dict[int, Tensor]],
    decoders: Sequence["_Decoder"],
    uniform_BT: Tensor,
    settings: SamplingSettings,
    pull: Pull | None,
) -> list[Mixed]:
    """One answer for each row that the decoders have begun, all together."""
    tokens_BT = torch.full_like(uniform_BT, settings.pad_token_id, dtype=torch.long)
    chosen_BT = torch.full_like(tokens_BT, AGREED)
    eos_E = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=tokens_BT.device)
    proposing = decoders[: len(agents)]
    for step in range(settings.max_new_tokens):
        number_B = decoders[0].rows.number_B
        uniform_B = uniform_BT[number_B, step]
        proposed_JB = torch.stack([each.proposed(settings, uniform_B) for each in proposing])
        token_B, is_agreed_B = proposed_JB[0], (proposed_JB == proposed_JB[0]).all(dim=0)
        if not is_agreed_B.all():
            parts = zip(agents, states_of, proposing, proposed_JB, strict=True)
            values_JB = torch.stack(
                [each.value(agent, states, own_B) for agent, states, each, own_B in parts]
            )
            if pull is not None:
                far_JB = [divergence(x.logits_BV, decoders[-1].logits_BV) for x in proposing]
                values_JB = values_JB - pull.alpha * torch.stack(far_JB)
            token_B, model_B = choose(proposed_JB, values_JB)
            chosen_BT[number_B, step] = model_B.where(~is_agreed_B, AGREED)
        tokens_BT[number_B, step] = token_B
        ended_B = torch.isin(token_B, eos_E)
        if step + 1 == settings.max_new_tokens or ended_B.all():
            break
        for each in decoders:
            each.go_on(token_B, ended_B)
    ends = set(settings.eos_token_ids)
    lengths = [length_until_end(tokens, ends) for tokens in tokens_BT.tolist()]
    rows = zip(tokens_BT.tolist(), chosen_BT.tolist(), lengths, strict=True)
    return [Mixed(tokens[:length], chosen[:length]) for tokens, chosen, length in rows]


class _Decoder:
    """One model's side of a batch: its cache, and its logits of what comes next."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Prompts,
        source_B: Tensor,
        settings: SamplingSettings,
    ) -> None:
        self.model = model
        self.rows: Rows = start(prompts, source_B, settings, share=False)
        self.logits_BV = prompts.logits_PV[source_B]
        self.num_read = 0

    def proposed(self, settings: SamplingSettings, uniform_B: Tensor) -> Tensor:
        """The next token of each row, the likeliest or drawn at the uniform numbers."""
        context_BL = self.rows.context_BL
        return next_tokens(self.logits_BV, settings, uniform_B=uniform_B, context_BL=context_BL)[0]

    def value(self, agent: Agent, states: dict[int, Tensor], token_B: Tensor) -> Tensor:
        """What the rows are worth with these tokens, which are read and taken back."""
        self._read(token_B)
        with torch.autocast(token_B.device.type, enabled=False):  # values may differ by little
            value_B = agent.value(states[agent.layer])
        for layer in self.rows.cache.layers:
            layer.length -= 1
        self.rows.position_B = self.rows.position_B - 1
        return value_B

    def go_on(self, token_B: Tensor, ended_B: Tensor) -> None:
        """Read what was chosen, in the rows that have not ended with it."""
        self.rows.ended_B = ended_B
        self.logits_BV = self._read(retire(self.rows, token_B.clone()))

    def _read(self, token_B: Tensor) -> Tensor:
        self.num_read += len(token_B)
        return next_logits(self.model, self.rows, token_B)


def _rows_that_fit(
    models: Sequence[PreTrainedModel], prompt_ids: list[list[int]], settings: SamplingSettings
) -> int:
    """Rows that may be decoded together, each of which is in the memory of every model."""
    longest, device = max(map(len, prompt_ids)), models[0].device
    row_bytes = [
        bytes_per_row(
            model.config, longest, settings=settings, dtype=computing_dtype(device, model.dtype)
        )
        for model in models
    ]
    return rows_within(int(SHARE_OF_FREE_MEMORY * free_bytes(device)), sum(row_bytes))


@contextmanager
def _ready(
    agents: Sequence[Agent],
    models: Sequence[PreTrainedModel],
    settings: SamplingSettings,
    autocast_dtype: torch.dtype | None,
) -> Iterator[list[dict[int, Tensor]]]:
    """Models in evaluation mode, and where the states of the agents' last passes are found."""
    with ExitStack() as stack:
        stack.enter_context(autocast(models[0].device, autocast_dtype))
        for model in models:
            stack.enter_context(evaluation(model))
            steps = settings.max_new_tokens
            stack.enter_context(merged_adapters(model, autocast_dtype, num_steps=steps))
            stack.enter_context(blocked_weights(model, num_steps=steps))
        yield [
            stack.enter_context(taking(each.model, [each.layer], lambda states: states[:, -1]))
            for each in agents
        ]
