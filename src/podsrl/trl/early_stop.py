"""GRPOTrainer that stops sampling a group once no rollout of it could change the choice.

Shape letters: P groups, N rollouts per group, M kept rollouts, B = P * N rows, F reward functions.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import is_async_callable

from podsrl.sampling.early_stop import EarlyStop, early_stop_metrics, steps_between_decisions
from podsrl.trl.sampling import FastSampling

NOT_COLUMNS = ("prompt", "completion", "completion_ids")


class EarlyStopping(FastSampling):
    """Scores rollouts while others are sampled, when `args.early_stop` says so.

    Wrap sampling and rewards in `_stopping_early`; `_rewards_of_sampled` then gives the rewards,
    and `_early_stop_metrics` what was saved.
    """

    _monitor: EarlyStop | None = None
    _scorer: "Scorer | None" = None
    _ended_and_length_PN2: Tensor | None = None

    @contextmanager
    def _stopping_early(self, inputs: list[dict[str, Any]], prompts: list[Any]) -> Iterator[None]:
        if not self.args.early_stop:
            yield
            return
        self._scorer = Scorer(self, inputs, prompts)
        low, high = self.args.reward_bounds
        try:
            with EarlyStop(
                self._scorer,
                self.reward_weights,
                num_groups=len(prompts) // self.args.num_rollouts,
                num_rollouts=self.args.num_rollouts,
                num_kept=self.args.num_generations,
                bounds=(low, high),
                steps_between_decisions=steps_between_decisions(self.max_completion_length),
            ) as self._monitor:
                yield
        finally:
            self._monitor = self._scorer = None

    def _rewards_of_sampled(
        self, inputs: list[dict[str, Any]], prompts: list[Any], generated: tuple[Any, ...]
    ) -> Tensor:
        """Rewards (B of all processes, F), each computed once, be it during sampling or now."""
        if self._monitor is None or self._scorer is None:
            return self._calculate_rewards(inputs, prompts, generated[3], generated[1])
        rewards_BF = self._monitor.finish()
        self._scorer.write_logs(len(prompts))
        lengths_B = torch.tensor([len(ids) for ids in generated[1]])
        report_B2 = torch.stack([self._monitor.has_ended_B, lengths_B], dim=1)
        gathered = self.accelerator.gather(
            torch.cat([rewards_BF, report_B2.float()], dim=1).to(self.accelerator.device)
        )
        self._ended_and_length_PN2 = gathered[:, -2:].unflatten(0, (-1, self.args.num_rollouts))
        return gathered[:, :-2]

    def _early_stop_metrics(self, rewards_PN: Tensor, kept_PM: Tensor) -> dict[str, Tensor]:
        if self._ended_and_length_PN2 is None:
            return {}
        ended_PN, length_PN = self._ended_and_length_PN2.unbind(-1)
        self._ended_and_length_PN2 = None
        return early_stop_metrics(
            rewards_PN,
            kept_PM,
            has_ended_PN=ended_PN > 0,
            length_PN=length_PN,
            max_length=self.max_completion_length,
        )

    def _check_can_stop_early(self) -> None:
        """Raise `ValueError` when early_stop is on and model or tokenizer rule it out."""
        if not self.args.early_stop:
            return
        reason = self._why_generate()
        if any(
            getattr(self._tokenizer, name, None)
            for name in ("response_template", "response_schema")
        ):
            reason = "the tokenizer parses its own responses"
        if reason is not None:
            raise ValueError(f"early_stop needs our own sampling, but {reason}: leave it out.")


class Scorer:
    """Calls a trainer's reward functions as TRL calls them, on some of the rows of a batch."""

    def __init__(self, trainer: GRPOTrainer, inputs: list[dict[str, Any]], prompts: list[Any]):
        self.trainer, self.inputs, self.prompts = trainer, inputs, prompts
        self.extra: dict[str, dict[int, Any]] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = {}

    def __call__(self, rows: list[int], completion_ids: list[list[int]]) -> Tensor:
        """Rewards (rows, F) in float32, NaN where a function gives None."""
        names = [key for key in self.inputs[0] if key not in NOT_COLUMNS]
        arguments: dict[str, Any] = {
            "prompts": [self.prompts[row] for row in rows],
            "completions": self._decoded(completion_ids),
            "completion_ids": completion_ids,
            **{name: [self.inputs[row][name] for row in rows] for name in names},
            "trainer_state": self.trainer.state,
            "log_extra": partial(self._log_extra, rows),
            "log_metric": partial(self._log_metric, len(rows)),
        }
        functions = zip(self.trainer.reward_funcs, self.trainer.reward_func_names, strict=True)
        columns = [_call(function, name, arguments) for function, name in functions]
        return torch.tensor(columns, dtype=torch.float32).T

    def _decoded(self, completion_ids: list[list[int]]) -> list[Any]:
        texts = self.trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        if is_conversational({"prompt": self.prompts[0]}):
            return [[{"role": "assistant", "content": text}] for text in texts]
        return list(texts)

    def _log_extra(self, rows: list[int], column: str, values: list[Any]) -> None:
        self.extra.setdefault(column, {}).update(zip(rows, values, strict=True))

    def _log_metric(self, num_rows: int, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append((num_rows, value))

    def write_logs(self, num_rows: int) -> None:
        """Hand what the functions logged to TRL as if they had been called once.

        Stopped rollouts have None in extra columns. A metric whose name begins with `num_` is a
        count and is added up over the calls; others are averaged over the rollouts.
        """
        for column, value_of in self.extra.items():
            self.trainer._pending_extra_logs[column] = [value_of.get(i) for i in range(num_rows)]
        for name, values in self.metrics.items():
            total = math.fsum(value for _, value in values)
            if not name.split("/")[-1].startswith("num_"):
                weighted = math.fsum(count * value for count, value in values)
                total = weighted / sum(count for count, _ in values)
            self.trainer._pending_metrics[name].append(total)


def _call(function: Any, name: str, arguments: dict[str, Any]) -> list[float]:
    values = function(**arguments)
    if len(values) != len(arguments["completions"]):
        raise ValueError(
            f"reward function {name} gave {len(values)} rewards for "
            f"{len(arguments['completions'])} completions: with early_stop it is called with those "
            "that have just ended, and must give one reward for each."
        )
    return [math.nan if value is None else float(value) for value in values]


def refuse_early_stop(arguments: dict[str, Any]) -> None:
    """Raise `ValueError` when early_stop is on and the trainer's arguments rule it out."""
    args: Any = arguments.get("args")
    if args is None or not args.early_stop:
        return
    functions = arguments.get("reward_funcs")
    if args.reward_bounds is None:
        raise ValueError(
            "early_stop needs the lowest and highest weighted sum of rewards: set reward_bounds, "
            "for example [0.0, 1.0] for one reward that is 0 or 1 and has weight 1."
        )
    for function in functions if isinstance(functions, list) else [functions]:
        is_model = isinstance(function, (str, nn.Module))
        if is_model or is_async_callable(function):
            raise ValueError(
                f"early_stop calls reward functions in a thread while tokens are sampled, and "
                f"{function if isinstance(function, str) else type(function).__name__} is "
                f"{'a model' if is_model else 'async'}: give plain functions, or leave early_stop "
                "out."
            )
