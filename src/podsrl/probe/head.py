"""A linear head on the hidden states of a model: hidden state -> chance of success.

It reads one layer, or several whose heads a gate weighs. A head is a safetensors file of weights
and biases; its metadata say of which model and layers it is, where in a text it was fitted, and how
well it tells right from wrong on prompts that it was not fitted on. A head whose interval there
holds .5 is no better than chance and is refused everywhere. No head says what is right: accuracies
never come from one.

Shape letters: H hidden size, D layers.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = "podsrl-probe-2"
CHANCE = 0.5
PREFIX = "prefix"
"""Where a head must have been fitted that values answers as they are written."""
VALUES_PER_TENSOR = 64


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a head."""

    model: str
    """Name or folder of the model whose states it reads."""
    model_digest: str
    """`model_digest` of that model."""
    layers: list[int]
    """From 1: the states behind these decoder layers, before the model's last norm. One, unless
    the head is `gated`."""
    num_layers: int
    """Decoder layers of the model."""
    at: str
    """Where the states were taken that it was fitted on: at the `prompt`'s last token, at the
    `last` token of a completion, or at tokens all along it (`prefix`)."""
    kind: str
    """How it was fitted, a key of `podsrl.probe.measure.KINDS`."""
    label: str
    """What it predicts, such as "correctness >= 1"."""
    auroc: float
    """Chance that it ranks a right rollout above a wrong one, on held-out prompts; above one of
    the same prompt where it was fitted on such pairs."""
    auroc_low: float
    """Lower end of the 95 % interval over held-out prompts."""
    auroc_high: float
    num_prompts_fitted: int
    num_prompts_held_out: int
    within_low: float | None
    """`auroc_low` over pairs of rollouts of one prompt; None for a head at the prompt."""

    @property
    def layer(self) -> int:
        """The layer of a head that reads one."""
        (layer,) = self.layers
        return layer

    @property
    def is_chance(self) -> bool:
        """Whether the interval reaches down to .5."""
        return not self.auroc_low > CHANCE

    @property
    def tells_within(self) -> bool:
        """Whether it is shown to tell right from wrong among the rollouts of one prompt."""
        return self.within_low is not None and not self.within_low <= CHANCE


@dataclass(frozen=True)
class Head:
    """p = sigmoid(weight . h + bias) of a hidden state h; of several layers' states, gated.

    The gate of Representation-based Reward Modeling (arXiv 2503.10093; second-hand, from its code):
    s_l = weight_l . h_l + bias_l of each layer, and sum_l sigmoid((gate s)_l) s_l in their place.
    """

    weight: Tensor
    """(H,), or (D, H) where there is a gate."""
    bias: float | Tensor
    """A number, or (D,)."""
    about: About
    gate_DD: Tensor | None = None

    def log_odds(self, states: Tensor) -> Tensor:
        """Return log p / (1 - p) of each state, float32 (...); arguments are those of `score`.

        The difference of two rollouts of one prompt is the log-odds that the first is the better,
        which is all that a head fitted on pairs is fitted for.

        Example: weight (1, -1), bias 0.5 and states (2, 2), (3, 1) give 0.5 and 2.5.
        """
        shape = self.weight.shape
        if states.shape[-len(shape) :] != shape:
            raise ValueError(
                f"states have {' x '.join(map(str, states.shape[-len(shape) :]))} numbers, but the "
                f"head reads {' x '.join(map(str, shape))}: it is of layers "
                f"{', '.join(map(str, self.about.layers))} of {self.about.model}"
            )
        here = self.to(states.device)
        if here.gate_DD is None:
            return states.float() @ here.weight + here.bias
        of_layers_D = (states.float() * here.weight).sum(-1) + here.bias
        return (torch.sigmoid(of_layers_D @ here.gate_DD.T) * of_layers_D).sum(-1)

    def score(self, states: Tensor) -> Tensor:
        """Return the predicted chance of success of each state, float32 (...) of (..., H).

        states: of layer `about.layer` (`podsrl.sampling.tap`), of any precision and on any device;
            the weight follows them (see `to`). With a gate (..., D, H), of `about.layers`.

        Raises `ValueError` for states of another size.

        Example: weight (1, -1), bias 0 and state (2, 2) give sigmoid(0) = 0.5.
        """
        return torch.sigmoid(self.log_odds(states))

    def of_layers(self, states: Tensor) -> Tensor:
        """What `score` takes, of states (..., D, H) of all of `about.layers`."""
        return states.squeeze(-2) if self.gate_DD is None else states

    def to(self, device: torch.device | str) -> "Head":
        """The head with its weight there, where many small calls are to come."""
        bias, gate_DD = self.bias, self.gate_DD
        if gate_DD is not None:
            assert isinstance(bias, Tensor)
            bias, gate_DD = bias.to(device), gate_DD.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias, gate_DD=gate_DD)

    def check(self, model: nn.Module) -> None:
        """Raise `ValueError` unless this is the model on whose states the head was fitted."""
        if (found := model_digest(model)) != self.about.model_digest:
            raise ValueError(
                f"the head reads states of {self.about.model} ({self.about.model_digest[:8]}), and "
                f"this model is another ({found[:8]}): fit one to it with podsrl probe"
            )


def save_head(path: Path | str, head: Head) -> None:
    """Write the head; `ValueError` for one that is no better than chance."""
    _refuse_chance(head.about, "not written")
    tensors = {"weight": head.weight, "bias": torch.as_tensor(head.bias)}
    if head.gate_DD is not None:
        tensors["gate"] = head.gate_DD
    tensors = {name: each.float().cpu().contiguous() for name, each in tensors.items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": FORMAT, "about": json.dumps(asdict(head.about))})


def load_head(path: Path | str) -> Head:
    """Read a head that `podsrl probe` wrote; its weight is on the CPU.

    Raises `ValueError` for a file that is none, and for a head no better than chance.

    Example: `load_head("runs/my-run/probe.safetensors").score(states)`.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no head {path}: podsrl probe RUN_FOLDER writes one")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no head: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no head: its metadata do not say {FORMAT!r}")
    told = json.loads(metadata["about"])
    about = About(**{each.name: told[each.name] for each in fields(About)})
    _refuse_chance(about, f"{path} is refused")
    bias = tensors["bias"]
    return Head(tensors["weight"], bias if bias.ndim else bias.item(), about, tensors.get("gate"))


def load_prefix_heads(paths: Sequence[str]) -> list[Head]:
    """The heads of a mixture, each better than chance, also among answers to one question.

    Raises `ValueError` for others, for one that was not fitted to answers as they are written, and
    for heads that predict different things.
    """
    heads = [load_head(path) for path in paths]
    for path, head in zip(paths, heads, strict=True):
        if head.about.at != PREFIX:
            raise ValueError(
                f"the head {path} was fitted at the {head.about.at} token, but a mixture values "
                f"answers as they are written: fit one to prefixes, podsrl probe --at {PREFIX}"
            )
        if not head.about.tells_within:
            raise ValueError(
                f"the head {path} is not shown to tell right from wrong among answers to one "
                "question, as a mixture must: the interval of its AUROC there begins at "
                f"{head.about.within_low}"
            )
        if head.about.label != heads[0].about.label:
            raise ValueError(
                f"the head {path} predicts {head.about.label!r} and the first "
                f"{heads[0].about.label!r}, which do not compare: fit both to the same"
            )
    return heads


def _refuse_chance(about: About, what: str) -> None:
    if about.is_chance:
        raise ValueError(
            f"{what}: the head's AUROC on {about.num_prompts_held_out} held-out prompts is "
            f"{about.auroc:.2f}, 95 % interval {about.auroc_low:.2f} to {about.auroc_high:.2f}, "
            f"which is not above chance ({CHANCE})"
        )


def model_digest(model: nn.Module) -> str:
    """SHA-256 of names, shapes and 64 evenly spread values of each parameter, in bfloat16.

    The same for float32 weights and for their bfloat16 copies, on every device. A model with the
    same digest has moved by no more than that precision at thousands of places.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda each: each[0]):
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        flat = parameter.detach().flatten()
        num = min(len(flat), VALUES_PER_TENSOR)
        places = torch.linspace(0, len(flat) - 1, num, dtype=torch.float64, device=flat.device)
        values = flat[places.long()].to(torch.bfloat16).cpu().contiguous()
        digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
