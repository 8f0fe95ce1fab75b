"""Words of a recipe that train as another word does, told once: comparing the two compares noise.

docs/methods.md lists them; tests/core/objectives/test_twins.py has the identities as numbers.
"""

import logging
import math
from typing import TYPE_CHECKING

from torch import Tensor
from trl import GRPOTrainer

from podsrl.trl.behaviours_checks import behaviours_differ

if TYPE_CHECKING:
    from podsrl.trl.config import PODSConfig

logger = logging.getLogger(__name__)

# From here on a pair's confidence counts as 1.
SURE = 0.999


def tell_twin(host: GRPOTrainer) -> None:
    """Warn where the settings alone make one word another; the main process does."""
    told = twin_of(host.args)
    if told is not None and host.accelerator.is_main_process:
        logger.warning("%s (docs/methods.md, twins)", told)


def twin_of(config: "PODSConfig") -> str | None:
    """What a word of the settings trains as, and why, in words; None where each is its own.

    Example: "objective='vargrad' trains as 'agro': its loss is 200 times agro's".
    """
    words = {
        "sapg": _sapg(config),
        "vargrad": f"'agro': its loss is {2 / float(config.beta or 1) ** 2:.4g} times agro's",
        "tdpo2": "'dpo': tdpo_alpha is 0" if config.tdpo_alpha == 0 else None,
        "bmc": (
            "'dpo': bmc_delta is 0" if config.bmc_delta == 0 and not config.bmc_bridges else None
        ),
    }
    if words.get(config.objective):
        return f"objective={config.objective!r} trains as {words[config.objective]}"
    reads_advantages = config.get_objective() is None or config.objective == "sapg"
    if reads_advantages and config.advantage == "rloo" and config.budget == "per_prompt":
        m = config.num_generations if config.advantage_from == "kept" else config.num_rollouts
        return (
            f"advantage='rloo' trains as 'dr_grpo': its advantages are {m}/{int(m or 0) - 1} of "
            "those, which an optimizer like Adam hardly sees"
        )
    return None


def _sapg(config: "PODSConfig") -> str | None:
    """vLLM's and behaviours' own log-probs make it another loss; else the policy itself samples."""
    if config.use_vllm or behaviours_differ(config):
        return None
    return "'grpo' with loss_type='dapo': the policy itself samples, so that mu is 1"


def tell_sure_pairs(host: GRPOTrainer, rewards_PN: Tensor) -> bool:
    """Whether these rewards could tell if `rbrm` trains as `dpo`; the main process warns if so."""
    told = sure_pairs(rewards_PN, alpha=host.args.rbrm_alpha)
    if told and host.accelerator.is_main_process:
        logger.warning("%s (docs/methods.md, twins)", told)
    return told is not None


def sure_pairs(rewards_PN: Tensor, *, alpha: float) -> str | None:
    """Why `rbrm` trains as `dpo` on these rewards, in words; "" where it does not.

    It does where every two different rewards of a prompt give a confidence of at least `SURE`.
    None where no prompt has two different rewards, which says nothing.

    Example: rewards 0 and 1, alpha 7.5: the confidence is sigmoid(7.5) = 0.9994.
    """
    steps = rewards_PN.sort(dim=1).values.diff(dim=1)  # NaN are last, and no step above 0
    steps = steps[steps > 0]
    if not steps.numel():
        return None
    confidence = 1 / (1 + math.exp(-alpha * steps.min().item()))
    if confidence < SURE:
        return ""
    return (
        f"objective='rbrm' trains as 'dpo': on rewards like the first the confidence in every pair "
        f"is at least {confidence:.4f}"
    )
