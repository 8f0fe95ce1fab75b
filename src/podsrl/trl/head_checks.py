"""What `rbrm_head` and its refreshing rule out, of the settings alone."""

from typing import TYPE_CHECKING

from podsrl.trl.needs import check_needs

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig


def fill_in_alpha(config: "PODSConfig") -> None:
    """With a head the rewards say which rollout is chosen and, unless told, nothing more."""
    if config.objective == "rbrm" and config.rbrm_head is not None and config.rbrm_alpha is None:
        config.rbrm_alpha = 0.0


def check_head(config: "PODSConfig") -> None:
    """Raise `ValueError` for what taking a head's states from the sampler cannot be beside."""
    steps = config.rbrm_refresh_steps
    if steps is not None and (config.rbrm_head is None or steps < 1):
        raise ValueError(
            f"rbrm_refresh_steps is {steps}: give 1 or more, together with rbrm_head, or leave it "
            "out."
        )
    if config.rbrm_head is None:
        return
    needs = {
        "objective='rbrm', which alone reads it": config.objective == "rbrm",
        "fast_sampling=True and no other engine, as states are taken while it samples": (
            config.fast_sampling
            and not (config.use_vllm or config.use_transformers_continuous_batching)
        ),
        "rollout_mixture left out, whose rollouts have other states": not config.rollout_mixture,
        "sampling_rounds=0, where processes sample for each other": not config.sampling_rounds,
    }
    check_needs("rbrm_head needs", needs, "leave rbrm_head out")
