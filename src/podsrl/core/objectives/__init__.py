"""Objectives: what is minimised on the kept rollouts.

An objective is a function of a `KeptBatch` and of options that are fields of PODSConfig; it returns
a scalar loss and a dictionary of scalar metrics. `grpo`, TRL's own loss, is none of these.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from podsrl.core.objectives.balance import subtb
from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.pairs import bmc, dpo, rbrm, sdpo, tdpo1, tdpo2, veripo
from podsrl.core.objectives.ratio import sapg
from podsrl.core.objectives.regression import agro, astar_po, qrpo, rebel, vargrad

__all__ = ["OBJECTIVES", "KeptBatch", "Objective"]


@dataclass(frozen=True)
class Objective:
    """A loss function and what it needs.

    Args:
        function: (batch, **options) -> loss, metrics. The loss sums over rows or tokens and divides
            by the batch's `num_rows` or `num_tokens` (`mean_over_rows`, `mean_over_tokens`), so
            that micro-batches change nothing. Metrics are scalar tensors without gradient, logged
            as `objective/<name>`.
        options: keyword arguments of `function`, each the name of a PODSConfig field, with the
            value that a field left at None takes.
        needs_reference: reads `batch.reference_log_probs_BT`; `beta` must then be above 0.
        needs_whole_groups: couples rows of a prompt: a micro-batch must hold groups complete.
        needs_reference_rewards: reads `batch.extras["reference_rewards"]`, (B, K): rewards of K
            rollouts of the reference policy for the row's prompt.
        needs_advantages: reads `batch.advantages_B`.
        needs_token_kl: reads `batch.extras["sequential_kl"]`, (B,) with gradient: divergence from
            the reference over the vocabulary, summed over tokens.
        needs_turns: compares turns, so that rollouts must have several: `batch.mask_BT` has holes.
        needs_prefixes: reads `batch.extras["end_log_probs"]`, (B, T) with gradient, and
            "reference_end_log_probs": log-probs of an end in each token's place; and
            "prefix_rewards", (B, T): rewards of the tokens before it, as an answer.
        needs_accuracy: reads `batch.extras["accuracy"]`, (B,): mean of the first reward function
            over all n rollouts of the row's prompt.
        any_policy: right for rollouts of any policy: it reads the log-probs of the one that
            sampled, extras["behaviour_log_probs"], or its optimum is the same whoever sampled.
        needs_behaviour: reads extras["behaviour_log_probs"]: only those who can say how likely each
            token was may sample.
        is_zero_without_advantage: a row of advantage 0 adds nothing to loss or gradient, whatever
            its log-probs.
        schedule: names of two of the options, which `function` does not receive: TRL's own loss for
            the first's number of steps, `function` for the second's, and again.
        policy_beta: name of an option, which `function` does not receive either: the weight of the
            KL term in TRL's steps of a schedule. Where it is left at None, `beta`.
        verdicts: names of two options, which `function` does not receive either: the reward
            functions that are checks of a rollout, and the most tokens that pass. Where they are
            set, rollouts are chosen, and pairs made, by what passes all (`podsrl.core.verdicts`).
    """

    function: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    options: Mapping[str, float | str | None] = field(default_factory=dict)
    needs_reference: bool = True
    needs_whole_groups: bool = False
    needs_reference_rewards: bool = False
    needs_advantages: bool = False
    needs_token_kl: bool = False
    needs_turns: bool = False
    needs_prefixes: bool = False
    needs_accuracy: bool = False
    any_policy: bool = False
    needs_behaviour: bool = False
    is_zero_without_advantage: bool = False
    schedule: tuple[str, str] | None = None
    policy_beta: str | None = None
    verdicts: tuple[str, str] | None = None

    def of_function(self) -> list[str]:
        """The names of the options that `function` receives."""
        others = (*(self.schedule or ()), *(self.verdicts or ()), self.policy_beta)
        return [name for name in self.options if name not in others]

    @property
    def needs_hidden(self) -> bool:
        """Whether it reads more of the logits than the log-probs of the tokens."""
        return self.needs_token_kl or self.needs_prefixes


PAIRS: dict[str, float | str | None] = {"beta": 0.1, "pair_mode": "extremes"}

OBJECTIVES: dict[str, Objective] = {
    "agro": Objective(agro, {"beta": 0.1}, needs_whole_groups=True, any_policy=True),
    "astar_po": Objective(
        astar_po,
        {"beta": 1e-3, "value_beta": 0.5},
        needs_reference_rewards=True,
        any_policy=True,
    ),
    "qrpo": Objective(
        qrpo, {"beta": 0.1, "qrpo_ties": "mid"}, needs_reference_rewards=True, any_policy=True
    ),
    "rebel": Objective(rebel, {"rebel_eta": 1.0}, needs_reference=False, needs_whole_groups=True),
    "vargrad": Objective(vargrad, {"beta": 0.1}, needs_whole_groups=True, any_policy=True),
    "subtb": Objective(
        subtb, {"beta": 0.1, "subtb_lambda": 1.0}, needs_prefixes=True, any_policy=True
    ),
    "sapg": Objective(
        sapg,
        {"epsilon": 0.2, "epsilon_high": None, "sapg_mu_max": 3.0},
        needs_reference=False,
        needs_advantages=True,
        any_policy=True,
        needs_behaviour=True,
        is_zero_without_advantage=True,
    ),
    "dpo": Objective(dpo, PAIRS, needs_whole_groups=True, any_policy=True),
    "tdpo1": Objective(tdpo1, PAIRS, needs_whole_groups=True, needs_token_kl=True, any_policy=True),
    "tdpo2": Objective(
        tdpo2,
        PAIRS | {"tdpo_alpha": 0.5},
        needs_whole_groups=True,
        needs_token_kl=True,
        any_policy=True,
    ),
    "bmc": Objective(bmc, PAIRS | {"bmc_delta": 2.0}, needs_whole_groups=True, any_policy=True),
    "rbrm": Objective(rbrm, PAIRS | {"rbrm_alpha": 7.5}, needs_whole_groups=True, any_policy=True),
    "sdpo": Objective(
        sdpo,
        PAIRS | {"sdpo_segment": "value_drop", "sdpo_first_turn": None, "sdpo_num_turns": None},
        needs_whole_groups=True,
        needs_turns=True,
    ),
    "veripo": Objective(
        veripo,
        {
            **PAIRS,
            "veripo_drop_solved": 0.8,
            "veripo_policy_steps": 8,
            "veripo_pair_steps": 2,
            "veripo_policy_beta": None,
            "veripo_checks": None,
            "veripo_max_tokens": None,
        },
        needs_whole_groups=True,
        needs_advantages=True,
        needs_accuracy=True,
        schedule=("veripo_policy_steps", "veripo_pair_steps"),
        policy_beta="veripo_policy_beta",
        verdicts=("veripo_checks", "veripo_max_tokens"),
    ),
}
