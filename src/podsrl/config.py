"""PODSConfig: GRPOConfig with the fields of PODS."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from podsrl.core.select import RULES

ADVANTAGE_SOURCES = ("kept", "all")
AGGREGATION = "sum_then_normalize"
DEFAULT_ROLLOUTS_PER_KEPT = 4


@dataclass
class PODSConfig(GRPOConfig):
    """GRPOConfig in which n rollouts are sampled per prompt and m = `num_generations` are trained.

    Every batch size keeps its GRPO meaning, counted in kept rollouts: a step with
    `per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4` trains on 16
    rollouts of 4 prompts per device, whatever n is.

    Raises `ValueError` for n < m, an unknown rule or advantage source, and for batch sizes that
    cannot hold whole rollouts (several processes only).

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
    advantage_from: str = field(
        default="kept",
        metadata={
            "help": "Rewards whose mean and standard deviation normalise the advantages: 'kept' "
            "(the m kept rollouts, the paper's choice) or 'all' (the n sampled ones)."
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_rollouts is None:
            self.num_rollouts = DEFAULT_ROLLOUTS_PER_KEPT * self.num_generations
        self._check_selection()
        samples_more = self.num_rollouts > self.num_generations
        self.fast_sampling = samples_more if self.fast_sampling is None else self.fast_sampling
        self.packed_update = samples_more if self.packed_update is None else self.packed_update
        self._check_rows_per_process()

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
        if self.advantage_from not in ADVANTAGE_SOURCES:
            raise ValueError(
                f"advantage_from is {self.advantage_from!r}; choose 'kept' (mean and standard "
                "deviation of the kept rollouts) or 'all' (of all sampled ones)."
            )
        if self.advantage_from == "all" and self.multi_objective_aggregation != AGGREGATION:
            raise ValueError(
                "advantage_from='all' needs multi_objective_aggregation="
                f"{AGGREGATION!r}, but it is {self.multi_objective_aggregation!r}: set one of the "
                "two to its default."
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
