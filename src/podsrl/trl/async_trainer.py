"""TRL's asynchronous trainer with PODS: settings, and the worker in the place of TRL's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer, async_grpo_trainer

from podsrl.core.rules import RULES
from podsrl.core.selection import Selector
from podsrl.trl.async_loop import OVER_ALL, PodsRolloutWorker
from podsrl.trl.defaults import DEFAULT_ROLLOUTS_PER_KEPT


@dataclass
class AsyncPODSConfig(AsyncGRPOConfig):
    """AsyncGRPOConfig in which vLLM samples n rollouts per prompt and m = `num_generations` train.

    Batch sizes, the queue and its age count kept rows. `max_inflight_tasks`, which counts sampled
    rollouts, is by default n / m times TRL's.

    Raises `ValueError` for m below 2, n below m and an unknown rule.

    Example: `AsyncPODSConfig(num_generations=8, num_rollouts=32)`.
    """

    num_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "n: rollouts sampled per prompt, of which num_generations (m) are kept for the "
            "update. Default: 2 x num_generations. n = m is TRL's asynchronous GRPO."
        },
    )
    selection_rule: str = field(
        default="max_variance",
        metadata={"help": f"Rule that chooses the kept rollouts: {', '.join(RULES)}."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rollouts is None:
            self.num_rollouts = DEFAULT_ROLLOUTS_PER_KEPT * self.num_generations
        if not 2 <= self.num_generations <= self.num_rollouts:
            raise ValueError(
                f"num_generations (kept) is {self.num_generations} and num_rollouts (sampled) is "
                f"{self.num_rollouts}; 2 <= kept <= sampled is needed."
            )
        if self.selection_rule not in RULES:
            raise ValueError(
                f"selection_rule is {self.selection_rule!r}; choose one of {', '.join(RULES)}."
            )


class AsyncPODSTrainer(AsyncGRPOTrainer):
    """AsyncGRPOTrainer whose vLLM samples n rollouts per prompt, of which m reach the queue.

    Takes AsyncGRPOTrainer's arguments, with an `AsyncPODSConfig` as `args`. The reward functions
    run once, on all n, in TRL's child process; dropped rollouts never reach the trainer. `reward`
    and `rewards/*` are logged over all n, the mean of the kept as `pods/kept_reward_mean`.

    Raises `TypeError` for other settings and for a `rollout_worker` that is none of ours: another
    samples and scores by itself, and nothing would be dropped.

    Example: `AsyncPODSTrainer(model="Qwen/Qwen3-4B", reward_funcs=accuracy, train_dataset=dataset,
    args=AsyncPODSConfig(num_generations=8, num_rollouts=32)).train()`.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "async-grpo", "pods"]
    _name = "AsyncPODS"

    def __init__(self, model: str, *arguments: Any, **options: Any) -> None:
        args, worker = options.get("args"), options.get("rollout_worker")
        if arguments or not isinstance(args, AsyncPODSConfig):
            raise TypeError(
                f"args is a {type(args).__name__}; pass args=AsyncPODSConfig(...), and all "
                "arguments but the model by name."
            )
        if worker is not None and not isinstance(worker, PodsRolloutWorker):
            raise TypeError(
                f"rollout_worker is a {type(worker).__name__}, which keeps all it samples; pass a "
                "PodsRolloutWorker or leave it out."
            )
        if args.max_inflight_tasks < 0:
            args.max_inflight_tasks = _rollouts_in_flight(args)
        with _worker_that_selects(args):
            super().__init__(model, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]
        if "reward" in metrics:
            metrics["pods/kept_reward_mean"] = metrics["reward"]
        for name in [name for name in metrics if name.startswith(OVER_ALL)]:
            metrics[name.removeprefix(OVER_ALL)] = metrics.pop(name)
        super().log(logs, start_time)


def selector_of(args: AsyncPODSConfig) -> Selector:
    """How the settings choose; groups come one by one, so that none can give to another."""
    return Selector(num_kept=args.num_generations, rule=args.selection_rule)


def _rollouts_in_flight(args: AsyncPODSConfig) -> int:
    """As many as the trainer can take before they are too old, times n / m."""
    kept = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return max(args.max_staleness, 1) * kept * int(args.num_rollouts or 0) // args.num_generations


@contextmanager
def _worker_that_selects(args: AsyncPODSConfig) -> Iterator[None]:
    """TRL builds our worker in the enclosed block, for n rollouts.

    It builds its own in the middle of `AsyncGRPOTrainer.__init__` and has no setting for the class,
    so that the name by which it does so is exchanged for the time.
    """
    theirs = async_grpo_trainer.AsyncRolloutWorker

    def build(**options: Any) -> PodsRolloutWorker:
        ours = {"num_generations": args.num_rollouts, "selector": selector_of(args)}
        return PodsRolloutWorker(**options | ours, seed=args.seed)

    async_grpo_trainer.AsyncRolloutWorker = build
    try:
        yield
    finally:
        async_grpo_trainer.AsyncRolloutWorker = theirs
