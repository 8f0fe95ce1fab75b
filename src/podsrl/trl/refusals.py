"""What arguments, models and processes rule out: one error each, before training, with the remedy.

Settings that rule each other out are found in checks.py, without a model. What can be had, at a
price that grows with the number of processes, is warned of.
"""

import inspect
import logging
from typing import Any

from datasets import Dataset
from torch import nn
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

from podsrl.trl.behaviours_checks import num_followers
from podsrl.trl.config import PODSConfig
from podsrl.trl.followers import refuse_followers
from podsrl.trl.mixture import refuse_mixture
from podsrl.trl.needs import refuse_cases
from podsrl.trl.reward_checks import refuse_group_rewards
from podsrl.trl.sampling import settings_or_why_generate
from podsrl.trl.token_kl import refuse_hidden
from podsrl.trl.twins import tell_twin

logger = logging.getLogger(__name__)

# What every process receives grows with their number; within one node it is little.
MANY_PROCESSES = 8
# Arguments by which a rollout has turns, or is sampled elsewhere.
TURNS = ("tools", "environment_factory", "rollout_func")


def _default_output_dir(model: Any) -> str:
    """The folder of a trainer that was given no arguments: the model's name and -PODS."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return f"{name.rstrip('/').split('/')[-1]}-PODS"


def keyword_arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """What GRPOTrainer was to be given, by name, with a PODSConfig where `args` is left out.

    By name, so that another subclass of GRPOTrainer may stand between PODSTrainer and it, with
    parameters of its own: names that are not GRPOTrainer's are handed on.

    Raises `TypeError` as GRPOTrainer does, for too many arguments and for none, and for another
    trainer's `args`; `NotImplementedError` for what GRPOTrainer can do and PODSTrainer cannot.

    Example: ("Qwen/Qwen3-0.6B", accuracy) gives `model`, `reward_funcs` and `args`.
    """
    signature = inspect.signature(GRPOTrainer)
    others = {name: value for name, value in kwargs.items() if name not in signature.parameters}
    own = {name: value for name, value in kwargs.items() if name not in others}
    arguments = signature.bind(*args, **own).arguments | others
    refuse_arguments(arguments)
    if arguments.get("args") is None:
        arguments["args"] = PODSConfig(_default_output_dir(arguments["model"]), write_run=False)
    return arguments


def refuse_arguments(arguments: dict[str, Any]) -> None:
    """Raise for what GRPOTrainer can do and PODSTrainer cannot, and for another trainer's args."""
    args = arguments.get("args")
    if args is not None and not isinstance(args, PODSConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; PODSTrainer needs a PODSConfig, which takes the "
            "same fields and adds num_rollouts, selection_rule and advantage_from."
        )
    if args is not None and args.early_stop:
        _refuse_early_stop_arguments(args, arguments)
    if args is not None and arguments.get("rollout_func"):
        _refuse_rollout_function(args)
    if args is not None and any(arguments.get(name) for name in TURNS):
        _refuse_turns(args, arguments)
    elif args is not None:
        _refuse_one_turn(args)


def _refuse_one_turn(args: PODSConfig) -> None:
    objective = args.get_objective()
    if objective is not None and objective.needs_turns:
        raise NotImplementedError(
            f"objective={args.objective!r} compares turns, and without tools, environment_factory "
            "or rollout_func a rollout is one turn, on which it would be 'dpo': pass one of these, "
            "or choose 'dpo'."
        )


def refuse_trainer(host: GRPOTrainer) -> None:
    """Raise for what only a built trainer shows: its model, its data set, its processes.

    Warn where a word of the settings trains as another.
    """
    if host.args.early_stop:
        _refuse_early_stop(host)
    if host.args.refill_constant_groups and not isinstance(host.train_dataset, Dataset):
        raise ValueError(
            "refill_constant_groups draws rows of the training set by number, but it is a "
            f"{type(host.train_dataset).__name__}: pass a datasets.Dataset, or leave "
            "refill_constant_groups at 0."
        )
    if host.args.behaviours:
        _refuse_behaviours_generate(host)
    if num_followers(host.args):
        refuse_followers(host)
    if host.args.rollout_mixture:
        refuse_mixture(host)
    _refuse_objective(host)
    refuse_group_rewards(host)
    tell_twin(host)
    if host.accelerator.num_processes > MANY_PROCESSES and host.accelerator.is_main_process:
        _warn_of_exchange(host.args, host.accelerator.num_processes)


def _warn_of_exchange(args: PODSConfig, num_processes: int) -> None:
    """Say what it costs, and how it is avoided, that kept rollouts travel among many processes."""
    num_rows, m = args.per_device_train_batch_size * args.steps_per_generation, args.num_generations
    causes, remedies = [], []
    if num_rows % m:
        causes.append(f"groups straddle processes ({num_rows} kept rollouts each, groups of {m})")
        remedies.append(
            "make per_device_train_batch_size x steps_per_generation a multiple of "
            f"num_generations, such as {-(-num_rows // m) * m}"
        )
    if args.budget == "pooled":
        causes.append("budget='pooled' moves kept rollouts between prompts")
        remedies.append("set budget='per_prompt'")
    if not causes:
        return
    num_all = num_processes * num_rows
    # As trl/exchange.py sends them: token ids of 4 bytes, and log-probs of 8 where vLLM gives them.
    bytes_per_token = 12 if args.use_vllm else 4
    length = args.max_completion_length
    logger.warning(
        "%s: each of the %d processes receives all %d kept rollouts of every generation batch, "
        "their texts and %d bytes for each token%s. To keep them where they were sampled, %s.",
        " and ".join(causes),
        num_processes,
        num_all,
        bytes_per_token,
        f", up to {num_all * length * bytes_per_token / 2**20:.1f} MiB" if length else "",
        " and ".join(remedies),
    )


def _refuse_rollout_function(args: PODSConfig) -> None:
    objective = args.get_objective()
    if objective is not None and objective.needs_reference_rewards:
        raise NotImplementedError(
            f"objective={args.objective!r} samples from the reference model, but rollout_func "
            "samples from the policy: leave rollout_func out, or choose an objective that needs "
            "no rewards of the reference, such as 'agro'."
        )
    if args.sdpo_segment == "value_drop":
        raise NotImplementedError(
            "sdpo_segment='value_drop' goes on from the midst of a rollout, and rollout_func from "
            "the prompt: pass tools or environment_factory, or set sdpo_segment='fixed'."
        )


def _refuse_early_stop_arguments(args: PODSConfig, arguments: dict[str, Any]) -> None:
    for name in TURNS:
        if arguments.get(name):
            raise NotImplementedError(
                f"early_stop scores each rollout when its tokens end and stops the others "
                f"meanwhile, but with {name} tokens end before the rollout does: leave early_stop "
                "out; sampling_rounds saves rollouts in its place."
            )
    if args.reward_bounds is None:
        raise ValueError(
            "early_stop needs the lowest and highest weighted sum of rewards: set reward_bounds, "
            "for example [0.0, 1.0] for one reward that is 0 or 1 and has weight 1."
        )
    functions = arguments.get("reward_funcs")
    for function in functions if isinstance(functions, list) else [functions]:
        is_model = isinstance(function, (str, nn.Module))
        if is_model or is_async_callable(function):
            raise ValueError(
                f"early_stop calls reward functions in a thread while tokens are sampled, and "
                f"{function if isinstance(function, str) else type(function).__name__} is "
                f"{'a model' if is_model else 'async'}: give plain functions, or leave early_stop "
                "out."
            )


def _refuse_prefixes(host: GRPOTrainer) -> None:
    args, several = host.args, host.accelerator.num_processes > 1
    rows = args.per_device_train_batch_size * args.steps_per_generation
    if several and (rows % args.num_generations or args.budget == "pooled"):
        raise NotImplementedError(
            f"objective={args.objective!r} scores prefixes where their rollouts were sampled, but "
            f"groups straddle processes ({rows} kept rollouts each, groups of "
            f"{args.num_generations}, budget={args.budget!r}): make per_device_train_batch_size x "
            "steps_per_generation a multiple of num_generations, and set budget='per_prompt'."
        )


def _refuse_turns(args: PODSConfig, arguments: dict[str, Any]) -> None:
    """Raise where rollouts of several turns, or sampled elsewhere, do not fit."""
    objective = args.get_objective()
    reason = None
    if args.behaviours:
        reason = "behaviours says who samples a rollout by its place in the group"
    elif args.rollout_mixture:
        reason = "rollout_mixture writes one answer to one prompt"
    elif args.bmc_bridges:
        reason = "bmc_bridges goes on from the midst of a rollout, as of one turn"
    elif objective is not None and objective.needs_prefixes:
        reason = f"objective={args.objective!r} scores what stands before each token as an answer"
    name = next((name for name in TURNS if arguments.get(name)), None)
    if reason is not None and name is not None:
        raise NotImplementedError(
            f"{reason}, but {name} samples further turns of some rollouts alone, or elsewhere: "
            "leave one of the two out."
        )


def _refuse_behaviours_generate(host: GRPOTrainer) -> None:
    reason = settings_or_why_generate(host)
    if isinstance(reason, str):
        raise NotImplementedError(
            "behaviours needs our own sampling, as generate does not say how likely what it drew "
            f"was, but {reason}: leave behaviours out."
        )


def _refuse_early_stop(host: GRPOTrainer) -> None:
    found = settings_or_why_generate(host)
    reason = found if isinstance(found, str) else None
    if any(
        getattr(host._tokenizer, name, None) for name in ("response_template", "response_schema")
    ):
        reason = "the tokenizer parses its own responses"
    if reason is not None:
        raise ValueError(f"early_stop needs our own sampling, but {reason}: leave it out.")


def _refuse_objective(host: GRPOTrainer) -> None:
    objective = host.args.get_objective()
    if objective is None:
        return
    if host.aux_loss_enabled:
        raise NotImplementedError(
            f"objective={host.args.objective!r} does not add the load-balancing loss of mixture"
            "-of-experts models yet: set router_aux_loss_coef=0."
        )
    several = host.accelerator.num_processes > 1
    if objective.needs_whole_groups and several and host.args.budget == "pooled":
        raise NotImplementedError(
            f"objective={host.args.objective!r} needs whole groups, which budget='pooled' cuts "
            "where one process ends and the next begins: set budget='per_prompt', or train in "
            "one process."
        )
    if host.args.sdpo_segment == "value_drop":
        _refuse_branches(host, "sdpo_segment='value_drop'", "set sdpo_segment='fixed'")
    if host.args.bmc_bridges:
        _refuse_branches(host, "bmc_bridges", "leave bmc_bridges out", alone=True)
    if objective.needs_reference_rewards:
        _refuse_reference(host)
    if objective.schedule is not None and host.args.budget == "pooled":
        raise NotImplementedError(
            f"objective={host.args.objective!r} takes turns with TRL's loss, which cannot take "
            "micro-batches of whole groups of different sizes: set budget='per_prompt'."
        )
    if objective.needs_hidden:
        refuse_hidden(host)
    if objective.needs_prefixes:
        _refuse_prefixes(host)


def _refuse_branches(
    host: GRPOTrainer, what_samples: str, remedy: str, *, alone: bool = False
) -> None:
    """alone: whether it does not share its work with other processes."""
    cases = {
        "several processes, which would sample different numbers of them": (
            alone and host.accelerator.num_processes > 1
        ),
        "models that read images": host._is_vlm,
    }
    refuse_cases(f"{what_samples} samples continuations, which does not serve", cases, f"{remedy}.")


def _refuse_reference(host: GRPOTrainer) -> None:
    if host.is_fsdp_enabled or host.is_deepspeed_enabled:
        raise NotImplementedError(
            f"objective={host.args.objective!r} samples from the reference model, which is not "
            "supported with FSDP or DeepSpeed yet: train without them, or choose an objective "
            "that needs no rewards of the reference, such as 'agro'."
        )
    if host.use_transformers_continuous_batching:
        raise NotImplementedError(
            f"objective={host.args.objective!r} samples from the reference model, which "
            "continuous batching does not: set use_transformers_continuous_batching=False."
        )
