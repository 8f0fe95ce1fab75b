"""A rollout of several turns: what was said, and what is needed to go on from before any turn.

Shape letters: F reward functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Dialogue:
    """What was said about a row of the data set, by the model and by tools and environment."""

    row: dict[str, Any]
    """As the environment's reset is given it."""
    prompt: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    tool_mask: list[int]
    """1 for the tokens that the model wrote, 0 for those that came back."""
    messages: list[dict[str, Any]]
    log_probs: list[float] | None

    @property
    def starts(self) -> list[int]:
        """Where each turn begins in `completion_ids`."""
        before = [0, *self.tool_mask[:-1]]
        pairs = enumerate(zip(before, self.tool_mask, strict=True))
        return [i for i, (last, own) in pairs if own and not last]

    @property
    def num_turns(self) -> int:
        """How often the model wrote."""
        return len(self.starts)

    def until(self, turn: int) -> "Dialogue":
        """What came before the turn of that number."""
        start, roles = self.starts[turn], [message["role"] for message in self.messages]
        own = [place for place, role in enumerate(roles) if role == "assistant"]
        return Dialogue(
            self.row,
            self.prompt,
            self.prompt_ids,
            self.completion_ids[:start],
            self.tool_mask[:start],
            self.messages[: own[turn]],
            self.log_probs and self.log_probs[:start],
        )


@dataclass(frozen=True)
class Rewarded(Dialogue):
    """A dialogue and what it earned."""

    rewards_F: Tensor
    reward: float
    """The one that the rewards are combined to."""


def dialogue_of(
    rows: Sequence[dict[str, Any]], prompts: Sequence[Any], generated: Sequence[Any], place: int
) -> Dialogue:
    """The rollout in that place.

    rows, prompts: of each rollout. generated: the values of GRPOTrainer._generate.
    """
    prompt_ids, completion_ids, tool_mask, completions, log_probs, *_ = generated
    return Dialogue(
        row=rows[place],
        prompt=prompts[place],
        prompt_ids=prompt_ids[place],
        completion_ids=completion_ids[place],
        tool_mask=tool_mask[place],
        messages=completions[place],
        log_probs=log_probs and log_probs[place],
    )
