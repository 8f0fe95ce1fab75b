"""What a run's reward functions rule out, known without a model.

Those that must see all n rollouts of a prompt at once, such as votes, say so by an attribute,
`needs_whole_groups`; what would call them with a part is refused.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from trl import GRPOTrainer

from podsrl.trl.needs import check_needs
from podsrl.trl.objective_checks import places_of_checks

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

ATTRIBUTE = "needs_whole_groups"
NO_REWARD = "All reward functions returned None"
HOST_LOGGER = "trl.trainer.grpo_trainer"


def check_rewards(config: "PODSConfig", functions: Mapping[str, Any]) -> None:
    """Raise `ValueError` for reward functions, by name, that the settings cannot be beside."""
    refuse_parts_of_groups(config, functions.values())
    places_of_checks(config, list(functions))


def group_rewards(functions: Iterable[Any]) -> list[str]:
    """The names of those functions that need whole groups."""
    return [
        str(getattr(each, "__name__", type(each).__name__))
        for each in functions
        if getattr(each, ATTRIBUTE, False)
    ]


def refuse_parts_of_groups(config: "PODSConfig", functions: Iterable[Any]) -> None:
    """Raise `ValueError` where a function that needs whole groups would be given parts of them."""
    names = group_rewards(functions)
    if not names:
        return
    objective, processes = config.get_objective(), PartialState().num_processes
    rows = config.per_device_train_batch_size * config.steps_per_generation
    needs = {
        "early_stop=False, which scores rollouts while others are sampled": not config.early_stop,
        "sampling_rounds=0, as each round is scored by itself and prompts differ in their number "
        "of rollouts": not config.sampling_rounds,
        f"another objective than {config.objective!r}, which compares rewards with those of the "
        "reference's rollouts: what they vote for among themselves is another answer": (
            objective is None or not objective.needs_reference_rewards
        ),
        "sdpo_segment='fixed', as continuations are scored by themselves": (
            config.sdpo_segment != "value_drop"
        ),
        "bmc_bridges=0, as what is written anew is scored by itself": not config.bmc_bridges,
        "whole groups in each process: per_device_train_batch_size x steps_per_generation = "
        f"{rows} must be a multiple of num_generations = {config.num_generations}": (
            processes == 1 or rows % config.num_generations == 0
        ),
        "refill_constant_groups=0 with several processes, which share out the new groups": (
            processes == 1 or not config.refill_constant_groups
        ),
    }
    what = f"the reward {names[0]} reads all n rollouts of a prompt at once and needs"
    check_needs(what, needs, f"leave {names[0]} out")


def refuse_group_rewards(host: GRPOTrainer) -> None:
    """Raise where a trainer would give parts of a group to a function that needs it whole."""
    names = group_rewards(host.reward_funcs)
    if not names:
        return
    refuse_parts_of_groups(host.args, host.reward_funcs)
    if host.environment_factories is not None:
        raise NotImplementedError(
            f"the reward {names[0]} knows the rollouts of a prompt by their equal prompts, which "
            "environments may go on with in different ways: leave environment_factory out, or "
            f"{names[0]}."
        )
    _expect_no_reward()


def _expect_no_reward() -> None:
    """TRL warns, with the whole row, of each batch that holds a rollout without any reward.

    Where prompts without a majority have none on purpose that would be most batches; they are
    counted in pods/frac_no_reward.
    """
    logging.getLogger(HOST_LOGGER).addFilter(_is_expected)


def _is_expected(record: logging.LogRecord) -> bool:
    return NO_REWARD not in str(record.msg)  # accelerate writes the process before it
