"""The card of a trained model: what it was made of and how, how good it is, how to load it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from podsrl.models import DEFAULT_MODEL, HUB_ID, HUB_NAME, PACKAGE
from podsrl.runs.folder import read_json
from podsrl.runs.prepare import Run
from podsrl.runs.result import describe
from podsrl.trl.citation import CITATION

PAPER = "https://arxiv.org/abs/2504.13818"
IN_HUB_CACHE = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/")
# Folders of a run that hold a model: their names say nothing, the run's own model does.
OF_A_RUN = re.compile(r"model|adapter|checkpoint-\d+")


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a model was trained from."""

    name: str
    """A hub id, else the name of the folder that it came from."""
    is_on_hub: bool
    licence: str | None = None
    """As far as it is known: of the packaged model, or what a local folder's card says."""
    note: str = ""
    """What else must be known to have the same weights."""


def base_of(model: str) -> Base:
    """Return what a run's setting `model` stands for, to people who do not have this machine.

    A model that a run of podsrl trained stands for the model that the run began with.

    Example: `base_of("smollm2-135m").name == "HuggingFaceTB/SmolLM2-135M-Instruct"`, and
    "/data/qwen-small" is "qwen-small".
    """
    if model == DEFAULT_MODEL:
        packaged = f"with the 4-bit values of the package {PACKAGE.replace('_', '-')}, if installed"
        return Base(name=HUB_ID, is_on_hub=True, licence="apache-2.0", note=packaged)
    folder = Path(model).expanduser().absolute()
    if not folder.is_dir():
        return Base(name=model, is_on_hub=bool(HUB_NAME.fullmatch(model)))
    cached = IN_HUB_CACHE.search(f"{folder}/")
    if cached:
        name = "/".join(part for part in cached.groups() if part)
        return Base(name=name, is_on_hub=True, licence=_licence(folder))
    config = folder.parent / "config.json"
    if OF_A_RUN.fullmatch(folder.name) and config.is_file():
        first = base_of(str(read_json(config).get("model") or folder.name))
        note = f"after an earlier run of podsrl, {folder.parent.name}"
        return Base(name=first.name, is_on_hub=first.is_on_hub, licence=first.licence, note=note)
    return Base(name=folder.name, is_on_hub=False, licence=_licence(folder))


def _licence(folder: Path) -> str | None:
    """What the card in a model's folder says, None without one."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8").split("---\n", 2) if card.is_file() else []
    if len(parts) < 3 or parts[0]:
        return None
    try:
        about = yaml.safe_load(parts[1])
    except yaml.YAMLError:  # of somebody else's card, which has other readers
        return None
    licence = about.get("license") if isinstance(about, dict) else None
    return licence if isinstance(licence, str) else None


def write_cards(run: Run, result: Mapping[str, Any]) -> None:
    """Write README.md into the run's model folder, and into its adapter's where there is one."""
    model, adapter = run.folder / "model", run.folder / "adapter"
    has_adapter = adapter.is_dir()
    (model / "README.md").write_text(
        card(run, result, is_adapter=False, has_adapter=has_adapter), encoding="utf-8"
    )
    if has_adapter:
        (adapter / "README.md").write_text(
            card(run, result, is_adapter=True, has_adapter=True), encoding="utf-8"
        )


def card(run: Run, result: Mapping[str, Any], *, is_adapter: bool, has_adapter: bool) -> str:
    """Return the text of a model card.

    result: what result.json holds. Names of local folders, apart from the last part of the base
    model's and of the data's, stay out of it.
    """
    base = base_of(run.arguments.model)
    parts = [
        _front_matter(base, is_adapter),
        f"# {run.folder.name}",
        _summary(run, base),
        f"## Result\n{_result(result)}",
        f"## How it was trained\n{_table(_training(run, result, base))}",
        f"## Use\n{_use(run, base, is_adapter=is_adapter, has_adapter=has_adapter)}",
        f"## Versions\n{_table(result['versions'])}",
        f"## Licence\n{_licence_words(base)}",
        f"## Cite\n```\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base: Base, is_adapter: bool) -> str:
    about: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    about["pipeline_tag"] = "text-generation"
    if base.is_on_hub:
        about["base_model"] = base.name
    if base.licence:
        about["license"] = base.licence
    about["tags"] = ["podsrl", "pods", "grpo", "trl", *(["lora"] if is_adapter else [])]
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---"


def _summary(run: Run, base: Base) -> str:
    n, m = run.config.num_rollouts, run.config.num_generations
    where = f"[{base.name}](https://huggingface.co/{base.name})" if base.is_on_hub else base.name
    if n == m:
        how = f"GRPO: {n} answers are sampled for each question, and all are trained on"
    else:
        how = (
            f"[PODS]({PAPER}): {n} answers are sampled for each question, and the {m} that the "
            f"rule {run.config.selection_rule} keeps are trained on"
        )
    note = f" ({base.note})" if base.note else ""
    return f"{where}{note}, trained by reinforcement learning on {run.task.name} with {how}."


def _result(result: Mapping[str, Any]) -> str:
    measured = {when: result[when] for when in ("before", "after") if when in result}
    if not measured:
        return "Not measured: the run was told to evaluate no held-out questions."
    lines = ["| | held-out accuracy, greedy (95 % interval) | questions |", "|---|---|---|"]
    for when, summary in measured.items():
        accuracy = summary["accuracy_greedy"]
        lines.append(f"| {when} training | {describe(accuracy)} | {accuracy['num_problems']} |")
    for when, summary in measured.items():
        for name, of in summary.items():
            if name.startswith("reward_"):
                told = f"{of['value']:.3f} ({of['low']:.3f} to {of['high']:.3f})"
                reward = name.removeprefix("reward_")
                lines.append(f"| reward {reward}, {when} | {told} | {of['num_problems']} |")
    told = "One run with one seed: the intervals are over questions, not over seeds."
    return "\n".join(lines) + f"\n\n{told}"


def _training(run: Run, result: Mapping[str, Any], base: Base) -> dict[str, Any]:
    config, names = run.config, list(run.task.reward_funcs)
    weights = config.reward_weights or [1.0] * len(names)
    assert config.generation_batch_size is not None
    about: dict[str, Any] = {
        "method": "GRPO" if config.num_rollouts == config.num_generations else "PODS",
        "n, sampled per question": config.num_rollouts,
        "m, kept per question": config.num_generations,
        "rule": config.selection_rule,
        "advantage, objective": f"{config.advantage}, {config.objective}",
        "base model": base.name,
        "data": f"{run.task.name}, {len(run.rows)} questions",
        "rewards": ", ".join(
            f"{weight:g} x {name}" for weight, name in zip(weights, names, strict=True)
        ),
        "steps": f"{result['steps']}, of "
        f"{config.generation_batch_size // config.num_generations} questions each",
        "minutes of training": f"{result['seconds']['training'] / 60:.1f}",
        "learning rate": config.learning_rate,
        "longest answer in training, tokens": config.max_completion_length,
        "seed": config.seed,
    }
    if run.model_config.use_peft:
        about["LoRA"] = f"rank {run.model_config.lora_r}, alpha {run.model_config.lora_alpha}"
    return about


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _use(run: Run, base: Base, *, is_adapter: bool, has_adapter: bool) -> str:
    question = run.arguments.prompt_template or "your question"  # words in braces are the user's
    asked = [*_system_messages(run), {"role": "user", "content": question}]
    messages = json.dumps(asked, ensure_ascii=False, indent=4)
    length = run.config.max_completion_length
    ask = f"messages = {messages}\nprint(pipe(messages, max_new_tokens={length})[0])"
    if is_adapter:
        code = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

base = AutoModelForCausalLM.from_pretrained({base.name!r})
model = PeftModel.from_pretrained(base, "PATH/OF/THIS/FOLDER")
pipe = pipeline("text-generation", model, tokenizer=AutoTokenizer.from_pretrained({base.name!r}))
{ask}"""
    else:
        code = f"""from transformers import pipeline

pipe = pipeline("text-generation", "PATH/OR/ID/OF/THIS/MODEL")
{ask}"""
    words = "The LoRA adapter is merged into these weights; alone it is in `adapter/`, beside them."
    more = f"\n\n{words}" if has_adapter and not is_adapter else ""
    return f"```python\n{code}\n```{more}"


def _system_messages(run: Run) -> list[dict[str, Any]]:
    """The system messages that every question was asked with; questions themselves stay here."""
    found = [[each for each in row["prompt"] if each["role"] == "system"] for row in run.rows]
    return found[0] if all(messages == found[0] for messages in found) else []


def _licence_words(base: Base) -> str:
    if base.licence:
        return f"{base.licence}, that of the base model. The data may ask for more."
    return (
        "Not stated: whoever publishes the model has to choose one that the licences of the base "
        "model and of the data allow, and write it as `license:` at the top of this file."
    )
