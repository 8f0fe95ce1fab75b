"""PODSTrainer: TRL's GRPOTrainer, sampling n rollouts per prompt and training on m of them.

TRL's `num_generations` is m, so all of its arithmetic (batch sizes, loss denominators, importance
ratios, reference log-probs) concerns kept rollouts. Each step of ours is an object that is None
when it is off (`_build_steps`). tests/trainer/test_host_contract.py holds TRL to what is relied on.

Shape letters: P prompts, N sampled rollouts, F reward functions.
"""

import inspect
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from podsrl.core.rules import NEEDS_LENGTHS
from podsrl.core.schedule import num_kept_now
from podsrl.core.selection import Selection
from podsrl.packing.attention import without_shared_prefix
from podsrl.packing.log_probs import unwrap
from podsrl.packing.serve import LogProbs
from podsrl.runs.recorder import RunRecorder
from podsrl.trl.batch import GenerationBatch, Rollouts, selector_of, use_old_log_probs
from podsrl.trl.behaviours import Behaviours
from podsrl.trl.branches import Branching
from podsrl.trl.bridges import Bridging
from podsrl.trl.citation import CITATION, TITLE
from podsrl.trl.clock import PhaseClock, StepClock, peak_memory_gib
from podsrl.trl.dealing import deal
from podsrl.trl.early_stop import Stopping
from podsrl.trl.idle import GradientWatch
from podsrl.trl.mixture import sampler_of
from podsrl.trl.objective import ObjectiveStep
from podsrl.trl.prompt_order import ResumableSampler
from podsrl.trl.records import log_rollouts, record_metrics, use_advantages
from podsrl.trl.reference import ReferenceRewards
from podsrl.trl.refill import Refilling
from podsrl.trl.refusals import keyword_arguments, refuse_trainer
from podsrl.trl.rounds import InRounds
from podsrl.trl.sample_and_score import Prepared, SampleAndScore, groups_of
from podsrl.trl.seen import passes_of
from podsrl.trl.token_kl import TokenDivergence
from podsrl.trl.tool_calls import render_once
from podsrl.trl.vllm import engine_for_all_rollouts


class PODSTrainer(GRPOTrainer):
    """GRPOTrainer that samples n rollouts per prompt and updates on the m that a rule keeps.

    Takes exactly GRPOTrainer's arguments, with a `PODSConfig` as `args`. Reward functions run once,
    on all n rollouts; dropped rollouts cost no forward and no backward pass of any model. The rule
    sees the rewards of all processes and one seed, so every process keeps the same rollouts. With
    n = m training is GRPOTrainer's, bit for bit.

    Method: Policy Optimization with Down-Sampling, arXiv 2504.13818.

    Raises `TypeError` for an `args` that is no PODSConfig, `NotImplementedError` for what
    docs/trl.md lists.

    Example: `PODSTrainer(model="Qwen/Qwen3-0.6B", reward_funcs=accuracy, train_dataset=dataset,
    args=PODSConfig(num_generations=8, num_rollouts=32)).train()`.

    Overridden, in the order in which TRL calls them:

        _get_train_sampler                    prompts in an order that a resume repeats
        _prepare_inputs                       micro-batches dealt by prompt
        _generate_and_score_completions       one generation batch: open, let TRL work, close
        _generate                               n are sampled, scored, refilled, selected; m go on
        _generate_single_turn                   our sampler in generate's place
        _get_per_token_logps_and_entropies      log-probs, packed where that is cheaper
        _calculate_rewards                      the rewards of the kept, computed in _generate
        _compute_loss                         another objective than TRL's
        _get_grad_norm                        its norm, so that a run without a gradient ends
        log, _save_checkpoint, _load_optimizer_and_scheduler   what is written and read again
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "pods"]
    _name = "PODS"
    _paper: ClassVar[dict[str, str]] = {"title": TITLE, "id": "2504.13818", "citation": CITATION}

    batch: GenerationBatch | None = None  # the one under way, in training
    num_generations: int
    _buffered_inputs: list[dict[str, Any]] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        arguments = keyword_arguments(*args, **kwargs)
        with engine_for_all_rollouts(arguments["args"]):
            super().__init__(**arguments)
        refuse_trainer(self)
        render_once(self)
        self.clock = PhaseClock(self.accelerator.device)
        self._loss_inputs: dict[str, Any] = {}  # the micro-batch in its loss
        self.rollout_log: Any = None  # has `write_batch`, as runs/rollout_log.py
        self.resumed_from: Path | None = None  # the checkpoint that a training goes on from
        self._build_steps()
        self.add_callback(StepClock(self))
        self.recorder = RunRecorder(self) if self.args.write_run else None

    def _build_steps(self) -> None:
        args, objective = self.args, self.args.get_objective()
        self.selector = selector_of(args, self.reward_weights)
        self.own_advantages = args.own_advantages() or args.budget == "pooled"
        engine = self.use_vllm or self.use_transformers_continuous_batching
        self.prompt_once = sampler_of(self) if args.fast_sampling and not engine else None
        self.behaviours = Behaviours(self) if args.behaviours else None
        self.stopping = Stopping(self) if args.early_stop else None
        sample = SampleAndScore(self, super()._generate, self.stopping)
        self.sample = InRounds(self, sample) if args.sampling_rounds else sample
        self.branching = Branching(self) if args.sdpo_segment == "value_drop" else None
        self.bridging = Bridging(self) if args.bmc_bridges else None
        self.refilling = Refilling(self) if args.refill_constant_groups else None
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        passes = LogProbs(self.accelerator.autocast, packs=args.packed_update, is_sharded=sharded)
        self.kept_log_probs = passes if args.packed_update or args.skip_dead_rows else None
        self.watch = GradientWatch(self) if args.stop_after_idle_steps else None
        self.token_kl = TokenDivergence(self) if objective and objective.needs_hidden else None
        needs_reference = objective and objective.needs_reference_rewards
        self.reference = ReferenceRewards(self, self.clock) if needs_reference else None
        own = {name: getattr(self, name) for name in ("reference", "token_kl", "behaviours")}
        self.remembering = [each for each in (self.reference, self.behaviours) if each]
        self.objective_step = objective and ObjectiveStep(self, objective, **own)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        if not self.shuffle_dataset:
            return sampler
        return ResumableSampler(sampler, num_epochs_done=lambda: int(self.state.epoch or 0))

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before, inputs = self._buffered_inputs, super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        whole = bool(self.objective_step and self.objective_step.needs_whole_groups)
        if batches is before or not batches or not (self.kept_log_probs or whole):
            return inputs
        if len(batches) < 2 and self.accelerator.num_processes == 1:
            return inputs
        self._buffered_inputs = deal(batches, self.args, whole=whole, sees=self._is_vlm)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        is_constant = self.args.num_generations_start is None
        self.batch = batch = GenerationBatch(
            inputs,
            num_kept=self.num_generations if is_constant else num_kept_now(self.args, self.state),
            args=self.args,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        batch.prepared_rows = self.sample.first_rows(batch.rows_N)
        try:
            with groups_of(self, batch.num_kept):
                output = super()._generate_and_score_completions(batch.prepared_rows)
            if self.objective_step:
                output |= self.objective_step.group_statistics(batch, output)
            if self.own_advantages:
                use_advantages(self, batch, output)
            if batch.old_log_probs:
                use_old_log_probs(self, batch, output)
            record_metrics(self, batch, self.stopping)
            if self.rollout_log is not None and self.accelerator.is_main_process:
                log_rollouts(self, batch, self.rollout_log, output["advantages"])
        finally:
            self.batch = None
        return output

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        batch = self.batch
        if batch is None:
            return super()._generate(prompts)
        if batch.is_preparing:
            raise Prepared(prompts)
        batch.prompts = list(prompts)
        rollouts = self.sample(batch.rows_N)
        if self.refilling:
            rollouts = self.refilling(batch, rollouts, seed=self._selection_seed())
        self.clock.begin("selection")
        selection = self._select(batch, rollouts)
        if sample_winners := self.branching or self.bridging:
            rollouts, selection = sample_winners(batch, rollouts, selection)
            self.clock.begin("selection")
        # TRL logs this list of prompts and takes its length for the rows of this process.
        prompts[:], kept = batch.choose(self, rollouts, selection)
        self.clock.begin(None)
        return kept

    def _select(self, batch: GenerationBatch, rollouts: Rollouts) -> Selection:
        """Choose from the rewards of all processes; every process computes the same choice."""
        n, lengths_PN, ranked_PN = self.args.num_rollouts, None, None
        rewards_PNF = rollouts.rewards_per_func.unflatten(0, (-1, n))
        if self.args.selection_rule in NEEDS_LENGTHS or self.args.veripo_max_tokens is not None:
            device = self.accelerator.device
            lengths_PN = gather(torch.tensor(rollouts.lengths, device=device)).unflatten(0, (-1, n))
        if self.objective_step:
            ranked_PN = self.objective_step.verdicts(batch, rewards_PNF, lengths_PN)
        choose = replace(self.selector, num_kept=self.num_generations)
        seed = self._selection_seed()
        return choose(rewards_PNF, seed=seed, lengths_PN=lengths_PN, ranked_PN=ranked_PN)

    def _selection_seed(self) -> int:
        """One seed per generation batch, the same on all processes and after a resume."""
        place = self.state.global_step, self._step % self.args.gradient_accumulation_steps
        return random.Random("{}/{}/{}".format(self.args.seed, *place)).getrandbits(62)

    def _generate_single_turn(  # type: ignore[no-untyped-def]
        self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False
    ):
        if self.prompt_once and self.model.training:
            monitor = self.stopping.monitor if self.stopping else None
            # Not while the reference samples, which it does once the policy's are chosen.
            who = self.behaviours if self.batch and self.batch.selection is None else None
            samplers = who.samplers(len(prompt_ids)) if who else None
            if (sampled := self.prompt_once(prompt_ids, monitor, samplers)) is not None:
                return sampled
        continuous = self.use_transformers_continuous_batching
        with without_shared_prefix(unwrap(self.model)) if continuous else nullcontext():
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **options
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows = (model, input_ids, attention_mask, logits_to_keep)
        if self.token_kl and self.model.training:
            return self.token_kl.log_probs(self._log_probs, *rows, batch_size=batch_size, **options)
        return self._log_probs(*rows, batch_size=batch_size, **options)

    def _log_probs(  # type: ignore[no-untyped-def]
        self, *rows, batch_size=None, compute_entropy=False, compute_aux_loss=False, **multimodal
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of the rows that teach, packed where that serves the model and is cheaper, else TRL's."""
        padded = super()._get_per_token_logps_and_entropies
        options = {"batch_size": batch_size, "compute_entropy": compute_entropy}
        seen = {name: value for name, value in multimodal.items() if value is not None}
        skips_dead = self.args.skip_dead_rows and self.model.training
        if not self.kept_log_probs or compute_aux_loss or (seen and not skips_dead):
            return padded(*rows, **options, compute_aux_loss=compute_aux_loss, **multimodal)
        if seen:
            padded, options["of_rows"] = passes_of(padded, seen)
        if skips_dead:
            if self.batch is None:
                options["advantages"] = self._loss_inputs["advantages"]
                options["known_BT"] = self._loss_inputs.get("old_per_token_logps")
                options["counts_BT"] = self._loss_inputs.get("tool_mask")
            elif not self.use_vllm:  # whose importance ratios are logged of all rows
                return self.batch.old_log_probs_later(self.kept_log_probs, padded, *rows, **options)
        return (*self.kept_log_probs(padded, *rows, **options), None)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):  # type: ignore[no-untyped-def]
        if self.batch is None or self.batch.selection is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        selection = self.batch.selection
        return selection.rewards_per_func_PNF.flatten(0, 1)[selection.kept_rows_B]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._loss_inputs = inputs  # what the log-probs that the loss asks for are of
        if self.objective_step and self.model.training:
            return self.objective_step.loss(model, inputs, super()._compute_loss)
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.watch and norm is not None:
            self.watch.norms.append(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            self._metrics["train"]["memory/peak_gib"] = [peak_memory_gib(self.accelerator.device)]
        super().log(logs, start_time)
        if self.watch:
            self.watch.check(logs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial))
        for each in self.remembering if self.args.should_save else ():
            each.save(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.resumed_from = None if checkpoint is None else Path(checkpoint)
        if self.resumed_from is not None:
            for each in self.remembering:
                each.load(self.resumed_from)


# help() and editors show the arguments of the class whose place this one takes.
PODSTrainer.__signature__ = inspect.signature(GRPOTrainer)
