"""The generation batch under way: what came in, what was sampled, what was chosen, whose it is.

Shape letters: P prompts, N sampled rollouts, M kept rollouts, F reward functions, B kept rows.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from podsrl.core.selection import Selection, Selector
from podsrl.trl.config import PODSConfig
from podsrl.trl.exchange import Exchange

Take = Callable[[list[Any]], list[Any]]
"""Of one value per row that this process sampled, one per row that it trains on."""


@dataclass(frozen=True)
class Rollouts:
    """Sampled rollouts of this process, one per row, and the rewards of all processes' rows."""

    inputs: list[dict[str, Any]]
    """The data set's row of each rollout."""
    generated: tuple[Any, ...]
    """The eight values of GRPOTrainer._generate; those that are lists have one entry per row."""
    extra_logs: dict[str, list[Any]]
    """Columns that reward functions logged."""
    rewards_per_func: Tensor

    @property
    def prompts(self) -> list[Any]:
        """The prompt of each rollout."""
        return [row["prompt"] for row in self.inputs]

    @property
    def lengths(self) -> list[int]:
        """Completion tokens of each rollout."""
        return [len(ids) for ids in self.generated[1]]


@dataclass
class GenerationBatch:
    """One batch from the data loader to its kept rollouts, on one process of several.

    Counted over all processes, kept rollout g and sampled rollout s belong to prompts g // m and
    s // n. Where the rows of a process are no multiple of m a group straddles two processes, and
    each needs rollouts that the other has sampled.
    """

    inputs: list[dict[str, Any]]
    """This process's rows of the data loader, which repeats a prompt m times."""
    num_kept: int
    """Kept per prompt in this batch: m, or fewer while a schedule grows."""
    args: PODSConfig
    process: int
    num_processes: int
    rollouts: Rollouts | None = None
    selection: Selection | None = None
    rows: list[int] = field(default_factory=list)
    """The rows that this process trains on, counted from the first that it sampled."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """What steps before the selection have to say of this batch."""
    counts: Counter[str] = field(default_factory=Counter)
    """What sampling in rounds has taken so far, see rounds.py."""
    first_rewards_PNF: Tensor | None = None
    """Rewards that speak for the policy, where those chosen from do not: of the prompts that the
    data loader drew, where others took their place; of the first round, where more followed."""
    old_log_probs: Callable[..., tuple[Tensor, Any]] | None = None
    """The policy's log-probs before the update, not computed yet; takes `advantages`."""

    def per_rollout(self) -> list[dict[str, Any]]:
        """`inputs`, one per kept rollout, as rows one per sampled rollout.

        A process with L of the kept rollouts samples L * n / m: of the same prompts.
        """
        num_kept, num_rollouts = self.args.num_generations, int(self.args.num_rollouts or 0)
        num_rows = len(self.inputs) * num_rollouts // num_kept
        first_kept, first_sampled = self.process * len(self.inputs), self.process * num_rows
        prompt_of = [s // num_rollouts for s in range(first_sampled, first_sampled + num_rows)]
        # A straddling group's first row may be the process before's: its prompt is our first row's.
        return [self.inputs[max(prompt * num_kept - first_kept, 0)] for prompt in prompt_of]

    def choose(
        self, rollouts: Rollouts, selection: Selection, extra_logs: dict[str, list[Any]]
    ) -> tuple[list[Any], tuple[Any, ...]]:
        """Of this process's kept rollouts the prompts, and what GRPOTrainer._generate returns.

        extra_logs: columns that rewards logged of all rollouts, which are cut in place.
        """
        self.rollouts, self.selection = rollouts, selection
        num_sampled, kept_rows = len(rollouts.inputs), selection.kept_rows_B.tolist()
        num_rows = num_sampled * self.num_kept // int(self.args.num_rollouts or 0)
        first = self.process * num_sampled
        self.rows = [row - first for row in kept_rows[self.share(num_rows)]]
        # A pooled budget moves kept rows between prompts, and so between processes.
        pooled = self.num_processes > 1 and self.args.budget == "pooled"
        take: Take = partial(_picked, rows=self.rows)
        tokens: Take = take
        numbers: Take = take
        if num_rows % self.num_kept or pooled:
            exchange = Exchange(
                kept_rows,
                num_sampled=num_sampled,
                own=self.share(num_rows),
                process=self.process,
                num_processes=self.num_processes,
                device=selection.kept_rows_B.device,
            )
            take, tokens, numbers = exchange.values, exchange.tokens, exchange.numbers
        # Every process must exchange the same columns, also those that only some have logged.
        for column in sorted(set(gather_object(list(extra_logs)))):
            extra_logs[column] = take(extra_logs.get(column, [None] * num_sampled))
        prompt_ids, completion_ids, _, completions, log_probs, _, _, _ = rollouts.generated
        kept_ids = tokens(prompt_ids), tokens(completion_ids)
        kept_log_probs = None if log_probs is None else numbers(log_probs)
        texts = take(completions)
        return take(rollouts.prompts), (*kept_ids, None, texts, kept_log_probs, {}, None, [])

    def old_log_probs_later(
        self, log_probs: Callable[..., Any], *rows: Any, **options: Any
    ) -> tuple[Tensor, None, None]:
        """Zeros for now: TRL asks for them before advantages say which rows teach."""
        self.old_log_probs = partial(log_probs, *rows, **options)
        *_, mask_BC, num_completion = rows
        return mask_BC.new_zeros((len(mask_BC), num_completion), dtype=torch.float32), None, None

    def share(self, num_rows: int) -> slice:
        """Where the `num_rows` kept rows of this process lie among those of all processes."""
        return slice(self.process * num_rows, (self.process + 1) * num_rows)


def use_old_log_probs(host: GRPOTrainer, batch: GenerationBatch, output: dict[str, Any]) -> None:
    """Compute what was put off, of the rows that teach; it stays 0 in those that do not."""
    assert batch.old_log_probs is not None
    checkpointing = host.args.gradient_checkpointing_kwargs
    with torch.no_grad(), disable_gradient_checkpointing(host.model, checkpointing):
        log_probs_BT, _ = batch.old_log_probs(advantages=output["advantages"])
    output["old_per_token_logps"] = log_probs_BT


def _picked(values: list[Any], *, rows: list[int]) -> list[Any]:
    return [values[row] for row in rows]


def selector_of(args: PODSConfig, weights_F: Tensor) -> Selector:
    """How the settings choose rollouts, m of each prompt, and value the kept."""
    advantage: dict[str, Any] = {
        "estimator": args.advantage,
        "source": args.advantage_from,
        "weights": args.advantage_weights,
    }
    if args.advantage == "grpo":
        advantage["scale"] = args.scale_rewards
    if args.advantage == "krpo":
        names = ("process_variance", "observation_variance", "order", "innovation")
        advantage |= {name: getattr(args, f"krpo_{name}") for name in names}
    return Selector(
        num_kept=args.num_generations,
        rule=args.selection_rule,
        budget=args.budget,
        budget_floor=args.budget_floor,
        budget_cap=args.budget_cap,
        weights_F=weights_F,
        aggregation=args.multi_objective_aggregation,
        advantage=advantage,
    )
