"""The model folder of a run: what plain transformers loads, and LoRA's adapter beside it."""

from typing import Any

from podsrl.models import load_model
from podsrl.runs.card import base_of
from podsrl.runs.folder import read_json, write_json
from podsrl.runs.prepare import Run
from podsrl.trl.trainer import PODSTrainer


def save_trained(run: Run, trainer: PODSTrainer, tokenizer: Any) -> None:
    """Save the model in model/, in safetensors that plain transformers loads.

    Adapters are saved in adapter/ and then merged into the weights.
    """
    folder, is_main = run.folder / "model", trainer.accelerator.is_main_process
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model(str(folder))
    elif is_main:
        _save_adapter(run, model, tokenizer)
        model.merge_and_unload().save_pretrained(folder)
    if is_main:
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def _save_adapter(run: Run, model: Any, tokenizer: Any) -> None:
    folder = run.folder / "adapter"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base, path = base_of(run.arguments.model), folder / "adapter_config.json"
    if base.is_on_hub:  # in place of where the hub's files lie on this machine
        write_json(path, read_json(path) | {"base_model_name_or_path": base.name})


def trained_model(run: Run, trainer: PODSTrainer) -> Any:
    """Return what plain transformers loads from the run's model folder, else the policy."""
    if not run.arguments.save_model:
        return trainer.accelerator.unwrap_model(trainer.model)
    return load_model(str(run.folder / "model"), dtype=run.model_config.dtype or "float32")
