"""Greedy decoding by several models that take turns token by token: the one with the higher value.

Collab (arXiv 2503.21720): the next token is the one that, of all that the models propose, has the
highest Q, the value of the answer so far with it if its model went on. Here a model proposes its
likeliest token, and Q is read from its own hidden state behind that token.

Shape letters: J models, B rows decoded together, T new tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from podsrl.sampling.modes import evaluation, merged_adapters
from podsrl.sampling.monitor import length_until_end
from podsrl.sampling.rows import Rows, next_logits, read, retire, start
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


def decode_mixture(
    agents: Sequence[Agent], prompt_ids: list[list[int]], settings: SamplingSettings
) -> tuple[list[Mixed], list[int]]:
    """Return one answer to each prompt, and how many tokens each model has read for them.

    All prompts are decoded together. A token on which all models agree is read once by each. Where
    they disagree in any row, each first reads what it proposed, for its value, and then what was
    chosen; so a model reads at most two tokens for each of an answer, its prompt apart.

    agents: at least one, of one tokenizer and on one device. settings: its way of drawing is not
    looked at.

    Example: two agents of one model give its greedy answers, each token `AGREED`.
    """
    tokens_BT = torch.full(
        (len(prompt_ids), settings.max_new_tokens),
        settings.pad_token_id,
        device=agents[0].model.device,
    )
    chosen_BT = torch.full_like(tokens_BT, AGREED)
    eos_E = torch.tensor(settings.eos_token_ids, device=tokens_BT.device)
    with _ready(agents, settings) as states_of, torch.no_grad():
        source_B = torch.arange(len(prompt_ids), device=tokens_BT.device)
        decoders = [
            _Decoder(agent, states, prompt_ids, source_B, settings)
            for agent, states in zip(agents, states_of, strict=True)
        ]
        for step in range(settings.max_new_tokens):
            proposed_JB = torch.stack([each.proposed() for each in decoders])
            token_B, is_agreed_B = proposed_JB[0], (proposed_JB == proposed_JB[0]).all(dim=0)
            number_B = decoders[0].rows.number_B
            if not is_agreed_B.all():
                pairs = zip(decoders, proposed_JB, strict=True)
                token_B, model_B = choose(
                    proposed_JB, torch.stack([each.value(own_B) for each, own_B in pairs])
                )
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
    mixed = [Mixed(tokens[:length], chosen[:length]) for tokens, chosen, length in rows]
    return mixed, [each.num_read for each in decoders]


class _Decoder:
    """One model's side of a batch: its cache, and its logits of what comes next."""

    def __init__(
        self,
        agent: Agent,
        states: dict[int, Tensor],
        prompt_ids: list[list[int]],
        source_B: Tensor,
        settings: SamplingSettings,
    ) -> None:
        self.agent, self.states = agent, states
        prompts = read(agent.model, prompt_ids, settings)
        self.rows: Rows = start(prompts, source_B, settings, share=False)
        self.logits_BV = prompts.logits_PV[source_B]
        self.num_read = 0

    def proposed(self) -> Tensor:
        """The likeliest next token of each row."""
        return self.logits_BV.float().argmax(-1)

    def value(self, token_B: Tensor) -> Tensor:
        """What the rows are worth with these tokens, which are read and taken back."""
        self._read(token_B)
        value_B = self.agent.value(self.states[self.agent.layer])
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
        return next_logits(self.agent.model, self.rows, token_B)


@contextmanager
def _ready(
    agents: Sequence[Agent], settings: SamplingSettings
) -> Iterator[list[dict[int, Tensor]]]:
    """Models in evaluation mode, and where the states of their last pass are found."""
    with ExitStack() as stack:
        found = []
        for agent in agents:
            stack.enter_context(evaluation(agent.model))
            stack.enter_context(merged_adapters(agent.model, num_steps=settings.max_new_tokens))
            last = taking(agent.model, [agent.layer], lambda states: states[:, -1])
            found.append(stack.enter_context(last))
        yield found
