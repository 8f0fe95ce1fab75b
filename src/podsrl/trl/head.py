"""What a head on hidden states gives each rollout, from states that the sampler has anyway.

For `rbrm_head`: its states are those of the policy as it samples. The head stays as it was fitted,
unless it is refreshed (head_refresh.py).

Shape letters: S sampled rollouts of all processes, B rows of this process, D layers, H hidden size.
"""

from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from trl import GRPOTrainer

from podsrl.probe.head import Head
from podsrl.probe.reward import answer_head
from podsrl.trl.batch import GenerationBatch
from podsrl.trl.head_refresh import STATES, HeadRefresh
from podsrl.trl.sampling import settings_or_why_generate

COLUMN = "podsrl_head_log_odds"


class RolloutHead:
    """Writes the log-odds of the head into the rows of the rollouts, and reads them there.

    In the rows they go wherever the rollouts go: other prompts may take the place of some.

    Raises `ValueError` for a head that does not tell answers to one question apart or is of another
    model than the one that training begins with, for a model with adapters, for rollouts of several
    turns, and where our sampler does not serve the model.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        path = host.args.rbrm_head
        head = answer_head(path, f"rbrm_head {path}")
        policy: Any = host.accelerator.unwrap_model(host.model)
        refuse(host, policy)
        head.check(policy)
        self._first = head.to(host.accelerator.device)
        self.refresh = HeadRefresh(host, self._first) if host.args.rbrm_refresh_steps else None
        if self.refresh is not None:
            host.remembering.append(self.refresh)
        host.prompt_once.tap_layers = head.about.layers

    @property
    def head(self) -> Head:
        """The one that stands."""
        return self._first if self.refresh is None else self.refresh.head

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write into each row what the head gives the rollout that was sampled for it last."""
        states_BDH = self.host.prompt_once.states_BDH
        odds_B = self.head.log_odds(self.head.of_layers(states_BDH))
        for row, odds in zip(rows, odds_B.tolist(), strict=True):
            row[COLUMN] = odds
        if self.refresh is not None:
            for row, states_DH in zip(rows, states_BDH, strict=True):
                row[STATES] = states_DH

    def read(self, batch: GenerationBatch) -> Tensor:
        """The log-odds of the rollouts of all processes, (S,); then the head may be refreshed."""
        assert batch.rollouts is not None and batch.selection is not None
        rows = batch.rollouts.inputs
        odds = [row[COLUMN] for row in rows]
        odds_S: Tensor = gather(torch.tensor(odds, device=self.host.accelerator.device))
        if self.refresh is not None:
            batch.metrics |= self.refresh.add(rows, batch.selection)
        return odds_S


def refuse(host: GRPOTrainer, policy: Any) -> None:
    """Raise `ValueError` for what the sampler's states do not serve."""
    if hasattr(policy, "peft_config"):
        raise ValueError(
            "rbrm_head reads the states of the model that it was fitted to, whose weights are "
            "known by other names beneath adapters: train without use_peft, or leave rbrm_head out"
        )
    if host.tools or host.environment_factories or host.rollout_func:
        raise ValueError(
            "rbrm_head reads the end of one answer, but with tools, environments and rollout_func "
            "a rollout has several turns: leave rbrm_head out"
        )
    if isinstance(why := settings_or_why_generate(host), str):
        raise ValueError(
            f"rbrm_head takes states from our sampler, which does not serve this run ({why}): "
            "leave rbrm_head out"
        )
