"""A head fitted anew on the policy's own rollouts while training goes on: for `rbrm_refresh_steps`.

After reward learning on policy (RLP, arXiv 2403.19279; second-hand): a reward model that was fitted
once is fitted again to what the policy samples by now. What is right is the first reward function's
to say, verified or by majority; no head ever says it.

Shape letters: S sampled rollouts, P prompts, N rollouts of a prompt, D layers, H hidden size.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather, gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.selection import Selection
from podsrl.extras import need
from podsrl.probe.head import Head, load_head, save_head

if TYPE_CHECKING:
    from podsrl.probe.auroc import Items

logger = logging.getLogger(__name__)

STATES = "podsrl_head_states"
HEAD_FILE, ROLLOUTS_FILE = "rbrm_head.safetensors", "rbrm_rollouts.safetensors"
SUCCESS = 1.0  # as podsrl probe
MOST_EACH = 8
"""Rollouts of a prompt that are collected from a generation batch, the first ones."""


class HeadRefresh:
    """Collects rollouts with their states, and every so many steps fits a head to them.

    A third of the questions is held out. The fitted head takes the standing one's place where the
    interval of its AUROC among rollouts of one held-out question lies above chance; else, and where
    too few questions were seen, the standing one stays, which is counted.
    """

    def __init__(self, host: GRPOTrainer, head: Head) -> None:
        need("sklearn", "rbrm_refresh_steps")
        self.host, self.head = host, head
        self.begun = 0
        """The optimizer step from which on it collects, from 0."""
        self.num_refused = 0
        self._states: list[Tensor] = []
        self._right: list[Tensor] = []
        self._questions: list[str] = []

    def add(self, rows: list[dict[str, Any]], selection: Selection) -> dict[str, Tensor]:
        """Collect what was sampled, and where it is time fit; returns metrics of a fit.

        rows: of this process. Every process must call it, and has the same head afterwards.
        """
        n = self.host.args.num_rollouts
        states_SDH = gather(torch.stack([row[STATES] for row in rows]))
        questions = gather_object([json.dumps(row["prompt"], sort_keys=True) for row in rows])
        rewards_PN = selection.rewards_per_func_PNF[..., 0]
        taken_PN = (torch.arange(n) < MOST_EACH) & ~rewards_PN.isnan().cpu()
        taken_S = taken_PN.flatten()
        self._states.append(states_SDH.cpu()[taken_S])
        self._right.append((rewards_PN >= SUCCESS).cpu().flatten()[taken_S])
        self._questions += [questions[row] for row in taken_S.nonzero().flatten().tolist()]
        if self.host.state.global_step + 1 - self.begun < self.host.args.rbrm_refresh_steps:
            return {}
        return self._refresh()

    def _refresh(self) -> dict[str, Tensor]:
        """Fit on the main process, tell all, and begin to collect anew."""
        found: list[Any] = [None]
        if self.host.accelerator.is_main_process:
            found = [self._fitted()]
        head, standing, fitted = broadcast_object_list(found)[0]
        self.num_refused += head is None
        if head is not None:
            self.head = head.to(self.host.accelerator.device)
        self.begun = self.host.state.global_step + 1
        self._states, self._right, self._questions = [], [], []
        values = {"standing_auroc": standing, "num_refused": self.num_refused}
        values |= {} if fitted is None else {"fitted_auroc": fitted}
        device = self.host.accelerator.device
        return {f"head/{k}": torch.tensor(float(v), device=device) for k, v in values.items()}

    def _fitted(self) -> tuple[Head | None, float, float | None]:
        """A head that is better than chance, or None; AUROC of the standing one and of this one."""
        from podsrl.probe.auroc import auroc_within
        from podsrl.probe.fit import TooFew
        from podsrl.probe.measure import measure, told_of_head
        from podsrl.probe.pairs import head_of

        states_SDH, items = torch.cat(self._states), self._items()
        odds_S = self.head.to("cpu").log_odds(self.head.of_layers(states_SDH))
        standing = float(auroc_within(items, odds_S.numpy())[0])
        about = self.head.about
        nothing: list[dict[str, float]] = [{}] * len(states_SDH)
        seed = self.host.state.global_step
        try:
            found = measure(states_SDH.double().numpy(), items, nothing, seed=seed, kind=about.kind)
        except TooFew as reason:
            logger.warning("rbrm_head stays as it was at step %d: %s", seed + 1, reason)
            return None, standing, None
        told = replace(about, **told_of_head(found.figures))
        is_good = told.tells_within and not told.is_chance
        head = head_of(found.choice.fitted, told) if is_good else None
        return head, standing, found.figures["within"]["value"]

    def _items(self) -> "Items":
        from podsrl.probe.auroc import Items

        _, number_S = np.unique(self._questions, return_inverse=True)
        return Items.of_rollouts(number_S.tolist(), torch.cat(self._right).tolist())

    def save(self, checkpoint: Path) -> None:
        """Write the standing head and what was collected since into a checkpoint's folder."""
        save_head(checkpoint / HEAD_FILE, self.head)
        told = {"begun": self.begun, "num_refused": self.num_refused, "questions": self._questions}
        rollouts = {}
        if self._states:
            rollouts = {"states": torch.cat(self._states), "right": torch.cat(self._right)}
        save_file(rollouts, checkpoint / ROLLOUTS_FILE, metadata={"told": json.dumps(told)})

    def load(self, checkpoint: Path) -> None:
        """Read what `save` wrote; nothing where it wrote nothing."""
        if not (checkpoint / HEAD_FILE).exists():
            return
        self.head = load_head(checkpoint / HEAD_FILE).to(self.host.accelerator.device)
        with safe_open(checkpoint / ROLLOUTS_FILE, "pt") as file:
            told = json.loads((file.metadata() or {})["told"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.begun, self.num_refused = told["begun"], told["num_refused"]
        self._questions = told["questions"]
        self._states = [tensors["states"]] if tensors else []
        self._right = [tensors["right"]] if tensors else []
