"""Scores rollouts in the background as they end, says which others are no longer needed, and counts
what that saved.

What is decided depends on which rollouts have ended by which step, never on how long a reward
takes: a decision uses every reward asked for at the decision before, and waits for those that are
not there yet. So a reward has from one decision to the next to be computed while tokens are drawn.

Shape letters: P groups, N rollouts per group, M kept rollouts, B = P * N rows, F reward functions,
T lengths 0..max_length.
"""

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from podsrl.core.combine import combine
from podsrl.core.early_stop import choice_is_final

Score = Callable[[list[int], list[list[int]]], Tensor]
"""Rows and their tokens -> rewards (rows, F), NaN where there is none; runs in another thread."""

# Share of the span between the bounds by which a weighted sum may miss them through rounding.
ROUNDING = 1e-6


class EarlyStop:
    """A `Monitor` for `sample` that stops each group once `choice_is_final` holds for it.

    score: see `Score`; called with the rollouts that ended since the call before, one call at a
    time. weights_F: the weight of each reward function. bounds: lowest and highest weighted sum.
    steps_between_decisions: 1, 2, 4 or 8 decoding steps.

    Use as a context: leaving it ends the thread. An error in `score` is raised from the next
    decision or from `finish`. Raises `ValueError` for a reward outside the bounds.
    """

    def __init__(
        self,
        score: Score,
        weights_F: Tensor,
        *,
        num_groups: int,
        num_rollouts: int,
        num_kept: int,
        bounds: tuple[float, float],
        steps_between_decisions: int = 1,
    ) -> None:
        self.score = score
        self.weights_F = weights_F.cpu()
        self.shape = (num_groups, num_rollouts)
        self.num_kept = num_kept
        self.bounds = bounds
        self.steps_between_decisions = steps_between_decisions
        num_rows = num_groups * num_rollouts
        self.rewards_per_func_BF = torch.full((num_rows, len(self.weights_F)), torch.nan)
        self.has_ended_B = torch.zeros(num_rows, dtype=torch.bool)
        self._ended: dict[int, list[int]] = {}
        self._rows_to_stop: set[int] = set()
        self._being_scored: tuple[list[int], Future[Tensor]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewards")

    def __enter__(self) -> "EarlyStop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def ended(self, row: int, tokens: list[int]) -> None:
        """Note a rollout to be scored."""
        # Goes beside the reward: NaN alone could also be a grading that failed.
        self._ended[row] = tokens
        self.has_ended_B[row] = True

    def rows_to_stop(self, step: int) -> Collection[int]:
        """All rows of the groups whose choice is final, as far as it is known at this decision."""
        if step == 0:  # before rows that may not have to be decoded at all, waiting costs less
            self._ask_for_rewards()
            self._wait_for_rewards()
        elif (step + 1) % self.steps_between_decisions == 0:
            self._wait_for_rewards()
            self._ask_for_rewards()
        return self._rows_to_stop

    def finish(self) -> Tensor:
        """Rewards (B, F) of all rollouts once the last is scored; NaN for the stopped ones."""
        self._wait_for_rewards()
        self._ask_for_rewards()
        self._wait_for_rewards()
        return self.rewards_per_func_BF

    def _ask_for_rewards(self) -> None:
        # One call at a time: reward functions need not be safe to run beside themselves.
        if self._ended:
            self._wait_for_rewards()
            rows, tokens = list(self._ended), list(self._ended.values())
            self._being_scored = rows, self._thread.submit(self.score, rows, tokens)
            self._ended = {}

    def _wait_for_rewards(self) -> None:
        if self._being_scored is None:
            return
        # Forgotten before its result is asked for: an error in a reward is raised once.
        rows, future = self._being_scored
        self._being_scored = None
        self.rewards_per_func_BF[rows] = future.result()
        self._decide()

    def _decide(self) -> None:
        # Sums in float64, so that single precision does not depend on the order of addition.
        rewards_PNF = self.rewards_per_func_BF.double().unflatten(0, self.shape)
        rewards_PN = combine(rewards_PNF, self.weights_F.double()).float()
        low, high = self.bounds
        check_within(rewards_PN, low, high)
        is_final_P = choice_is_final(rewards_PN, self.num_kept, low=low, high=high)
        num_rollouts = self.shape[1]
        for group in is_final_P.nonzero().flatten().tolist():
            self._rows_to_stop.update(range(group * num_rollouts, (group + 1) * num_rollouts))


def check_within(rewards_PN: Tensor, low: float, high: float) -> None:
    """Raise `ValueError` for a reward outside the bounds by more than a millionth of their span."""
    rounding = ROUNDING * (high - low)
    is_outside_PN = (rewards_PN < low - rounding) | (rewards_PN > high + rounding)
    if is_outside_PN.any():
        group, rollout = is_outside_PN.nonzero()[0].tolist()
        raise ValueError(
            f"early_stop: the weighted reward of rollout {rollout} of group {group} is "
            f"{rewards_PN[group, rollout].item()}, outside reward_bounds ({low}, {high}), on which "
            "stopping relies: give bounds that hold for every reward, or set early_stop=False."
        )


def steps_between_decisions(max_new_tokens: int) -> int:
    """1 step for short rollouts, up to 8 for long ones: about 32 decisions or more per rollout.

    Example: 24 tokens give 1, 64 give 2, 512 give 8.
    """
    return 1 << min(3, max(0, (max_new_tokens // 32).bit_length() - 1))


def early_stop_metrics(
    rewards_PN: Tensor,
    kept_PM: Tensor,
    *,
    has_ended_PN: Tensor,
    length_PN: Tensor,
    max_length: int,
) -> dict[str, Tensor]:
    """Scalar tensors on what stopping saved and whom it preferred; docs/metrics.md defines them.

    length_PN: tokens drawn of each rollout. With lengths 2, 4 and 3, the last one stopped, and
    max_length 8, at most 5 more tokens would have been drawn, 5 / (9 + 5) = 0.357 of all; by the
    two others' lengths one more, 1 / (9 + 1) = 0.1.
    """
    num_drawn = length_PN.sum().double()
    missing_PN = tokens_to_come(length_PN, has_ended_PN, max_length=max_length)
    at_most_PN = (max_length - length_PN.double()).masked_fill(has_ended_PN, 0)
    failed_PN = rewards_PN.isnan() & has_ended_PN
    return {
        "pods/frac_rollouts_stopped": (~has_ended_PN).double().mean(),
        "pods/frac_tokens_saved": missing_PN.sum() / (num_drawn + missing_PN.sum()),
        "pods/frac_tokens_saved_at_most": at_most_PN.sum() / (num_drawn + at_most_PN.sum()),
        "pods/finished_mean_length": length_PN[has_ended_PN].double().mean(),
        "pods/kept_mean_length": length_PN.gather(1, kept_PM).double().mean(),
        "pods/frac_no_reward": failed_PN.sum() / has_ended_PN.sum(),
    }


def tokens_to_come(length_PN: Tensor, has_ended_PN: Tensor, *, max_length: int) -> Tensor:
    """Estimate, per rollout, the tokens that it was still to have when stopped; 0 if it had ended.

    From the share S(t) of rollouts longer than t tokens, estimated from all P * N by the product
    over s <= t of 1 - (ended with s tokens) / (had s tokens or more) (Kaplan and Meier 1958), a
    rollout stopped after c tokens has sum over t = c..max_length - 1 of S(t) / S(c) to come. It
    takes stopped rollouts to go on like those of the batch that went on; beyond the longest one
    that is known to have ended it counts up to max_length.

    Args:
        length_PN: tokens drawn, whole numbers from 1 to max_length, any real dtype.
        has_ended_PN: bool; False for stopped rollouts.

    Returns:
        float64 (P, N).

    Example: lengths 2 and 4 ended, 3 stopped, at most 8 tokens. Of those with 3 tokens or more none
    ended at 3, and all at 4: S(3) / S(3) = 1, S(4) = 0, so 1 token to come.
    """
    length_PN = length_PN.long()
    every_T = torch.bincount(length_PN.flatten(), minlength=max_length + 1).double()
    ended_T = torch.bincount(length_PN[has_ended_PN], minlength=max_length + 1).double()
    at_risk_T = every_T.flip(0).cumsum(0).flip(0)
    survival_T = (1 - ended_T / at_risk_T.clamp(min=1)).cumprod(0)
    # 0 / 0 beyond the longest rollout is NaN, but no rollout stopped there: nothing looks it up.
    to_come_T = survival_T[:-1].flip(0).cumsum(0).flip(0) / survival_T[:-1]
    to_come_T = torch.nn.functional.pad(to_come_T, (0, 1))
    return to_come_T[length_PN].masked_fill(has_ended_PN, 0.0)
