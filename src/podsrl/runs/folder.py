"""The folder of a run: what was run, with which versions, and everything it measured.

config.json      every setting, resolved
versions.json    of python, torch, transformers, trl, podsrl and the device
metrics.jsonl    one line per logged step (docs/metrics.md defines each key)
rollouts.jsonl.gz  every sampled rollout, kept or dropped and why (docs/view.md)
before/, after/  evaluation.json and answers.jsonl of the two evaluations
result.json      accuracy before and after, seconds per phase, n, m, rule, seed
curve.png        the learning curve
model/           the trained model in safetensors, and its card (README.md)
adapter/         what LoRA trained, before it was merged into model/
"""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from podsrl.extras import is_installed
from podsrl.runs.json_lines import read_lines

METRICS = "metrics.jsonl"
FROM_PYTHON = "python"
"""The task of a run whose questions and rewards a script of the user's has (runs/recorder.py)."""
# Where one of them is, a run was begun: another would mix with it, or write over it.
RUN_FILES = ("config.json", METRICS, "curve.jsonl", "rollouts.jsonl.gz", "result.json", "before")
PACKAGES = ("podsrl", "torch", "transformers", "trl", "accelerate", "peft", "datasets")


def versions(device: str) -> dict[str, str]:
    """Versions of everything that can change a result, and the hardware's name."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES if is_installed(package)},
        "platform": platform.platform(),
        "device": device,
    }


def device_name(device: Any) -> str:
    """What the computation runs on, for people to read."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read; values JSON lacks are written as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")  # a killed run leaves the old file or the new one
    aside.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def is_json(path: Path) -> bool:
    """Whether the file is there and not torn, as a lost power or a full disk leaves it."""
    try:
        read_json(path)
    except (OSError, ValueError):
        return False
    return True


def settings_of(*sources: Any) -> dict[str, Any]:
    """The fields of the dataclasses that JSON can hold, later ones first in doubt."""
    settings: dict[str, Any] = {}
    for source in sources:
        values = {field.name: getattr(source, field.name) for field in fields(source)}
        settings |= {key: value for key, value in values.items() if _is_plain(value)}
    settings.pop("hub_token", None)  # a secret
    settings.pop("write_run", None)  # without it there is no folder
    return settings


def write_settings(
    folder: Path,
    settings: Mapping[str, Any],
    device: Any,
    *,
    changes: Mapping[str, Any] | None = None,
    from_step: int = 0,
) -> None:
    """Write config.json and versions.json.

    changes: what a resumed run has otherwise than before; config.json keeps all of them, each with
        the step `from_step` from which it was so.
    """
    path = folder / "config.json"
    known = read_json(path).get("changes", []) if path.is_file() else []
    if changes:
        known.append({"step": from_step, "settings": changes})
    write_json(path, {**settings, **({"changes": known} if known else {})})
    write_json(folder / "versions.json", versions(device_name(device)))


def retire_result(folder: Path) -> None:
    """Put result.json aside as result-STEPS.json, as a run that is prolonged has another one."""
    result = folder / "result.json"
    if result.is_file():
        result.rename(result.with_name(f"result-{read_json(result)['steps']}.json"))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, in order of steps; empty before the first step."""
    return list(read_lines(folder / METRICS))


def phase_seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Training seconds per phase and in all; each row holds the mean over the steps it covers.

    Example: rows at steps 1 and 3 with sampling seconds 2.0 and 4.0 add up to 2 + 2 x 4 = 10.
    """
    totals: dict[str, float] = {}
    previous = 0
    for row in rows:
        for key, value in row.items():
            if key.startswith("time/") and value is not None:
                phase = key.removeprefix("time/").removesuffix("_seconds")
                totals[phase] = totals.get(phase, 0.0) + value * (row["step"] - previous)
        previous = row["step"]
    return {**totals, "training": sum(totals.values())}
