"""GRPOTrainer that minimises an objective of ours on the kept rollouts.

Shape letters: B kept rows, T completion tokens, K rollouts of the reference per prompt.
"""

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer

from podsrl.core.objectives import KeptBatch, Objective
from podsrl.core.selection import Selection
from podsrl.trl.reference import ReferenceRewards
from podsrl.trl.token_kl import TokenDivergence

# Entries of TRL's batch. They go through its shuffle and its split into micro-batches.
GROUP = "objective_group"
REWARDS = "objective_rewards"
NUM_ROWS = "objective_num_rows"
REFERENCE_REWARDS = "objective_reference_rewards"
ACCURACY = "objective_accuracy"


class ObjectiveHook(TokenDivergence, ReferenceRewards, GRPOTrainer):
    """Puts `args.objective` in the place of TRL's loss; with 'grpo' nothing changes.

    What an objective must know of a whole group is written into the batch before TRL shuffles its
    rows. Evaluation keeps TRL's loss. The class that inherits provides `_selection`, and deals
    whole groups where `_needs_whole_groups` says so.
    """

    _selection: Selection | None
    _sampled: tuple[Any, ...]

    def _objective_now(self) -> Objective | None:
        """The objective of this step; None for TRL's own loss."""
        if self.args.is_policy_stage(self.state.global_step):
            return None
        return self.args.get_objective()

    def _needs_whole_groups(self) -> bool:
        objective = self.args.get_objective()
        return objective is not None and objective.needs_whole_groups

    def _check_objective(self) -> None:
        """Raise before training what the settings alone could not tell."""
        objective = self.args.get_objective()
        if objective is None:
            return
        if self.aux_loss_enabled:
            raise NotImplementedError(
                f"objective={self.args.objective!r} does not add the load-balancing loss of mixture"
                "-of-experts models yet: set router_aux_loss_coef=0."
            )
        several = self.accelerator.num_processes > 1
        if objective.needs_whole_groups and several and self.args.budget == "pooled":
            raise NotImplementedError(
                f"objective={self.args.objective!r} needs whole groups, which budget='pooled' cuts "
                "where one process ends and the next begins: set budget='per_prompt', or train in "
                "one process."
            )
        if objective.needs_reference_rewards:
            self._check_reference_sampling()
        if objective.schedule is not None and self.args.budget == "pooled":
            raise NotImplementedError(
                f"objective={self.args.objective!r} takes turns with TRL's loss, which cannot take "
                "micro-batches of whole groups of different sizes: set budget='per_prompt'."
            )
        if objective.needs_token_kl:
            self._check_token_divergence()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # Whatever the stage: a batch may be used in steps of the next stage.
        if self.model.training and self.args.get_objective() is not None:
            output |= self._group_statistics(len(output["prompt_ids"]))
        return output

    def _group_statistics(self, num_rows: int) -> dict[str, Any]:
        """What the loss must know of this process's kept rows, beside what TRL's batch holds."""
        selection, objective = self._selection, self.args.get_objective()
        assert selection is not None and objective is not None
        first = self.accelerator.process_index * num_rows
        rows = slice(first, first + num_rows)
        device = self.accelerator.device
        group_B = selection.group_B()[rows].to(device)
        statistics = {
            GROUP: group_B,
            REWARDS: selection.rewards_PN.flatten()[selection.kept_rows()[rows]].to(device),
            NUM_ROWS: torch.tensor(num_rows / self.args.steps_per_generation, device=device),
        }
        if objective.needs_reference_rewards:
            # One row per rollout, in order of the processes: a prompt's group may straddle two.
            prompts = gather_object(self._sampled[0])[:: self.args.num_rollouts]
            statistics[REFERENCE_REWARDS] = self._rewards_of_reference(prompts)[group_B]
        if objective.needs_accuracy:
            accuracy_P = selection.rewards_per_func_PNF[..., 0].nanmean(dim=1)
            statistics[ACCURACY] = accuracy_P[selection.group_B()[rows]].to(device)
        return statistics

    def _by_prompt(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        dealt = super()._by_prompt(batches)
        if not self._needs_whole_groups():
            return dealt
        # Fewer groups than micro-batches: all processes still have to make equally many passes.
        return [batch if len(batch[GROUP]) else _idle(batches[0]) for batch in dealt]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        objective = self._objective_now()
        if objective is None or not self.model.training:
            return super()._compute_loss(model, inputs)
        batch, entropies_BT = self._kept_batch(model, inputs)
        loss, metrics = objective.function(batch, **self.args.objective_options())
        if batch.reference_log_probs_BT is not None:
            metrics["log_ratio"] = batch.mean_over_rows(batch.log_ratio_B().detach())
        metrics = {f"objective/{name}": value for name, value in metrics.items()}
        metrics["entropy"] = batch.mean_over_tokens(entropies_BT.detach())
        self._record_objective(metrics)
        return loss / self.current_gradient_accumulation_steps

    def _kept_batch(self, model: Any, inputs: dict[str, Any]) -> tuple[KeptBatch, Tensor]:
        completion_mask, num_tokens = inputs["completion_mask"], inputs["num_items_in_batch"]
        log_probs_BT, entropies_BT, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], completion_mask], dim=1),
            completion_mask.shape[1],
            compute_entropy=True,
        )
        assert entropies_BT is not None
        # TRL computes these only where the policy has moved since it sampled.
        old_BT = inputs.get("old_per_token_logps")
        batch = KeptBatch(
            log_probs_BT=log_probs_BT,
            old_log_probs_BT=log_probs_BT.detach() if old_BT is None else old_BT,
            mask_BT=completion_mask,
            rewards_B=inputs[REWARDS],
            advantages_B=inputs["advantages"],
            group_B=inputs[GROUP],
            reference_log_probs_BT=inputs.get("ref_per_token_logps"),
            num_rows=inputs[NUM_ROWS],
            num_tokens=num_tokens
            / (self.accelerator.num_processes * self.args.steps_per_generation),
            extras=self._extras(model, inputs, log_probs_BT),
        )
        return batch, entropies_BT

    def _extras(
        self, model: Any, inputs: dict[str, Any], log_probs_BT: Tensor
    ) -> dict[str, Tensor]:
        """Further tensors of the rows, by the names that objectives read."""
        names = {
            "reference_rewards": REFERENCE_REWARDS,
            "behaviour_log_probs": "sampling_per_token_logps",
            "completion_ids": "completion_ids",
            "accuracy": ACCURACY,
        }
        extras = {name: inputs[key] for name, key in names.items() if inputs.get(key) is not None}
        if self._tracks_divergence():
            extras["sequential_kl"] = self._divergence_from_reference(inputs)
        return extras

    def _record_objective(self, metrics: dict[str, Tensor]) -> None:
        """Mean over processes, in one exchange."""
        values = torch.stack([value.detach().float() for value in metrics.values()])
        numbers = self.accelerator.reduce(values, reduction="mean").tolist()
        for name, number in zip(metrics, numbers, strict=True):
            self._metrics["train"][name].append(number)


def _idle(batch: dict[str, Any]) -> dict[str, Any]:
    """One row of the batch, without a reward, so that it teaches nothing."""
    row = {key: _first(value) for key, value in batch.items()}
    return row | {REWARDS: torch.full_like(batch[REWARDS][:1], torch.nan)}


def _first(value: Any) -> Any:
    shared = value is None or (isinstance(value, Tensor) and value.ndim == 0)
    return value if shared else value[:1]
