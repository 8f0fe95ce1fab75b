"""The generation batch under way: what came in, what was sampled, what was chosen, whose it is.

Shape letters: P prompts, N sampled rollouts, M kept rollouts, F reward functions, B kept rows.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from podsrl.core.selection import Selection, Selector
from podsrl.trl.behaviours_checks import parts_of_policies
from podsrl.trl.config import PODSConfig
from podsrl.trl.exchange import Exchange, Picked, exchanged

# Places of what GRPOTrainer._generate returns, as in exchange.TRAVELS.
COMPLETION_IDS, TOOL_MASK, COMPLETIONS, EXTRA_FIELDS, IMAGES = 1, 2, 3, 5, 6


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
    prompts: list[Any]
    """The prompt of each rollout, as TRL has made it of the row."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that the model wrote of each rollout; those of tools and environments are none."""
        if self.generated[TOOL_MASK] is not None:
            return [sum(mask) for mask in self.generated[TOOL_MASK]]
        return [len(ids) for ids in self.generated[COMPLETION_IDS]]


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
    rows_N: list[dict[str, Any]] = field(init=False)
    """Rows of this process, one per sampled rollout."""
    prepared_rows: list[dict[str, Any]] = field(default_factory=list)
    """The rows of which TRL has made `prompts`, before it asked for their rollouts."""
    prompts: list[Any] = field(default_factory=list)
    is_preparing: bool = False
    """Whether TRL is at work on other rows, and is to be left before it samples."""
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
    segments: dict[str, Tensor] = field(default_factory=dict)
    """Of each kept row the turns that are compared, see branches.py."""
    old_log_probs: Callable[..., tuple[Tensor, Any]] | None = None
    """The policy's log-probs before the update, not computed yet; takes `advantages`."""

    def __post_init__(self) -> None:
        self.rows_N = self._per_rollout()

    def _per_rollout(self) -> list[dict[str, Any]]:
        """`inputs`, one per kept rollout, as rows one per sampled rollout: copies, to write into.

        A process with L of the kept rollouts samples L * n / m: of the same prompts.
        """
        num_kept, num_rollouts = self.args.num_generations, int(self.args.num_rollouts or 0)
        num_rows = len(self.inputs) * num_rollouts // num_kept
        first_kept, first_sampled = self.process * len(self.inputs), self.process * num_rows
        prompt_of = [s // num_rollouts for s in range(first_sampled, first_sampled + num_rows)]
        # A straddling group's first row may be the process before's: its prompt is our first row's.
        rows = [self.inputs[max(prompt * num_kept - first_kept, 0)] for prompt in prompt_of]
        return [dict(row) for row in rows]

    def choose(
        self, host: GRPOTrainer, rollouts: Rollouts, selection: Selection
    ) -> tuple[list[Any], tuple[Any, ...]]:
        """Of this process's kept rollouts the prompts, and what GRPOTrainer._generate returns.

        What the host goes on with beside these is cut to the kept rollouts in place: columns that
        rewards logged, and which environment each is of. Environments themselves stay with the
        process that sampled; they are done with.
        """
        self.rollouts, self.selection = rollouts, selection
        exchange = self._exchange(host, len(rollouts.inputs))
        found = exchanged(
            exchange,
            generated=rollouts.generated,
            prompts=rollouts.prompts,
            logs=host._pending_extra_logs,
        )
        host._pending_extra_logs.update(found.logs)
        columns = [found.columns.get(i, column) for i, column in enumerate(rollouts.generated)]
        columns[EXTRA_FIELDS] = {}
        # Of a batch without images TRL wants none; a column `image` of None it reads itself.
        if not any(rollouts.generated[IMAGES] or []) and "image" not in rollouts.inputs[0]:
            columns[IMAGES] = None
        if host.environment_factories is not None:
            names = [row.get("environment") for row in rollouts.inputs]
            names = exchange.values(names if host._multi_environment else [None] * len(names))
            host._batch_environments = names
        return found.prompts, tuple(columns)

    def _exchange(self, host: GRPOTrainer, num_sampled: int) -> Exchange | Picked:
        """How this process comes by the kept rows that it trains on."""
        assert self.selection is not None
        kept_rows = self.selection.kept_rows_B.tolist()
        num_rows = num_sampled * self.num_kept // int(self.args.num_rollouts or 0)
        first = self.process * num_sampled
        self.rows = [row - first for row in kept_rows[self.share(num_rows)]]
        # A pooled budget moves kept rows between prompts, and so between processes.
        pooled = self.num_processes > 1 and self.args.budget == "pooled"
        if not (num_rows % self.num_kept or pooled):
            return Picked(self.rows)
        return Exchange(
            kept_rows,
            num_sampled=num_sampled,
            own=self.share(num_rows),
            process=self.process,
            num_processes=self.num_processes,
            device=host.accelerator.device,
        )

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
        parts=parts_of_policies(args),
        advantage=advantage,
    )
