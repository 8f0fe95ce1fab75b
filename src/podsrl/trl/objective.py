"""An objective of ours in the place of TRL's loss, on the kept rollouts.

Shape letters: B kept rows, T completion tokens, K rollouts of the reference per prompt.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.objectives import KeptBatch, Objective
from podsrl.core.objectives.pairs import MEANS_OVER_PAIRS, NUM_PAIRS
from podsrl.core.objectives.ratio import MU_EFFECTIVE, NUM_TOKENS
from podsrl.core.verdicts import failed_check, verdicts
from podsrl.trl.batch import TOOL_MASK, GenerationBatch, Rollouts
from podsrl.trl.behaviours import Behaviours
from podsrl.trl.dealing import BEHAVIOUR, FOLLOWER_ADVANTAGES, GROUP, REWARDS
from podsrl.trl.head import RolloutHead
from podsrl.trl.objective_checks import places_of_checks
from podsrl.trl.prefixes import PrefixRewards
from podsrl.trl.reference import ReferenceRewards
from podsrl.trl.seen import SEEN
from podsrl.trl.token_kl import TokenDivergence
from podsrl.trl.twins import tell_sure_pairs

# Entries of TRL's batch. They go through its shuffle and its split into micro-batches.
NUM_ROWS = "objective_num_rows"
REFERENCE_REWARDS = "objective_reference_rewards"
ACCURACY = "objective_accuracy"
REFERENCE_HIDDEN = "objective_reference_hidden"
SEGMENTS = ("segment_pair", "segment_first", "segment_num")  # as branches.py makes them
PREFIX_REWARDS = "objective_prefix_rewards"
HEAD = "objective_head_log_odds"


def trained_tokens(inputs: dict[str, Any]) -> Tensor:
    """1 for tokens that the model wrote, (B, T): neither padding nor from tools or environments.

    inputs: TRL's batch. Tokens of tools are read as those of the prompt are, and never trained on.
    """
    mask_BT, tool_mask_BT = inputs["completion_mask"], inputs.get("tool_mask")
    return mask_BT if tool_mask_BT is None else mask_BT * tool_mask_BT


def check_turns(rollouts: Rollouts, objective: str) -> None:
    """Raise `ValueError` where nothing says which tokens are the model's, and so no turns."""
    if rollouts.generated[TOOL_MASK] is None:
        raise ValueError(
            f"objective={objective!r} compares turns, but rollout_func returns no env_mask, so "
            "that a rollout is one turn: return env_mask, 1 on what the model wrote and 0 on what "
            "came back, or choose 'dpo'."
        )


class ObjectiveStep:
    """Computes `args.objective`. Evaluation keeps TRL's loss.

    What an objective must know of a whole group is written into the batch, by `group_statistics`,
    before TRL shuffles its rows; `loss` reads it there.

    reference, token_kl: the steps of objectives that need them, else None.
    behaviours: knows whose each rollout is; None where one policy samples.
    """

    def __init__(
        self,
        host: GRPOTrainer,
        objective: Objective,
        *,
        reference: ReferenceRewards | None,
        token_kl: TokenDivergence | None,
        behaviours: Behaviours | None,
    ) -> None:
        self.host, self.objective = host, objective
        self.reference, self.token_kl, self.behaviours = reference, token_kl, behaviours
        self.prefix_rewards = PrefixRewards(host) if objective.needs_prefixes else None
        self.needs_whole_groups = objective.needs_whole_groups
        self.checks = places_of_checks(host.args, host.reward_func_names)
        self.head = RolloutHead(host) if host.args.rbrm_head else None
        # Without a head a twin of dpo on some rewards.
        self.knows_its_twin = host.args.objective != "rbrm" or self.head is not None

    def is_on(self) -> bool:
        """Whether this step is the objective's; a schedule may give it to TRL's loss."""
        return not self.host.args.is_policy_stage(self.host.state.global_step)

    def group_statistics(self, batch: GenerationBatch, output: dict[str, Any]) -> dict[str, Any]:
        """What the loss must know of this process's kept rows, beside TRL's batch `output`.

        Whatever the stage: a batch may be used in steps of the next stage.
        """
        selection = batch.selection
        assert selection is not None and batch.rollouts is not None
        if not self.knows_its_twin:
            self.knows_its_twin = tell_sure_pairs(self.host, selection.rewards_PN)
        if self.objective.needs_turns:
            check_turns(batch.rollouts, self.host.args.objective)
        num_rows, device = len(output["prompt_ids"]), self.host.accelerator.device
        rows = batch.share(num_rows)
        group_B = selection.group_B[rows].to(device)
        rewards_B = selection.rewards_PN.flatten()[selection.kept_rows_B[rows]].to(device)
        num_rows_each = torch.tensor(num_rows / self.host.args.steps_per_generation, device=device)
        statistics = {GROUP: group_B, REWARDS: rewards_B, NUM_ROWS: num_rows_each}
        if self.reference is not None:
            # One row per rollout, in order of the processes: a prompt's group may straddle two.
            rows_BN = gather_object(batch.rollouts.inputs)
            prompts = rows_BN[:: self.host.args.num_rollouts]
            statistics[REFERENCE_REWARDS] = self.reference.rewards(prompts)[group_B]
        if self.objective.needs_accuracy:
            accuracy_P = selection.rewards_per_func_PNF[..., 0].nanmean(dim=1)
            statistics[ACCURACY] = accuracy_P[selection.group_B[rows]].to(device)
        if self.behaviours is not None:
            statistics[BEHAVIOUR] = self.behaviours.of_rows(selection.kept_rows_B[rows]).to(device)
            if followers := self.behaviours.followers:
                statistics[FOLLOWER_ADVANTAGES] = followers.advantages(selection)[rows].to(device)
        statistics |= {name: values[rows].to(device) for name, values in batch.segments.items()}
        if self.head is not None:
            odds_S = self.head.read(batch)
            statistics[HEAD] = odds_S[selection.kept_rows_B[rows].to(device)]
        if self.prefix_rewards is not None:
            ids_BT, mask_BT = output["completion_ids"], output["completion_mask"]
            statistics[PREFIX_REWARDS] = self.prefix_rewards(batch, ids_BT, mask_BT)
        if self.token_kl is not None:
            statistics[REFERENCE_HIDDEN] = self.token_kl.pop_hidden()
        return statistics

    def verdicts(
        self, batch: GenerationBatch, rewards_PNF: Tensor, lengths_PN: Tensor | None
    ) -> Tensor | None:
        """What rollouts are chosen and paired by in place of their rewards; None where by these.

        The batch's `reward` stays that of the policy; which check rejected rollouts failed is told.
        """
        if not self.checks or not self.is_on():
            return None
        names, checks = [*self.host.reward_func_names], self.checks
        checked_PNF, most = rewards_PNF, self.host.args.veripo_max_tokens
        if lengths_PN is not None and most is not None:
            is_short_PN = (lengths_PN <= most).to(rewards_PNF)
            checked_PNF = torch.cat([rewards_PNF, is_short_PN[..., None]], dim=-1)
            names, checks = [*names, "max_tokens"], [*checks, len(names)]
        batch.first_rewards_PNF = rewards_PNF
        failed_PN = failed_check(checked_PNF, checks)
        batch.metrics |= {
            f"veripo/frac_failed_{names[place]}": (failed_PN == i).double().mean()
            for i, place in enumerate(checks)
        }
        return verdicts(checked_PNF, checks)

    def loss(self, model: Any, inputs: dict[str, Any], trl_loss: Callable[..., Tensor]) -> Tensor:
        """The objective of one micro-batch; its metrics go to the host's.

        trl_loss: computes TRL's, in steps that a schedule gives to it.
        """
        if not self.is_on():
            with self._policy_beta():
                return trl_loss(model, inputs)
        if self.behaviours is not None and self.behaviours.followers:
            self.behaviours.followers.take(model, inputs)
        batch, entropies_BT = self._kept_batch(model, inputs)
        loss, metrics = self.objective.function(batch, **self.host.args.objective_options())
        if batch.reference_log_probs_BT is not None:
            metrics["log_ratio"] = batch.mean_over_rows(batch.log_ratio_B().detach())
        metrics = {f"objective/{name}": value for name, value in metrics.items()}
        metrics["entropy"] = batch.mean_over_tokens(entropies_BT.detach())
        self._record(metrics)
        return loss / self.host.current_gradient_accumulation_steps

    @contextmanager
    def _policy_beta(self) -> Iterator[None]:
        """TRL's loss reads the weight of its KL term from the trainer: for a while, the stage's."""
        before, name = self.host.beta, self.objective.policy_beta
        if name is not None and getattr(self.host.args, name) is not None:
            self.host.beta = getattr(self.host.args, name)
        try:
            yield
        finally:
            self.host.beta = before

    def _kept_batch(self, model: Any, inputs: dict[str, Any]) -> tuple[KeptBatch, Tensor]:
        completion_mask, num_tokens = inputs["completion_mask"], inputs["num_items_in_batch"]
        mask_BT = trained_tokens(inputs)
        log_probs_BT, entropies_BT, _ = self.host._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.shape[1],
            compute_entropy=True,
            **{name: inputs[name] for name in SEEN if name in inputs},
        )
        # TRL computes these only where the policy has moved since it sampled.
        old_BT = inputs.get("old_per_token_logps")
        num_parts = self.host.accelerator.num_processes * self.host.args.steps_per_generation
        batch = KeptBatch(
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=log_probs_BT.detach() if old_BT is None else old_BT,
            mask_BT=mask_BT,
            rewards_B=inputs[REWARDS],
            advantages_B=inputs["advantages"],
            group_B=inputs[GROUP],
            reference_log_probs_BT=inputs.get("ref_per_token_logps"),
            num_rows=inputs[NUM_ROWS],
            num_tokens=num_tokens / num_parts,
            extras=self._extras(inputs),
        )
        assert entropies_BT is not None
        return batch, entropies_BT

    def _extras(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Further tensors of the rows, by the names that objectives read."""
        names = {
            "reference_rewards": REFERENCE_REWARDS,
            "behaviour_log_probs": "sampling_per_token_logps",
            "completion_ids": "completion_ids",
            "accuracy": ACCURACY,
            "behaviour": BEHAVIOUR,
            **{name: name for name in SEGMENTS},
            "prefix_rewards": PREFIX_REWARDS,
            "head_log_odds": HEAD,
        }
        extras = {name: inputs[key] for name, key in names.items() if inputs.get(key) is not None}
        if self.token_kl is not None and self.objective.needs_token_kl:
            extras["sequential_kl"] = self.token_kl.divergence(
                inputs[REFERENCE_HIDDEN], trained_tokens(inputs)
            )
        elif self.token_kl is not None:
            of_both = self.token_kl.end_log_probs(inputs[REFERENCE_HIDDEN], trained_tokens(inputs))
            extras["end_log_probs"], extras["reference_end_log_probs"] = of_both
        return extras

    def _record(self, metrics: dict[str, Tensor]) -> None:
        """Mean over processes, in one exchange; over pairs or tokens where a metric is their mean.

        What no process has any of is not logged, instead of a NaN for the whole step.
        """
        values = {name: value.detach().float() for name, value in metrics.items()}
        number_of = numbers_of_means(values)
        for name, number in number_of.items():
            # Not a product alone: a mean of none is NaN, and a NaN of real ones must show.
            count = values[number]
            values[name] = (values[name] * count).where(count > 0, 0.0)
        means = self.host.accelerator.reduce(torch.stack([*values.values()]), reduction="mean")
        numbers = dict(zip(values, means.tolist(), strict=True))
        for name, number_found in numbers.items():
            if name not in number_of:
                self.host._metrics["train"][name].append(number_found)
            elif numbers[number_of[name]] > 0:
                mean = number_found / numbers[number_of[name]]
                self.host._metrics["train"][name].append(mean)


def numbers_of_means(names: Iterable[str]) -> dict[str, str]:
    """The metrics that are means over some alone, and the metric that says over how many.

    Example: `objective/mu_frac_effective/1` is a mean over `objective/num_tokens/1`.
    """
    of_pairs = {f"objective/{name}": f"objective/{NUM_PAIRS}" for name in MEANS_OVER_PAIRS}
    found = {}
    for name in names:
        if name in of_pairs:
            found[name] = of_pairs[name]
        elif name.startswith(f"objective/{MU_EFFECTIVE}"):
            found[name] = name.replace(MU_EFFECTIVE, NUM_TOKENS)
    return found
