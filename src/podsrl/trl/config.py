"""PODSConfig: GRPOConfig with the fields of PODS. What they rule out stands in checks.py."""

from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from podsrl.core.advantage import ESTIMATORS
from podsrl.core.objectives import OBJECTIVES, Objective
from podsrl.core.select import RULES
from podsrl.trl.checks import check_settings
from podsrl.trl.defaults import fill_in_defaults
from podsrl.trl.objective_checks import (
    DEFAULT_REFERENCE_ROLLOUTS,
    GRPO,
    fill_in_objective_options,
)


def left_out(help_text: str) -> Any:
    """A field whose None stands for what its help says, mostly an objective's own value."""
    return field(default=None, metadata={"help": help_text})


@dataclass
class PODSConfig(GRPOConfig):
    """GRPOConfig in which n rollouts are sampled per prompt and m = `num_generations` are trained.

    Every batch size keeps its GRPO meaning, counted in kept rollouts: a step with
    `per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4` trains on 16
    rollouts of 4 prompts per device, whatever n is.

    Raises `ValueError` for n < m, unknown names, numbers out of range, batch sizes that cannot hold
    whole rollouts, and for settings that exclude each other or would have no effect.

    Example: `PODSConfig(num_generations=16, num_rollouts=64)` is the paper's main setting.
    """

    # Which advantages the kept rollouts get.
    advantage: str = field(
        default="grpo",
        metadata={
            "help": f"Estimator of the advantages: {', '.join(ESTIMATORS)}. Only grpo divides as "
            "scale_rewards says; docs/methods.md has the formulas."
        },
    )
    advantage_from: str | None = left_out(
        "Rewards that advantages compare with: 'kept' (the m kept rollouts, the "
        "paper's choice) or 'all' (the n sampled ones). Default: 'all' for advantage='krpo' "
        "and advantage_weights='stratified', which need them, else 'kept'."
    )
    advantage_weights: str = field(
        default="none",
        metadata={
            "help": "'stratified' weighs kept rollouts so that on average they teach what all n "
            "would, for rewards with few values (0/1). 'none' is the paper's choice."
        },
    )
    krpo_process_variance: float = field(
        default=1e-5,
        metadata={"help": "advantage='krpo': variance of the reward level's drift per rollout."},
    )
    krpo_observation_variance: float = field(
        default=1e-2,
        metadata={"help": "advantage='krpo': variance of a reward around its level."},
    )
    krpo_order: str = field(
        default="generation",
        metadata={"help": "advantage='krpo': rewards are read in 'generation' or 'sorted' order."},
    )
    krpo_innovation: bool = field(
        default=False,
        metadata={
            "help": "advantage='krpo': compare a reward with the estimate before it, not after it."
        },
    )

    # Options of objectives over pairs; None takes the objective's own value.
    pair_mode: str | None = left_out(
        "Pair objectives: 'extremes' pairs a group's i-th highest with its i-th lowest "
        "kept reward, 'all' every two of different reward. Default: extremes."
    )
    tdpo_alpha: float | None = left_out(
        "objective='tdpo2': weight of the divergence. Default: 0.5."
    )
    bmc_delta: float | None = left_out(
        "objective='bmc': most that a token's weight grows where the rollouts of a "
        "pair differ. Default: 2."
    )
    bmc_bridges: int | None = left_out(
        "objective='bmc': how often the worse rollout of a pair is written anew, from where it "
        "differs, for a better one that differs less. Default: 0."
    )
    rbrm_alpha: float | None = left_out(
        "objective='rbrm': log-odds of a pair per unit of reward. Default: 7.5; 0 with rbrm_head."
    )
    rbrm_head: str | None = left_out("objective='rbrm': head whose log-odds are added.")
    rbrm_refresh_steps: int | None = left_out("rbrm_head: steps between new fits. Default: none.")
    sdpo_segment: str | None = left_out(
        "objective='sdpo': turns that are compared: 'value_drop', from the turn over which sampled "
        "continuations get worse, or 'fixed'. Default: value_drop."
    )
    sdpo_branches: int | None = left_out(
        "sdpo_segment='value_drop': continuations sampled before each turn. Default: 4."
    )
    sdpo_first_turn: int | None = left_out("sdpo_segment='fixed': first turn. Default: 0.")
    sdpo_num_turns: int | None = left_out(
        "sdpo_segment='fixed': number of turns compared. Default: to the end."
    )
    veripo_policy_steps: int | None = left_out(
        "objective='veripo': steps of TRL's loss in turn with pairs. Default: 8."
    )
    veripo_pair_steps: int | None = left_out(
        "objective='veripo': steps of pairs in turn with TRL's loss. Default: 2."
    )
    veripo_drop_solved: float | None = left_out(
        "objective='veripo': share by which prompts that all n rollouts solve (first "
        "reward function 1) count less in pair steps. Default: 0.8."
    )
    veripo_policy_beta: float | None = left_out(
        "objective='veripo': weight of the KL term in the steps of TRL's loss; 0 for plain "
        "grpo there. Default: beta."
    )
    veripo_checks: list[str] | None = field(
        default=None,
        metadata={"help": "objective='veripo': rewards that are 1/2 or more where pairs choose."},
    )
    veripo_max_tokens: int | None = left_out(
        "objective='veripo': most tokens of a chosen rollout of pair steps. Default: any number."
    )

    # What is minimised on the kept rollouts.
    objective: str = field(
        default=GRPO,
        metadata={
            "help": "What is minimised on the kept rollouts: 'grpo' (TRL's loss, as loss_type says)"
            f" or one of {', '.join(OBJECTIVES)}. See docs/methods.md."
        },
    )
    beta: float | None = left_out(
        "Strength of the pull to the reference policy: TRL's KL coefficient for 'grpo',"
        " rewards per nat of log-ratio for the others. Default: the objective's own; 0 for "
        "those without a reference."
    )
    rebel_eta: float | None = left_out(
        "objective='rebel': nats that one unit of reward asks for. Default: 1."
    )
    value_beta: float | None = left_out(
        "objective='astar_po': between the best (towards 0) and the mean reward "
        "(large) of the reference as its value. Default: 0.5."
    )
    sapg_mu_max: float | None = left_out(
        "objective='sapg': most that a token of another behaviour weighs. Default: 3."
    )
    subtb_lambda: float | None = left_out(
        "objective='subtb': what a span weighs for each token more. Default: 1."
    )
    qrpo_ties: str | None = left_out(
        "objective='qrpo': the quantile of rewards that are equal: 'mid' of them, or 'upper' end, "
        "the published code's, weak with 0/1 rewards. Default: mid."
    )
    num_reference_rollouts: int | None = left_out(
        "astar_po, qrpo: rollouts sampled once per prompt from the reference policy. "
        f"Default: {DEFAULT_REFERENCE_ROLLOUTS}."
    )

    # What is sampled and what is kept of it.
    num_rollouts: int | None = left_out(
        "n: rollouts sampled per prompt, of which num_generations (m) are kept for the "
        "update. Default: 2 x num_generations. n = m is plain GRPO."
    )
    behaviours: list[dict[str, float]] | str | None = field(
        default=None,
        metadata={
            "help": "Policies that sample a group together, each its share of num_rollouts at its "
            """temperature: [{"temperature": 1.0, "share": 0.5}, {"temperature": 1.3, "share": """
            "0.5}]. With follower_entropy one is a LoRA adapter that learns for itself, with that "
            "bonus. Default: all n at `temperature`."
        },
    )
    rollout_mixture: list[dict[str, str]] | str | None = field(
        default=None, metadata={"help": "Models that write rollouts (docs/methods.md, collab)."}
    )
    rollout_mixture_share: float | None = left_out("Share of n that they write. Default: 1.")
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
    budget_cap: int | None = left_out(
        "budget='pooled': the most a prompt keeps. Default: all its n rollouts."
    )
    num_generations_start: int | None = left_out(
        "Rollouts kept per prompt at the start of training, growing in equal shares of "
        "num_generations_steps to num_generations. Default: num_generations throughout."
    )
    num_generations_steps: int | None = left_out(
        "Steps over which num_generations_start grows to num_generations; name them "
        "where a time budget ends training. Default: all steps of the training."
    )
    refill_constant_groups: int = field(
        default=0,
        metadata={
            "help": "Extra sampling rounds per generation batch, at most, in which prompts whose n "
            "rewards are all equal are replaced by other prompts of the training set."
        },
    )
    fast_sampling: bool | None = left_out(
        "Sample (without vLLM) by reading each prompt once for its n rollouts, instead "
        "of with generate. Default: on when n > m; with n = m training is TRL's bit for bit."
    )
    packed_update: bool | None = left_out(
        "Update on rows in which each prompt stands once, where that costs less than "
        "TRL's padded rows. Default: on when n > m; with n = m training is TRL's bit for bit."
    )
    skip_dead_rows: bool | None = left_out(
        "Leave kept rollouts of advantage 0 out of the update's passes; loss and "
        "gradients stay the same. Default: on where packed_update is and nothing but "
        "advantages teaches (beta 0, no entropy bonus)."
    )

    stop_after_idle_steps: int | None = left_out(
        "Stop with the reason after so many steps in a row of a gradient of exactly 0, "
        "as without a pair or where all rewards are equal. 0: never. Default: 20; 0 with n = m "
        "and objective='grpo'."
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
    sampling_rounds: int = field(
        default=0,
        metadata={
            "help": "Sample in rounds of so many rollouts (8, say), and only those prompts again "
            "whose rewards do not differ enough yet; num_rollouts is the most. 0: all at once."
        },
    )
    sampling_rounds_enough: int | None = left_out(
        "sampling_rounds: rarer rewards that settle a prompt. Default: m / 4."
    )
    sampling_rounds_give_up: int | None = left_out(
        "sampling_rounds: rollouts of equal reward after which a prompt is given up. "
        "Default: 2 m, at most n."
    )

    write_run: bool | None = left_out(
        "Write the run's settings, metrics, rollouts, learning curve and result into "
        "output_dir, for podsrl view, report and plan, and show progress. Default: where "
        "output_dir is given. podsrl train always does."
    )

    def __post_init__(self) -> None:
        if self.write_run is None:
            self.write_run = self.output_dir is not None
        # Before TRL counts with them: what None stands for in the fields of the objective.
        fill_in_objective_options(self)
        super().__post_init__()
        fill_in_defaults(self)
        check_settings(self)

    def own_advantages(self) -> bool:
        """Whether the advantages differ from those that TRL computes from the kept rewards."""
        chosen = (self.advantage, self.advantage_from, self.advantage_weights)
        return chosen != ("grpo", "kept", "none")

    def get_objective(self) -> Objective | None:
        """The objective; None for TRL's own loss."""
        return OBJECTIVES.get(self.objective)

    def objective_options(self) -> dict[str, Any]:
        """The keyword arguments of the objective's function."""
        objective = self.get_objective()
        names = [] if objective is None else objective.of_function()
        return {name: getattr(self, name) for name in names}

    def is_policy_stage(self, step: int) -> bool:
        """Whether the objective's schedule, if it has one, gives this step to TRL's own loss."""
        schedule = getattr(self.get_objective(), "schedule", None) or ()
        lengths = [getattr(self, name) for name in schedule]
        return bool(lengths) and step % sum(lengths) < lengths[0]
