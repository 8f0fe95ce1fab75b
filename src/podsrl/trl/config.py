"""PODSConfig: GRPOConfig with the fields of PODS."""

from dataclasses import dataclass, field
from math import inf

from podsrl.core.budget import FLOORS
from podsrl.core.schedule import smallest_unit
from podsrl.core.select import RULES
from podsrl.core.selection import BUDGETS
from podsrl.trl.advantage_config import AGGREGATION
from podsrl.trl.objective_config import ObjectiveConfig

DEFAULT_ROLLOUTS_PER_KEPT = 4


@dataclass
class PODSConfig(ObjectiveConfig):
    """GRPOConfig in which n rollouts are sampled per prompt and m = `num_generations` are trained.

    Every batch size keeps its GRPO meaning, counted in kept rollouts: a step with
    `per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4` trains on 16
    rollouts of 4 prompts per device, whatever n is.

    Raises `ValueError` for n < m, an unknown rule, advantage source or budget, for batch sizes that
    cannot hold whole rollouts, and for options that exclude each other.

    Example: `PODSConfig(num_generations=16, num_rollouts=64)` is the paper's main setting.
    """

    num_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "n: rollouts sampled per prompt, of which num_generations (m) are kept for the "
            "update. Default: 4 x num_generations. n = m is plain GRPO."
        },
    )
    selection_rule: str = field(
        default="max_variance",
        metadata={"help": f"Rule that chooses the kept rollouts: {', '.join(RULES)}."},
    )

    budget: str = field(
        default="per_prompt",
        metadata={
            "help": "How a step's kept rollouts are shared by its prompts: 'per_prompt' (m each) "
            "or 'pooled' (as many in all, more where rewards differ more). See docs/budget.md."
        },
    )
    budget_floor: int = field(
        default=0,
        metadata={"help": "budget='pooled': the least a prompt keeps, 0 or 2."},
    )
    budget_cap: int | None = field(
        default=None,
        metadata={"help": "budget='pooled': the most a prompt keeps. Default: all its n rollouts."},
    )
    num_generations_start: int | None = field(
        default=None,
        metadata={
            "help": "Rollouts kept per prompt at the start of training, growing in equal shares of "
            "num_generations_steps to num_generations. Default: num_generations throughout."
        },
    )
    num_generations_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps over which num_generations_start grows to num_generations; name them "
            "where a time budget ends training. Default: all steps of the training."
        },
    )
    refill_constant_groups: int = field(
        default=0,
        metadata={
            "help": "Extra sampling rounds per generation batch, at most, in which prompts whose n "
            "rewards are all equal are replaced by other prompts of the training set."
        },
    )

    fast_sampling: bool | None = field(
        default=None,
        metadata={
            "help": "Sample (without vLLM) by reading each prompt once for its n rollouts, instead "
            "of with generate. Default: on when n > m; with n = m training is TRL's bit for bit."
        },
    )
    packed_update: bool | None = field(
        default=None,
        metadata={
            "help": "Update on rows in which each prompt stands once, where that costs less than "
            "TRL's padded rows. Default: on when n > m; with n = m training is TRL's bit for bit."
        },
    )

    early_stop: bool = field(
        default=False,
        metadata={
            "help": "Stop sampling a group once no unfinished rollout could raise the variance of "
            "the kept rewards. It prefers rollouts that finish early: see docs/early_stop.md."
        },
    )
    reward_bounds: list[float] | None = field(
        default=None,
        metadata={
            "help": "Lowest and highest weighted sum of rewards, for early_stop. Default: those of "
            "the task."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rollouts is None:
            self.num_rollouts = DEFAULT_ROLLOUTS_PER_KEPT * self.num_generations
        self._check_selection()
        samples_more = self.num_rollouts > self.num_generations
        self.fast_sampling = samples_more if self.fast_sampling is None else self.fast_sampling
        self.packed_update = samples_more if self.packed_update is None else self.packed_update
        self._check_rows_per_process()
        self._check_budget()
        self._check_schedule()
        if self.early_stop:
            self._check_early_stop()

    def _check_selection(self) -> None:
        n, m = int(self.num_rollouts or 0), self.num_generations
        if n < m:
            raise ValueError(
                f"num_rollouts (n) is {n}, less than num_generations (m) = {m}. PODS keeps m of n "
                f"rollouts: raise num_rollouts to at least {m}, or lower num_generations."
            )
        if self.selection_rule not in RULES:
            raise ValueError(
                f"selection_rule is {self.selection_rule!r}; choose one of {', '.join(RULES)}."
            )

    def _check_rows_per_process(self) -> None:
        """Each process must sample a whole number of rollouts; groups themselves may straddle."""
        n, m = int(self.num_rollouts or 0), self.num_generations
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if rows * n % m:
            raise ValueError(
                "per_device_train_batch_size x steps_per_generation = "
                f"{self.per_device_train_batch_size} x {self.steps_per_generation} = {rows} kept "
                f"rollouts per process would come from {rows} x {n} / {m} sampled ones, which is "
                "no whole number. Make num_rollouts a multiple of num_generations (for example "
                f"{m * (n // m + 1)}), or the {rows} rows a multiple of {m}."
            )

    def _check_early_stop(self) -> None:
        """What stopping relies on; reward functions and bounds are checked by the trainer."""
        rows = self.per_device_train_batch_size * self.steps_per_generation
        needs = {
            "selection_rule='max_variance'": self.selection_rule == "max_variance",
            "num_rollouts above num_generations": self.num_rollouts > self.num_generations,
            "fast_sampling=True": self.fast_sampling,
            "use_vllm=False": not self.use_vllm,
            "use_transformers_continuous_batching=False": (
                not self.use_transformers_continuous_batching
            ),
            f"multi_objective_aggregation={AGGREGATION!r}": (
                self.multi_objective_aggregation == AGGREGATION
            ),
            "advantage_from='kept', as stopped rollouts have no reward": (
                self.advantage_from == "kept"
            ),
            "budget='per_prompt'": self.budget == "per_prompt",
            "num_generations_start=None": self.num_generations_start is None,
            "refill_constant_groups=0": self.refill_constant_groups == 0,
            "whole groups in each process: per_device_train_batch_size x steps_per_generation "
            f"= {rows} must be a multiple of num_generations": rows % self.num_generations == 0,
        }
        for need, is_met in needs.items():
            if not is_met:
                raise ValueError(f"early_stop needs {need}. Change it, or leave early_stop out.")
        bounds = self.reward_bounds
        if bounds is not None and not (len(bounds) == 2 and -inf < bounds[0] < bounds[1] < inf):
            raise ValueError(
                f"reward_bounds is {bounds}: give the lowest and the highest weighted sum of "
                "rewards, two different finite numbers in this order."
            )

    def _check_budget(self) -> None:
        n, m = int(self.num_rollouts or 0), self.num_generations
        if self.budget not in BUDGETS:
            raise ValueError(f"budget is {self.budget!r}; choose one of {', '.join(BUDGETS)}.")
        if self.budget_floor not in FLOORS:
            raise ValueError(f"budget_floor is {self.budget_floor}; choose 0 or 2.")
        if self.budget_cap is not None and not m <= self.budget_cap <= n:
            raise ValueError(
                f"budget_cap is {self.budget_cap}, but must lie between num_generations = {m}, "
                f"which is the mean over prompts, and num_rollouts = {n}."
            )
        if self.budget == "pooled" and self.multi_objective_aggregation != AGGREGATION:
            raise ValueError(
                f"budget='pooled' needs multi_objective_aggregation={AGGREGATION!r}, because TRL's "
                "other one reads groups of equal size. Set one of the two to its default."
            )
        if self.refill_constant_groups < 0:
            raise ValueError(
                f"refill_constant_groups is {self.refill_constant_groups}; give the largest number "
                "of extra sampling rounds, 0 for none."
            )

    def _check_schedule(self) -> None:
        """A micro-batch has batch_size x kept / m rows, which must be whole at every stage."""
        start, m = self.num_generations_start, self.num_generations
        steps = self.num_generations_steps
        if steps is not None and (start is None or steps < 1):
            raise ValueError(
                f"num_generations_steps is {steps}: give 1 or more, together with "
                "num_generations_start, or leave it out."
            )
        if start is None:
            return
        unit = smallest_unit(m, self.per_device_train_batch_size)
        if not 2 <= start <= m or start % unit:
            raise ValueError(
                f"num_generations_start is {start}, but must lie between 2 and num_generations = "
                f"{m} and be a multiple of {unit}, so that micro-batches of "
                f"per_device_train_batch_size = {self.per_device_train_batch_size} shrink to whole "
                f"rows. A per_device_train_batch_size that is a multiple of {m} allows any."
            )
