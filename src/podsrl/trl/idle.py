"""Training that teaches nothing stops with the reason: step after step its gradient is 0."""

import logging
from collections import deque
from typing import Any

from torch import Tensor
from trl import GRPOTrainer

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 20
# A run that never logs keeps no more of them.
MOST_NORMS = 1000


class NothingLearned(RuntimeError):
    """No step of the run had a gradient."""


class GradientWatch:
    """Counts steps in a row whose gradient is exactly 0, and stops the run at so many.

    The norms are those that transformers' Trainer computes in each step. They stay on the device
    until the trainer logs, which waits for it anyway; so the run stops at the first log after the
    last of these steps. They are of the gradient of all processes: every process counts alike.

    A step without a gradient leaves the weights where they were, but for momentum and weight decay:
    a run that stops loses nothing by it.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host, self.num_idle = host, 0
        self.has_learned: bool | None = None
        """Whether a step had a gradient; None before the first log."""
        self.norms: deque[Tensor | float] = deque(maxlen=MOST_NORMS)
        """Of the steps since the last log."""

    def check(self, logs: dict[str, float]) -> None:
        """Stop the run if these steps make it enough.

        logs: what the trainer has just logged of the steps since the last log.

        Raises: `NothingLearned` where no step has had a gradient. A run that had learned before
        ends in order, with a warning: its weights are worth saving.
        """
        num_steps = len(self.norms)
        if "grad_norm" not in logs or not num_steps:
            return
        if self.has_learned is None:  # of steps before a resume nothing is known
            self.has_learned = self.host.state.global_step > num_steps
        is_idle = float(sum(self.norms)) == 0
        self.num_idle = self.num_idle + num_steps if is_idle else 0
        self.has_learned = self.has_learned or not is_idle
        self.norms.clear()
        if self.num_idle < self.host.args.stop_after_idle_steps:
            return
        reason = idle_in_words(self.host.args.objective, self.num_idle, logs)
        if not self.has_learned:
            raise NothingLearned(reason)
        if self.host.accelerator.is_main_process:
            logger.warning("training ends at step %d: %s", self.host.state.global_step, reason)
        self.host.control.should_training_stop = True


def idle_in_words(objective: str, num_steps: int, logs: dict[str, Any]) -> str:
    """What was counted, and what may mend it.

    Example: "objective='dpo' had a gradient of exactly 0 in 20 steps in a row (last logged:
    objective/num_pairs 0, reward 0): ...".
    """
    names = (
        "objective/num_pairs",
        "pods/frac_kept_zero_variance",
        "pods/frac_no_reward",
        "reward",
        "completions/clipped_ratio",
    )
    known = [f"{name} {logs[name]:.4g}" for name in names if logs.get(name) is not None]
    if logs.get("pods/frac_no_reward") == 1:
        remedy = "no rollout had a reward: look at the reward functions"
    elif logs.get("pods/frac_kept_zero_variance") == 1:
        remedy = (
            "the kept rewards of every prompt were equal: look at the reward functions, take "
            "easier or harder questions, or more by num_rollouts or refill_constant_groups"
        )
    else:
        remedy = (
            "rewards differed, so look at what the loss leaves out: frozen weights, "
            "mask_truncated_completions, turns that no rollout has"
        )
    return (
        f"objective={objective!r} had a gradient of exactly 0 in {num_steps} steps in a row (last "
        f"logged: {', '.join(known)}): {remedy}. stop_after_idle_steps: 0 goes on regardless."
    )
