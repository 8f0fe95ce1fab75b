"""How far a plan is, how long the rest will take, and what was spent in the end."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from podsrl.plan.fit import Point
from podsrl.plan.measure import NUM_WARM_UP

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Prints lines with the time left, and counts rollouts; `say` gets each line.

    Args:
        num_pilot: rollouts that the pilot will sample, 0 without one.
        num_prompts, num_steps: prompts of a step and counted steps of a measurement.
        at_least_seconds: for which rounds of measurements go on.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        num_pilot: int,
        num_prompts: int,
        num_steps: int,
        at_least_seconds: float,
    ) -> None:
        self.say = say
        self.num_pilot, self.num_prompts, self.num_steps = num_pilot, num_prompts, num_steps
        self.at_least_seconds = at_least_seconds
        self.num_timed_rollouts = self.num_pilot_rollouts = 0
        self.start = self._phase_start = self._last_line = time.perf_counter()
        self._phase, self._num_points = "", 0

    def measured(self, point: Point, num_pairs: int) -> None:
        """Say that a point of `num_pairs` a round was measured."""
        now = time.perf_counter()
        self._num_points += 1
        steps = NUM_WARM_UP + self.num_steps
        self.num_timed_rollouts += point.num_rollouts * self.num_prompts * steps
        each = (now - self.start) / (self._num_points + 1)  # the first one does not count
        of_round = -self._num_points % num_pairs
        rounds = max(0.0, self.at_least_seconds - (now - self.start - each))
        per_rollout = point.sampling_seconds / (point.num_rollouts * self.num_prompts)
        left = max(of_round * each, rounds) + self.num_pilot * per_rollout
        self.say(f"  {minutes(left)} left")

    def pilot(self, what: str, done: int, total: int) -> None:
        """Say how many of a pilot's rollouts or gradients are done, now and then."""
        now = time.perf_counter()
        if what == "rollouts":
            self.num_pilot_rollouts = done
        if what != self._phase:
            # Loading came before the first batch, so its own time is only guessed.
            self._phase, self._phase_start = what, self._last_line
        if done == total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            left = (now - self._phase_start) * (total - done) / done
            self.say(f"pilot: {done} of {total} {what}, {minutes(left)} left of them")
            self._last_line = now

    def begin_pilot(self) -> None:
        """Count the pilot's time from here."""
        self._last_line = time.perf_counter()

    def spent(self) -> dict[str, Any]:
        """What the plan took so far."""
        return {
            "minutes": (time.perf_counter() - self.start) / 60,
            "timed_rollouts": self.num_timed_rollouts,
            "pilot_rollouts": self.num_pilot_rollouts,
        }


def minutes(seconds: float) -> str:
    """Return a time in words.

    Example: 90 gives 'about 1.5 minutes', 20 'less than half a minute'.
    """
    return f"about {seconds / 60:.1f} minutes" if seconds >= 30 else "less than half a minute"


def told(spent: Mapping[str, Any]) -> str:
    """Return what was spent as a line."""
    return (
        f"spent: {spent['minutes']:.1f} minutes, {spent['timed_rollouts']} rollouts to time steps "
        f"and {spent['pilot_rollouts']} for the pilot"
    )
