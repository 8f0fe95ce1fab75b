"""What a run is told: its own settings, and the parser of all, from flags or a mapping."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, get_type_hints

import torch
from trl import ModelConfig, TrlParser

from podsrl.models import DEFAULT_MODEL
from podsrl.plugins import load_plugins
from podsrl.runs.checks import check_names, check_values
from podsrl.runs.rollout_log import DEFAULT_LIMIT_MIB, MODES
from podsrl.runs.unanimous import DEFAULT_STOP, WINDOW
from podsrl.runs.words import check_words
from podsrl.tasks.majority import MAJORITY
from podsrl.tasks.prompts import LONG_PROMPTS
from podsrl.tasks.questions import QuestionArguments
from podsrl.trl.config import PODSConfig

# The others shape the learning rate by max_steps, which a run that ends by the clock never reaches.
STEADY_SCHEDULERS = ("constant", "constant_with_warmup")
UNREACHED_MAX_STEPS = 1_000_000
EVALUATE_EVERY = ("evaluate_every_seconds", "evaluate_every_steps")


@dataclass
class ClockArguments:
    """When a run ends, when it is evaluated, and whether its model is saved."""

    evaluate_every_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate, into curve.jsonl, whenever this many more seconds were trained."
        },
    )
    evaluate_every_steps: int | None = field(
        default=None,
        metadata={
            "help": "Evaluate, into curve.jsonl, before the first step, after every so many, and "
            "after the last."
        },
    )
    training_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Stop after the step in which this many seconds of training are reached: "
            "sampling, rewards, selection and update, not evaluating, saving or loading."
        },
    )
    save_model: bool = field(default=True, metadata={"help": "Save the trained model in model/."})

    def __post_init__(self) -> None:
        for name in ("training_seconds", "evaluate_every_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be above 0, or left out")
        steps = self.evaluate_every_steps
        if steps is not None and steps < 1:
            raise ValueError(f"evaluate_every_steps is {steps}: it must be at least 1, or left out")
        if steps is not None and self.evaluate_every_seconds is not None:
            raise ValueError(
                f"evaluate_every_steps is {steps} and evaluate_every_seconds "
                f"{self.evaluate_every_seconds:g}: leave one of them out"
            )


@dataclass
class RunArguments(ClockArguments, QuestionArguments):
    """What a run needs besides PODSConfig and the model's own options."""

    model: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": f"Hub id, local folder, or {DEFAULT_MODEL} (packaged)."},
    )
    train_limit: int | None = field(
        default=None, metadata={"help": "Use only this many training questions."}
    )
    evaluate_limit: int = field(
        default=256,
        metadata={"help": "Held-out questions of the evaluation before and after; 0 for none."},
    )
    evaluate_samples: int = field(
        default=0, metadata={"help": "Sampled answers per held-out question, besides the greedy."}
    )
    log_rollouts: str = field(
        default="auto",
        metadata={
            "help": "Write every sampled rollout to rollouts.jsonl.gz, for podsrl view: auto "
            f"(up to {DEFAULT_LIMIT_MIB:g} MiB a run), true (without limit), false."
        },
    )
    majority_stop: float | None = field(
        default=None,
        metadata={
            "help": "Reward majority: end the run when of so large a share of the prompts all "
            f"rollouts give one answer, in the mean of {WINDOW} logged steps; above 1: never. "
            f"Default: {DEFAULT_STOP}."
        },
    )
    long_prompts: str = field(
        default="refuse",
        metadata={
            "help": "Questions that leave the model no room to answer: refuse (do not start), or "
            "drop (leave them out)."
        },
    )
    prompt_probe: str | None = field(
        default=None,
        metadata={
            "help": "A head that podsrl probe fitted at the prompt: questions of which it predicts "
            "a chance of success outside prompt_probe_range are left out of training."
        },
    )
    prompt_probe_range: list[float] | None = field(
        default=None,
        metadata={"help": "Lowest and highest chance of success that stay. Default: 0.02 0.98."},
    )
    reward_timeout_seconds: float | None = field(
        default=None,
        metadata={
            "help": "End the run when one call of a reward function takes longer. Default: 30 and "
            "one more for each rollout."
        },
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on from the newest whole checkpoint in --output_dir."},
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Let --resume go on with settings that change training; config.json says from "
            "which step."
        },
    )

    def __post_init__(self) -> None:
        ClockArguments.__post_init__(self)
        QuestionArguments.__post_init__(self)
        self.log_rollouts = str(self.log_rollouts).lower()  # YAML reads true and false as booleans
        if self.log_rollouts not in MODES:
            raise ValueError(
                f"log_rollouts is {self.log_rollouts!r}: choose from {', '.join(MODES)}"
            )
        if self.long_prompts not in LONG_PROMPTS:
            raise ValueError(
                f"long_prompts is {self.long_prompts!r}: choose from {', '.join(LONG_PROMPTS)}"
            )
        for name in ("majority_gate", "majority_stop"):
            if getattr(self, name) is not None and MAJORITY not in (self.reward_funcs or ()):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but reward_funcs is {self.reward_funcs}: "
                    f"name {MAJORITY} there, or leave {name} out"
                )
        if self.majority_stop is not None and not self.majority_stop > 0:
            raise ValueError(
                f"majority_stop is {self.majority_stop}: a share above 0, or above 1 for never"
            )
        if (ends := self.prompt_probe_range) is not None:
            if self.prompt_probe is None:
                raise ValueError(f"prompt_probe_range is {ends}: name a prompt_probe, or leave it")
            if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
                raise ValueError(
                    f"prompt_probe_range is {ends}: two numbers from 0 to 1, the lower one first"
                )
        if self.evaluate_limit < 0:
            raise ValueError(f"evaluate_limit is {self.evaluate_limit}: it must be 0 or more")
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(f"train_limit is {self.train_limit}: it must be at least 1")


def check_clock(arguments: Any, config: Any) -> None:
    """Make max_steps a mere upper bound where the clock ends the run.

    arguments: the run's RunArguments. config: its PODSConfig, whose max_steps is set.

    Raises `ValueError` for evaluations of no questions, and for a learning rate that follows
    max_steps: two runs would each stand at another place of it when the time is up.
    """
    asking = [name for name in EVALUATE_EVERY if getattr(arguments, name) is not None]
    if asking and not arguments.evaluate_limit:
        raise ValueError(
            f"evaluate_limit is 0, but {asking[0]} asks for evaluations: set evaluate_limit to "
            "the number of held-out questions, for example 256"
        )
    if arguments.training_seconds is None:
        return
    scheduler = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    if scheduler not in STEADY_SCHEDULERS:
        raise ValueError(
            f"lr_scheduler_type is {scheduler}, which follows max_steps, but training_seconds ends "
            f"the run: choose {' or '.join(STEADY_SCHEDULERS)}"
        )
    if 0 < config.warmup_steps < 1:
        raise ValueError(
            f"warmup_steps is {config.warmup_steps}, a share of max_steps, but training_seconds "
            "ends the run: give a number of steps"
        )
    if config.max_steps <= 0:
        config.max_steps = UNREACHED_MAX_STEPS


OWNERS = (RunArguments, PODSConfig, ModelConfig)


class SettingsParser(TrlParser):
    """TRL's parser over our fields and theirs, with our defaults, checks and errors of one line."""

    def __init__(self, prog: str = "podsrl train") -> None:
        super().__init__(OWNERS, prog=prog)
        self.set_defaults(**default_settings())
        for action in self._actions:
            if action.dest == "report_to":  # to several at once, as its type has it
                action.nargs = "+"
        self._own_defaults = {action.dest: action.default for action in self._actions}

    def parse(
        self, words: Sequence[str], recipe: Mapping[str, Any] | None = None
    ) -> tuple[RunArguments, PODSConfig, ModelConfig]:
        """Return the settings of a recipe, over which those of the flags win.

        Raises `ValueError` naming the setting and the remedy.
        """
        settings = dict(recipe or {})
        environment = settings.pop("env", None) or {}  # as TRL's recipes have it
        check_names("setting", settings, setting_names(), "podsrl train --help all lists them")
        if not isinstance(environment, dict):
            raise ValueError(f"env is {environment!r}: write a mapping of environment variables")
        os.environ.update({name: str(value) for name, value in environment.items()})
        self.set_defaults_with_config(**settings)
        check_words(self, words, "podsrl train --help all")
        try:
            arguments, config, model_config = self.parse_args_into_dataclasses(args=list(words))
        except ImportError as error:  # of deepspeed and the like, where a setting asks for one
            raise ValueError(f"a setting needs what is not installed: {error}") from error
        return arguments, config, model_config

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As argparse does, and check what all settings are, wherever they were given."""
        namespace, rest = super().parse_known_args(*args, **options)
        given = vars(namespace)
        # A default is right by definition, also where its field's type does not say so.
        own = self._own_defaults
        changed = {name: given[name] for name in given if given[name] != own.get(name, name)}
        check_values(changed, setting_types())
        load_plugins(given["plugins"] or ())  # before the names of their rules are looked up
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def default_settings() -> dict[str, Any]:
    """Defaults that differ from TRL's: what a run on this machine should look like."""
    return {
        "output_dir": "runs/run",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": _has_fast_bfloat16(),
        # Without this transformers refuses bfloat16 on a CPU, also where the CPU is good at it.
        "use_cpu": not torch.accelerator.is_available(),
    }


@functools.cache
def setting_names() -> frozenset[str]:
    """Every name that a recipe may set."""
    return frozenset(field.name for owner in OWNERS for field in fields(owner) if field.init)


def parse_settings(settings: Mapping[str, Any]) -> tuple[RunArguments, PODSConfig, ModelConfig]:
    """Return what `podsrl train` makes of a recipe with these settings.

    Raises `ValueError` as it does, among others for an unknown name and for n < m.

    Example: `parse_settings({"num_generations": 4})[1].num_rollouts == 16`.
    """
    return SettingsParser().parse([], settings)


@functools.cache
def setting_types() -> dict[str, Any]:
    """The type of each setting, as its dataclass has it."""
    return {name: hint for owner in OWNERS for name, hint in get_type_hints(owner).items()}


def _has_fast_bfloat16() -> bool:
    """TRL trains in bfloat16 by default, which CPUs without instructions for it only emulate."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
