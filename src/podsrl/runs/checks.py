"""What can be said against settings before anything is loaded: their names, kinds and bounds."""

import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

# Bounds that TRL, transformers or torch would meet only when the model is loaded, the first
# rollouts are sampled or the first loss is computed; or never.
ABOVE_0 = (
    "temperature repetition_penalty num_train_epochs adam_epsilon logging_steps save_steps "
    "ddp_timeout reward_timeout_seconds"
)
AT_LEAST_0 = (
    "learning_rate weight_decay max_grad_norm warmup_steps beta epsilon epsilon_high "
    "evaluate_samples dataloader_num_workers refill_constant_groups budget_floor "
    "sampling_rounds"
)
AT_LEAST_1 = (
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps "
    "num_generations num_rollouts num_generations_start num_generations_steps num_iterations "
    "max_completion_length steps_per_generation generation_batch_size num_reference_rollouts "
    "save_total_limit lora_r budget_cap sampling_rounds_enough sampling_rounds_give_up"
)
Bound = tuple[Callable[[Any], bool], str]
BOUNDS: dict[str, Bound] = {
    **dict.fromkeys(ABOVE_0.split(), (lambda value: value > 0, "above 0")),
    **dict.fromkeys(AT_LEAST_0.split(), (lambda value: value >= 0, "0 or more")),
    **dict.fromkeys(AT_LEAST_1.split(), (lambda value: value >= 1, "at least 1")),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2"), (lambda value: 0 <= value < 1, "from 0 to below 1")
    ),
    **dict.fromkeys(
        ("seed", "data_seed"), (lambda value: 0 <= value < 2**32, f"from 0 to {2**32 - 1}")
    ),
    "top_p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "lora_dropout": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "top_k": (lambda value: value >= -1, "0 (no limit) or more"),
    "max_steps": (
        lambda value: value >= 1 or value == -1,
        "at least 1, or left out (-1) to train num_train_epochs",
    ),
}
CHOICES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}
# Text that YAML's true and false stand for, too.
ALSO_BOOLEAN = ("log_rollouts", "scale_rewards")
# Lists of which an item may be a mapping, which no flag's type can say.
OF_MAPPINGS = ("datasets", "test_datasets")
# Numbers that TRL lets be null, and then computes with.
NEVER_NULL = ("num_generations",)
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
WORDS_OF_MORE = {list: "a list", dict: "a mapping", types.NoneType: "null"}


def check_values(settings: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first setting of a wrong kind or out of its bounds.

    hints: the type of each setting.
    """
    for name, value in settings.items():
        if name in hints:
            _check_kind(name, value, hints[name])
            _check_bounds(name, value)


def _check_kind(name: str, value: Any, hint: Any) -> None:
    kinds = _kinds(hint)
    if name in ALSO_BOOLEAN:
        kinds = [*kinds, bool]
    if name in OF_MAPPINGS:
        kinds = [*kinds, list[str | dict]]
    if name in NEVER_NULL:
        kinds = [kind for kind in kinds if kind is not types.NoneType]
    if any(_is_of(value, kind) for kind in kinds):
        return
    known: dict[Any, str] = {**WORDS, **WORDS_OF_MORE}
    words = dict.fromkeys(known[typing.get_origin(k) or k] for k in kinds)
    hint_of_yaml = ""
    if isinstance(value, bool) and str in kinds:
        hint_of_yaml = "; YAML reads yes, no, on and off as true and false: put it in quotes"
    raise ValueError(f"{name} is {value!r}: it must be {' or '.join(words)}{hint_of_yaml}")


def _kinds(hint: Any) -> list[Any]:
    """The types that a setting may have; text stands for enumerations and what is parsed later."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(hint) for kind in _kinds(part)]
    if typing.get_origin(hint) is typing.Literal:
        return [type(value) for value in typing.get_args(hint)]
    if typing.get_origin(hint) is dict:
        return [dict]
    known = (*WORDS, *WORDS_OF_MORE)
    return [hint if hint in known or typing.get_origin(hint) is list else str]


def _is_of(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        of = _kinds(typing.get_args(kind)[0])
        return isinstance(value, list | tuple) and all(
            any(_is_of(item, one) for one in of) for item in value
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def _check_bounds(name: str, value: Any) -> None:
    if name in CHOICES and value is not None and value not in CHOICES[name]:
        raise ValueError(f"{name} is {value!r}: choose from {', '.join(CHOICES[name])}")
    if isinstance(value, list) and not all(
        math.isfinite(item) for item in value if isinstance(item, float)
    ):
        raise ValueError(f"{name} is {value}: its numbers must be finite")
    if name not in BOUNDS or isinstance(value, str | None):
        return
    is_within, words = BOUNDS[name]
    if not math.isfinite(value):
        words = f"a finite number, {words}"
    elif is_within(value):
        return
    raise ValueError(f"{name} is {value}: it must be {words}")


def check_names(what: str, given: Iterable[Any], known: Iterable[str], otherwise: str) -> None:
    """Raise `ValueError` for the first name that is not known, with those close to it.

    otherwise: what to do where no known name is close.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else otherwise
            raise ValueError(f"unknown {what}: {name}; {hint}")


def check_share(name: str, share: Any) -> None:
    """Raise `ValueError` for what is no share of a best accuracy."""
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 < share <= 1:
        raise ValueError(f"{name} is {share!r}: give a number above 0 and at most 1, such as 0.95")


def check_output(folder: Path) -> None:
    """Raise `ValueError` where a run folder cannot be made: a file in its place, no permission."""
    place = folder.absolute()
    if place.exists() and not place.is_dir():
        raise ValueError(f"output_dir {folder} is a file: name a folder")
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"output_dir {folder} lies below the file {place}: name another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir {folder}: {place} cannot be written to; name another folder")


def check_reporters(names: Any) -> None:
    """Raise `ValueError` for a place to report to that is unknown or not installed."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = [names] if isinstance(names, str) else names or []
    for name in names:
        if name in ("none", "all"):
            continue
        check_names("place to report to (report_to)", [name], INTEGRATION_TO_CALLBACK, "say none")
        if name not in get_available_reporting_integrations():
            raise ValueError(f"report_to is {name}: install {name}, or write report_to: none")
    if "wandb" in names:
        _check_wandb()


def _check_wandb() -> None:
    """Refuse a run that would ask for a key, or fail for want of one, at its first step."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    if wandb.api.api_key is None and "WANDB_IDENTITY_TOKEN_FILE" not in os.environ:
        raise ValueError(
            "report_to is wandb, which knows no key: run wandb login, or set WANDB_MODE=offline"
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises `ValueError` naming file and line for what is no YAML, for no mapping, and for a key
    that stands twice or is no text.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML text: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping: write one 'name: value' per line")
    return content


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which plain YAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} is no text: write a name",
                    problem_mark=key.start_mark,
                )
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands twice: leave one of them out",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
