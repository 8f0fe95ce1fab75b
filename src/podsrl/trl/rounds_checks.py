"""What sampling in rounds rules out: one error each, with the value, the bound, the remedy."""

from typing import TYPE_CHECKING

from podsrl.core.combine import SUM_THEN_NORMALIZE
from podsrl.core.rounds import first_round
from podsrl.trl.needs import check_needs

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig


def check_rounds(config: "PODSConfig") -> None:
    """Raise `ValueError` for what rounds cannot be beside, and for sizes out of range."""
    if not config.sampling_rounds:
        _check_unused(config)
        return
    needs = {
        "num_rollouts above num_generations, or there is nothing to save": (
            config.num_rollouts > config.num_generations
        ),
        "selection_rule='max_variance', which keeps the rarer reward": (
            config.selection_rule == "max_variance"
        ),
        f"multi_objective_aggregation={SUM_THEN_NORMALIZE!r}": (
            config.multi_objective_aggregation == SUM_THEN_NORMALIZE
        ),
        "advantage_from='kept', as sampling until rewards differ biases the mean of all": (
            config.advantage_from == "kept"
        ),
        "early_stop=False, which would stop the same groups within a round": not config.early_stop,
    }
    check_needs("sampling_rounds needs", needs, "set sampling_rounds=0")
    _check_sizes(config)


def _check_unused(config: "PODSConfig") -> None:
    for name in ("sampling_rounds_enough", "sampling_rounds_give_up"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but without sampling_rounds all rollouts are "
                "sampled at once: set sampling_rounds (8, say), or leave it out."
            )


def _check_sizes(config: "PODSConfig") -> None:
    size, n, m = config.sampling_rounds, int(config.num_rollouts or 0), config.num_generations
    enough, give_up = config.sampling_rounds_enough, config.sampling_rounds_give_up
    if size < 1 or first_round(m, size) >= n:
        raise ValueError(
            f"sampling_rounds is {size}, but must be at least 1 and leave a second round: the "
            f"first brings num_generations = {m} rollouts or more, in whole rounds, of "
            f"num_rollouts = {n}."
        )
    if not 1 <= int(enough or 0) <= m // 2:
        raise ValueError(
            f"sampling_rounds_enough is {enough}, but must lie between 1 and {m // 2}: of the "
            f"rarer reward at most half of num_generations = {m} rollouts are kept."
        )
    if not m <= int(give_up or 0) <= n:
        raise ValueError(
            f"sampling_rounds_give_up is {give_up}, but must lie between num_generations = {m} "
            f"and num_rollouts = {n}."
        )
