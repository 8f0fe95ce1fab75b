"""Stops sampling a group once no rollout of it could change the choice.

Shape letters: P groups, N rollouts per group, M kept rollouts, B = P * N rows, F reward functions.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.data_utils import is_conversational

from podsrl.core.selection import Selection
from podsrl.sampling.early_stop import EarlyStop, early_stop_metrics, steps_between_decisions

NOT_COLUMNS = ("prompt", "completion", "completion_ids")


class Stopping:
    """Scores rollouts while others are sampled.

    Wrap sampling and rewards in `watching`, and give the sampler `monitor`; `rewards` then gives
    each rollout's, computed once, and `metrics` what was saved.
    """

    def __init__(self, host: GRPOTrainer) -> None:
        self.host = host
        self.monitor: EarlyStop | None = None
        self._scorer: Scorer | None = None
        self._ended_and_length_PN2: Tensor | None = None

    @contextmanager
    def watching(self, inputs: list[dict[str, Any]], prompts: list[Any]) -> Iterator[None]:
        """Score what is sampled in the enclosed block, in a thread that ends with it."""
        args = self.host.args
        self._scorer = Scorer(self.host, inputs, prompts)
        low, high = args.reward_bounds
        try:
            with EarlyStop(
                self._scorer,
                self.host.reward_weights,
                num_groups=len(prompts) // args.num_rollouts,
                num_rollouts=args.num_rollouts,
                num_kept=args.num_generations,
                bounds=(low, high),
                steps_between_decisions=steps_between_decisions(self.host.max_completion_length),
            ) as self.monitor:
                yield
        finally:
            self.monitor = self._scorer = None

    def rewards(self, lengths: list[int]) -> Tensor:
        """Rewards (B of all processes, F) of what was sampled, NaN for stopped rollouts.

        lengths: tokens of this process's rollouts.
        """
        assert self.monitor is not None and self._scorer is not None
        rewards_BF = self.monitor.finish()
        self._scorer.write_logs(len(lengths))
        report_B2 = torch.stack([self.monitor.has_ended_B, torch.tensor(lengths)], dim=1)
        # Whether a rollout ended and how long it is travel with its rewards: one exchange, not two.
        gathered = self.host.accelerator.gather(
            torch.cat([rewards_BF, report_B2.float()], dim=1).to(self.host.accelerator.device)
        )
        num_rollouts = self.host.args.num_rollouts
        self._ended_and_length_PN2 = gathered[:, -2:].unflatten(0, (-1, num_rollouts))
        return gathered[:, :-2]

    def metrics(self, selection: Selection) -> dict[str, Tensor]:
        """What stopping saved in the rollouts that were chosen from."""
        assert self._ended_and_length_PN2 is not None
        ended_PN, length_PN = self._ended_and_length_PN2.unbind(-1)
        self._ended_and_length_PN2 = None
        return early_stop_metrics(
            selection.rewards_PN,
            selection.kept_PM,
            has_ended_PN=ended_PN > 0,
            length_PN=length_PN,
            max_length=self.host.max_completion_length,
        )


class Scorer:
    """Calls the host's reward functions as TRL calls them, on some of the rows of a batch."""

    def __init__(self, host: GRPOTrainer, inputs: list[dict[str, Any]], prompts: list[Any]):
        self.host, self.inputs, self.prompts = host, inputs, prompts
        self.extra: dict[str, dict[int, Any]] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = {}

    def __call__(self, rows: list[int], completion_ids: list[list[int]]) -> Tensor:
        """Rewards (rows, F) in float32, NaN where a function gives None."""
        names = [key for key in self.inputs[0] if key not in NOT_COLUMNS]
        arguments: dict[str, Any] = {
            "prompts": [self.prompts[row] for row in rows],
            "completions": decoded(self.host, self.prompts[0], completion_ids),
            "completion_ids": completion_ids,
            **{name: [self.inputs[row][name] for row in rows] for name in names},
            "trainer_state": self.host.state,
            "log_extra": partial(self._log_extra, rows),
            "log_metric": partial(self._log_metric, len(rows)),
        }
        functions = zip(self.host.reward_funcs, self.host.reward_func_names, strict=True)
        columns = [_call(function, name, arguments) for function, name in functions]
        return torch.tensor(columns, dtype=torch.float32).T

    def _log_extra(self, rows: list[int], column: str, values: list[Any]) -> None:
        self.extra.setdefault(column, {}).update(zip(rows, values, strict=True))

    def _log_metric(self, num_rows: int, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append((num_rows, value))

    def write_logs(self, num_rows: int) -> None:
        """Hand what the functions logged to TRL as if they had been called once.

        Stopped rollouts have None in extra columns.
        """
        for column, value_of in self.extra.items():
            self.host._pending_extra_logs[column] = [value_of.get(i) for i in range(num_rows)]
        for name, values in self.metrics.items():
            self.host._pending_metrics[name].append(over_calls(name, values))


def decoded(host: GRPOTrainer, prompt: Any, completion_ids: list[list[int]]) -> list[Any]:
    """Completions as reward functions are given them: text, or a message where the prompt is one's.

    prompt: any of the batch.
    """
    texts = host.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
    if is_conversational({"prompt": prompt}):
        return [[{"role": "assistant", "content": text}] for text in texts]
    return list(texts)


def over_calls(name: str, values: list[tuple[int, float]]) -> float:
    """Of a metric that a reward function logged in several calls, what one call would have logged.

    values: rollouts of each call, and its value. A metric whose name begins with `num_` is a count
    and is added up; others are averaged over the rollouts. (3, 1.0) and (1, 0.0) give 0.75.
    """
    if name.split("/")[-1].startswith("num_"):
        return math.fsum(value for _, value in values)
    weighted = math.fsum(count * value for count, value in values)
    return weighted / sum(count for count, _ in values)


def _call(function: Any, name: str, arguments: dict[str, Any]) -> list[float]:
    values = function(**arguments)
    if len(values) != len(arguments["completions"]):
        raise ValueError(
            f"reward function {name} gave {len(values)} rewards for "
            f"{len(arguments['completions'])} completions: with early_stop it is called with those "
            "that have just ended, and must give one reward for each."
        )
    return [math.nan if value is None else float(value) for value in values]
