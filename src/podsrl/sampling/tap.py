"""Hidden states of chosen layers: taken while a model samples, or by one forward pass.

Layer l, from 1, is what stands behind decoder layer l in the residual stream, before the model's
last norm. What samples reads every token but a rollout's last one, so a state "at the last token"
that costs no pass of its own is the one that drew the last token: at the token before it, or at the
prompt's last where the rollout is one token long. Behind an end token nothing is lost by that.

Shape letters: P prompts, B rows (rollouts), D layers, H hidden size, K places in texts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from podsrl.sampling.modes import autocast, evaluation

Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class States:
    """Hidden states that were taken while P prompts were read and B rollouts sampled, float32."""

    prompt_PDH: Tensor
    """At each prompt's last token."""
    last_BDH: Tensor
    """At the token from which each rollout's last token was drawn."""


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a transformers causal LM, or of a PEFT model around one.

    Raises `ValueError` where they go by another name than `layers`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(base.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(base).__name__} has no list of decoder layers named layers")
    return layers


def check_layers(model: Any, layers: Sequence[int]) -> None:
    """Raise `ValueError` unless these are layers of the model, at least one."""
    num_layers = len(decoder_layers(model))
    if not layers or not all(1 <= layer <= num_layers for layer in layers):
        raise ValueError(
            f"layers are {list(layers)}, but must be one or more from 1 to {num_layers}, the "
            "number of the model's decoder layers"
        )


@contextmanager
def taking(model: Any, layers: Sequence[int], take: Take) -> Iterator[dict[int, Tensor]]:
    """Yield a dictionary that holds, after each forward pass, what `take` makes of each layer.

    take: of the states (B, L, H) behind a layer, L positions; runs within the forward pass.

    Raises `ValueError` as `check_layers` does.

    Example: with `take=lambda states: states[:, -1]` it holds (B, H) by layer.
    """
    check_layers(model, layers)
    found: dict[int, Tensor] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found[layer] = take(output[0] if isinstance(output, tuple) else output)

        return keep

    modules = decoder_layers(model)
    handles = [modules[layer - 1].register_forward_hook(hook(layer)) for layer in set(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class Tap:
    """Keeps the states from which rows that are decoded together drew their last tokens."""

    def __init__(self, layers: Sequence[int], found: dict[int, Tensor]) -> None:
        self.layers, self._found = layers, found
        self.prompt_PDH = self.last_BDH = self._now_BDH = torch.empty(0)

    def read(self) -> None:
        """Prompts have been read: their last positions are what has just been found."""
        self.prompt_PDH = self._stacked()

    def begin(self, source_B: Tensor, num_rows: int) -> None:
        """Rows begin that continue the prompts source_B; results have `num_rows` rows."""
        self._now_BDH = self.prompt_PDH[source_B]
        self.last_BDH = self._now_BDH.new_zeros(num_rows, *self._now_BDH.shape[1:])

    def drawn(self, number_B: Tensor, ended_B: Tensor) -> None:
        """The next tokens are drawn; rows that had ended before draw nothing that is theirs."""
        is_over_B11 = ended_B[:, None, None]
        self.last_BDH[number_B] = torch.where(is_over_B11, self.last_BDH[number_B], self._now_BDH)

    def stepped(self) -> None:
        """The model has read a token of each living row."""
        self._now_BDH = self._stacked()

    def admitted(self, source_K: Tensor, *, num_living: int) -> None:
        """Rows begin behind the living ones."""
        # Where none is left alive, the model has not read the tokens drawn last.
        self._now_BDH = torch.cat([self._now_BDH[:num_living], self.prompt_PDH[source_K]])

    def _stacked(self) -> Tensor:
        return torch.stack([self._found[layer] for layer in self.layers], 1)


@contextmanager
def tapped(model: Any, layers: Sequence[int]) -> Iterator[Tap | None]:
    """A `Tap` on these layers while a model samples; None, and the model untouched, for none."""
    if not layers:
        yield None
        return
    # A copy: of a prompt that is read, one position of all is wanted.
    with taking(model, layers, lambda x: x[:, -1].to(torch.float32, copy=True)) as found:
        yield Tap(layers, found)


def states_at(
    model: Any,
    token_ids: Sequence[list[int]],
    places: Sequence[Sequence[int]] | None = None,
    *,
    layers: Sequence[int],
    batch_size: int = 32,
    autocast_dtype: torch.dtype | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Return the hidden states at places of texts, by one forward pass over each text.

    model: a transformers causal LM, in either mode, which is put back; its head is not computed.
    token_ids: the texts, prompt and completion in one, without padding. places: token positions in
    each, from 0, negative ones from the end; None: the last token of each. layers: see `taking`.
    batch_size: texts at a time, those of similar length together. report: hears how many of them
    are done.

    Returns float32 (K, D, H) on the model's device: all places of the first text, then those of
    the second. Equal to what `sample` gives for `tap_layers`, up to rounding: at -1 of a prompt,
    and at -1 of prompt and rollout without its last token.

    Raises `ValueError` for an empty text and as `check_layers` does; `IndexError` for a place that
    is not in its text.
    """
    if not all(token_ids):
        raise ValueError("a text without tokens has no states: leave it out")
    places = [[-1] for _ in token_ids] if places is None else places
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Longest first: if memory is short, it shows at once.
    order = sorted(range(len(token_ids)), key=lambda i: -len(token_ids[i]))
    found: list[Tensor] = [torch.empty(0)] * len(token_ids)
    with (
        evaluation(model),
        torch.no_grad(),
        autocast(model.device, autocast_dtype),
        taking(model, layers, lambda states: states) as now,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(token_ids[batch[0]])
            # Padded on the right, where nothing before it can see it: no mask is needed.
            ids = [token_ids[i] + [0] * (longest - len(token_ids[i])) for i in batch]
            base.get_decoder()(input_ids=torch.tensor(ids, device=model.device), use_cache=False)
            for row, i in enumerate(batch):
                at = [range(len(token_ids[i]))[place] for place in places[i]]
                found[i] = torch.stack([now[layer][row, at].float() for layer in layers], 1)
            report(len(batch))
    return torch.cat(found)
