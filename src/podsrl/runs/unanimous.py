"""The end of a run whose rollouts agree: votes then teach nothing more, right or wrong."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

DEFAULT_STOP = 0.9
WINDOW = 20
UNANIMOUS, RIGHT = "majority/frac_unanimous", "majority/frac_right"


class NothingToLearn(Exception):
    """Ends a run of which no further step would teach anything."""


class StopUnanimous(TrainerCallback):
    """Ends the run when of a share of the prompts all rollouts give one answer.

    share: from which on, in the mean of the last `WINDOW` logged steps; above 1 it never does. What
    was logged before a resume counts, so that a resumed run ends where one that was never stopped
    does. Its place is after what writes the logs.

    Raises `NothingToLearn`, on all processes alike, as they log the same numbers.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        shares = last_values(state.log_history, UNANIMOUS)
        if UNANIMOUS not in (logs or {}) or len(shares) < WINDOW:
            return
        mean = sum(shares) / WINDOW
        if mean < self.share:
            return
        right = last_values(state.log_history, RIGHT)
        rightness = f", the right one on {sum(right) / len(right):.0%}" if right else ""
        raise NothingToLearn(
            f"on {mean:.0%} of the prompts of the last {WINDOW} logged steps all rollouts gave one "
            f"answer{rightness}, so that their votes teach nothing more (majority_stop is "
            f"{self.share:g}; above 1 the run goes on)"
        )


def last_values(log_history: list[dict[str, Any]], name: str) -> list[float]:
    """The last `WINDOW` logged values of this name, the newest first, fewer if there are fewer."""
    found: list[float] = []
    for entry in reversed(log_history):
        if name in entry:
            found.append(entry[name])
        if len(found) == WINDOW:
            break
    return found
