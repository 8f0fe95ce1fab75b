"""PODSTrainer: TRL's GRPOTrainer, sampling n rollouts per prompt and training on m of them.

TRL's `num_generations` is m, so all of its arithmetic (batch sizes, loss denominators, importance
ratios, reference log-probs) concerns kept rollouts. Two methods of GRPOTrainer are wrapped:

    _generate            samples n per prompt, scores all, selects, and returns the kept m
    _calculate_rewards   hands back the rewards of the kept m, computed above

and `_generate_and_score_completions`, which calls both, is wrapped to set the metrics right;
`_get_train_sampler`, to give a resumed run the order of prompts it would have had (sampler.py).
Sampling and log-probs themselves are made cheaper in rollout/hook.py and update/hook.py;
objective/hook.py minimises another objective than TRL's where `objective` asks for one.
tests/trainer/test_host_contract.py holds TRL to the names, signatures and order used here.

Shape letters: P prompts, N sampled rollouts, M kept rollouts.
"""

import inspect
import random
from typing import Any, ClassVar

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from trl import GRPOTrainer

from podsrl.core.advantage import advantages, masked_advantages
from podsrl.core.rules import NEEDS_LENGTHS
from podsrl.core.schedule import num_kept
from podsrl.core.selection import Selection, choose
from podsrl.trl.checks import default_output_dir, refuse_unsupported
from podsrl.trl.clock import PhaseClock, peak_memory_gib
from podsrl.trl.config import PODSConfig
from podsrl.trl.early_stop import EarlyStopping, refuse_early_stop
from podsrl.trl.objective import ObjectiveHook
from podsrl.trl.packed import PackedUpdate
from podsrl.trl.prompt_order import ResumableSampler
from podsrl.trl.refill import Rollouts
from podsrl.trl.refilling import Refilling
from podsrl.trl.step_clock import StepClock

TITLE = "Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning"
CITATION = f"""@article{{xu2025pods,
    title   = {{{TITLE}}},
    author  = {{Yixuan Even Xu and Yash Savani and Fei Fang and J. Zico Kolter}},
    year    = 2025,
    eprint  = {{arXiv:2504.13818}},
}}"""


class PODSTrainer(EarlyStopping, Refilling, ObjectiveHook, PackedUpdate, GRPOTrainer):
    """GRPOTrainer that samples n rollouts per prompt and updates on the m that a rule keeps.

    Takes exactly GRPOTrainer's arguments, with a `PODSConfig` as `args`. Reward functions run once,
    on all n rollouts; dropped rollouts cost no forward and no backward pass of any model. The rule
    sees the rewards of all processes and one seed, so every process keeps the same rollouts. With
    n = m training is GRPOTrainer's, bit for bit.

    Method: Policy Optimization with Down-Sampling, arXiv 2504.13818.

    Raises `TypeError` for an `args` that is no PODSConfig, `NotImplementedError` for tools,
    environments, `rollout_func` and models with images.

    Example: `PODSTrainer(model="Qwen/Qwen3-0.6B", reward_funcs=accuracy, train_dataset=dataset,
    args=PODSConfig(num_generations=8, num_rollouts=32)).train()`.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "pods"]
    _name = "PODS"
    _paper: ClassVar[dict[str, str]] = {"title": TITLE, "id": "2504.13818", "citation": CITATION}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs)
        refuse_unsupported(bound.arguments)
        refuse_early_stop(bound.arguments)
        if bound.arguments.get("args") is None:
            bound.arguments["args"] = PODSConfig(default_output_dir(bound.arguments["model"]))
        super().__init__(*bound.args[1:], **bound.kwargs)
        if self._is_vlm:
            raise NotImplementedError(
                "PODSTrainer does not support models with images yet: pass a tokenizer as "
                "processing_class, or use GRPOTrainer."
            )
        self._check_can_stop_early()
        self._check_can_refill()
        self._check_objective()
        self.clock = PhaseClock(self.accelerator.device)
        self._inputs: list[dict[str, Any]] | None = None
        self._selection: Selection | None = None
        self._sampled: tuple[Any, ...] = ()  # rows and rollouts of the batch, for the log
        self.rollout_log: Any = None  # has `write_batch`, as runs/rollout_log.py
        self.add_callback(StepClock(self))

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        return ResumableSampler(sampler, self._epoch) if self.shuffle_dataset else sampler

    def _epoch(self) -> int:
        """Epochs that are complete."""
        return int(self.state.epoch or 0)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._inputs = inputs
        self.num_generations = num_kept(self.args, self.state)
        try:
            output = super()._generate_and_score_completions(inputs)
            if self.args.own_advantages() or self.args.budget == "pooled":
                self._use_advantages(output)
            self._record_metrics()
            if self.rollout_log is not None and self.accelerator.is_main_process:
                self._log_rollouts(self.rollout_log, output["advantages"])
        finally:
            self.num_generations = self.args.num_generations
            self._inputs = self._selection = self._refill = None
            self._sampled = ()
        return output

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._inputs is None:
            return super()._generate(prompts)
        rollouts = self._refilled(self._sample_and_score(self._per_rollout(self._inputs)))
        inputs, generated = rollouts.inputs, rollouts.generated
        with self.clock.phase("selection"):
            self._sampled = inputs, generated[3], generated[1]
            self._selection = self._select(rollouts.rewards_per_func)
            # TRL logs this list and takes its length for the rows of this process.
            prompts[:] = self._kept_of_this_process([row["prompt"] for row in inputs])
            return self._keep(generated)

    def _sample_and_score(self, inputs: list[dict[str, Any]]) -> Rollouts:
        prompts = [row["prompt"] for row in inputs]
        with self._stopping_early(inputs, prompts):
            with self.clock.phase("sampling"):
                generated = self._sample(prompts)
            with self.clock.phase("rewards"):
                rewards_per_func = self._rewards_of_sampled(inputs, prompts, generated)
        return Rollouts(inputs, generated, dict(self._pending_extra_logs), rewards_per_func)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):  # type: ignore[no-untyped-def]
        if self._selection is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self._selection.rewards_per_func_PNF.flatten(0, 1)[self._selection.kept_rows()]

    def _per_rollout(self, rows: list[Any]) -> list[Any]:
        """This process's rows, one per kept rollout, as rows one per sampled rollout.

        Kept rollout g and sampled rollout s, counted over all processes, belong to the prompts
        g // m and s // n. A process with L of the kept ones samples L * n / m: the same prompts.
        """
        num_kept, num_rollouts = self.args.num_generations, self.args.num_rollouts
        num_rows = len(rows) * num_rollouts // num_kept
        first_kept = self.accelerator.process_index * len(rows)
        first_sampled = self.accelerator.process_index * num_rows
        prompt_of = [s // num_rollouts for s in range(first_sampled, first_sampled + num_rows)]
        return [rows[max(prompt * num_kept - first_kept, 0)] for prompt in prompt_of]

    def _sample(self, prompts: list[Any]) -> tuple[Any, ...]:
        """TRL's own sampling of one rollout per row, told that a group has n rows."""
        num_kept, self.num_generations = self.num_generations, self.args.num_rollouts
        try:
            return super()._generate(prompts)
        finally:
            self.num_generations = num_kept

    def _select(self, rewards_per_func: Tensor) -> Selection:
        """Choose from the rewards of all processes; every process computes the same choice."""
        rewards_per_func_PNF = rewards_per_func.unflatten(0, (-1, self.args.num_rollouts))
        rewards_PN = self._combined(rewards_per_func_PNF)
        kept_PN = choose(
            rewards_PN,
            self.num_generations,
            rule=self.args.selection_rule,
            budget=self.args.budget,
            floor=self.args.budget_floor,
            cap=self.args.budget_cap,
            seed=self._selection_seed(),
            lengths_PN=self._lengths(),
        )
        return Selection(rewards_per_func_PNF, rewards_PN, kept_PN, self._first_rewards())

    def _lengths(self) -> Tensor | None:
        """Tokens of the rollouts of all processes, (P, N), where the rule looks at them."""
        if self.args.selection_rule not in NEEDS_LENGTHS:
            return None
        _, _, completion_ids = self._sampled
        device = self.accelerator.device
        lengths = gather(torch.tensor([len(ids) for ids in completion_ids], device=device))
        return lengths.unflatten(0, (-1, self.args.num_rollouts))

    def _selection_seed(self) -> int:
        """One seed per generation batch, the same on all processes and after a resume."""
        micro_step = self._step % self.args.gradient_accumulation_steps
        text = f"{self.args.seed}/{self.state.global_step}/{micro_step}"
        return random.Random(text).getrandbits(62)

    def _keep(self, generated: tuple[Any, ...]) -> tuple[Any, ...]:
        """This process's kept rollouts out of what all processes sampled."""
        keep = self._kept_of_this_process
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = self._pending_extra_logs.get(column, [None] * len(generated[0]))
            self._pending_extra_logs[column] = keep(values)
        prompt_ids, completion_ids, _, completions, log_probs, _, _, _ = generated
        kept_ids = keep(prompt_ids), keep(completion_ids)
        log_probs = None if log_probs is None else keep(log_probs)
        return (*kept_ids, None, keep(completions), log_probs, {}, None, [])

    def _kept_of_this_process(self, values: list[Any]) -> list[Any]:
        """Of one value per rollout that this process sampled, those of the rows it trains on."""
        rows = self._rows_of_this_process(len(values))
        if self._groups_straddle(len(rows)):
            values = gather_object(values)
        return [values[row] for row in rows]

    def _groups_straddle(self, num_rows: int) -> bool:
        several = self.accelerator.num_processes > 1
        return num_rows % self.num_generations != 0 or (several and self.args.budget == "pooled")

    def _rows_of_this_process(self, num_sampled: int) -> list[int]:
        """Kept rows of this process in its own rollouts, or in everybody's if groups straddle."""
        assert self._selection is not None
        num_rows = num_sampled * self.num_generations // self.args.num_rollouts
        first = self.accelerator.process_index * num_rows
        rows = self._selection.kept_rows()[first : first + num_rows].tolist()
        if self._groups_straddle(num_rows):
            return rows
        return [row - self.accelerator.process_index * num_sampled for row in rows]

    def _use_advantages(self, output: dict[str, Any]) -> None:
        """Put the advantages that the settings ask for in the place of TRL's."""
        assert self._selection is not None
        selection, options = self._selection, self.args.advantage_options()
        if self.args.budget == "pooled":
            advantages_PN = masked_advantages(selection.rewards_PN, selection.kept_PN, **options)
            all_advantages = advantages_PN[selection.kept_PN]
        else:
            all_advantages = advantages(
                selection.rewards_PN, selection.kept_PM, **options
            ).flatten()
        num_rows = output["advantages"].shape[0]
        first = self.accelerator.process_index * num_rows
        output["advantages"] = all_advantages[first : first + num_rows].to(output["advantages"])
        logged = self._logs["advantages"]
        for _ in range(min(len(logged), len(all_advantages))):
            logged.pop()
        logged.extend(all_advantages.tolist())

    def _record_metrics(self) -> None:
        """TRL's reward metrics over all n instead of the kept m, and `pods/` for the kept ones."""
        assert self._selection is not None
        metrics = self._metrics["train"]
        is_stratified = self.args.advantage_weights == "stratified"
        over_all = self._selection.reward_metrics(self.reward_weights, self.reward_func_names)
        values = over_all | self._selection.kept_metrics(stratified=is_stratified)
        values |= self._refill_metrics()
        if self.args.early_stop:
            values |= self._early_stop_metrics(self._selection.rewards_PN, self._selection.kept_PM)
        numbers = torch.stack(list(values.values())).tolist()
        for name, number in zip(values, numbers, strict=True):
            if name in over_all:
                metrics[name][-1] = number
            else:
                metrics[name].append(number)

    def _log_rollouts(self, log: Any, advantages_B: Tensor) -> None:
        """Write what the main process sampled in this batch; other processes log nothing."""
        assert self._selection is not None
        inputs, completions, completion_ids = self._sampled
        rows = self._rows_of_this_process(len(completions))
        log.write_batch(
            self.state.global_step + 1,
            self._selection,
            inputs[:: self.args.num_rollouts],
            completions,
            [len(ids) for ids in completion_ids],
            advantages=dict(zip(rows, advantages_B.tolist(), strict=True)),
            rule=self.args.selection_rule,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            peak = peak_memory_gib(self.accelerator.device)
            self._metrics["train"]["memory/peak_gib"] = [peak]
        super().log(logs, start_time)


# help() and editors show the arguments of the class whose place this one takes.
PODSTrainer.__signature__ = inspect.signature(GRPOTrainer)
