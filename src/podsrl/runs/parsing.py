"""Settings of a run, from flags or a mapping, as the three dataclasses that hold them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from trl import ModelConfig, TrlParser

from podsrl.trl.config import PODSConfig
from podsrl.runs.settings import RunArguments

OWNERS = (RunArguments, PODSConfig, ModelConfig)


class SettingsParser(TrlParser):
    """TRL's parser over our fields and theirs, with our defaults and errors of one line."""

    def __init__(self, prog: str = "podsrl train") -> None:
        super().__init__(OWNERS, prog=prog)
        self.set_defaults(**default_settings())

    def error(self, message: str) -> None:
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


def setting_names() -> set[str]:
    """Every name that a recipe may set."""
    return {field.name for owner in OWNERS for field in fields(owner) if field.init}


def parse_settings(settings: Mapping[str, Any]) -> tuple[RunArguments, PODSConfig, ModelConfig]:
    """Return what `podsrl train` makes of a recipe with these settings.

    Raises `ValueError` as it does, among others for an unknown name and for n < m.

    Example: `parse_settings({"num_generations": 4})[1].num_rollouts == 16`.
    """
    parser = SettingsParser()
    unknown = set(settings) - setting_names()
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(sorted(unknown))}")
    parser.set_defaults_with_config(**settings)
    arguments, config, model_config = parser.parse_args_into_dataclasses(args=[])
    return arguments, config, model_config


def _has_fast_bfloat16() -> bool:
    """TRL trains in bfloat16 by default, which CPUs without instructions for it only emulate."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
