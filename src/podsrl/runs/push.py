"""A run's model on the hub: what would be uploaded, the checks before, and the upload."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What goes where."""

    repo_id: str
    is_public: bool
    folders: dict[str, Path]
    """Folder in the repository ("" is its top) -> folder here."""
    notes: tuple[str, ...]
    """What stays here, and why."""

    def files(self) -> dict[str, int]:
        """Return path in the repository -> bytes, of every file."""
        return {
            str(Path(place) / path.relative_to(folder)): path.stat().st_size
            for place, folder in self.folders.items()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def plan_upload(run: Path, repo_id: str, *, is_public: bool) -> Upload:
    """Return what a run has to give: its model with the card, and LoRA's adapter in adapter/.

    Rollouts, answers, data, settings and checkpoints are never among it.

    Raises: ValueError for a run without a whole model or without its card, and for a name that
    the hub does not take. Nothing is sent.
    """
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    model, adapter = run / "model", run / "adapter"
    _check_model(run, model)
    folders, notes = {"": model}, []
    if adapter.is_dir():
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if Path(str(base["base_model_name_or_path"])).exists():
            notes.append("adapter/ stays here: its base model is a local folder, not of the hub")
        else:
            folders["adapter"] = adapter
    return Upload(repo_id=repo_id, is_public=is_public, folders=folders, notes=tuple(notes))


def upload(plan: Upload, api: Any) -> str:
    """Make the repository where it is not there, upload, and return its address.

    api: a `huggingface_hub.HfApi`. A repository that is there keeps its visibility.

    Raises: ValueError for a token that the hub does not take, where a private upload would go to a
    public repository, and where the hub cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # What the hub's client raises where there is no answer: of httpx or its successor, by version.
    transport_error: Any = HfHubHTTPError.__bases__[0]
    try:
        api.whoami()
        if api.repo_exists(plan.repo_id):
            _check_visibility(plan, api)
        else:
            api.create_repo(plan.repo_id, private=not plan.is_public)
        for place, folder in plan.folders.items():
            api.upload_folder(
                repo_id=plan.repo_id,
                folder_path=folder,
                path_in_repo=place or None,
                commit_message="Model trained with podsrl" if not place else "LoRA adapter",
            )
    except transport_error as error:
        raise ValueError(f"the hub did not take it: {error or type(error).__name__}") from error
    return f"{api.endpoint}/{plan.repo_id}"


def _check_visibility(plan: Upload, api: Any) -> None:
    if not plan.is_public and not api.repo_info(plan.repo_id).private:
        raise ValueError(
            f"{plan.repo_id} is there and public: add --public if that is meant, or name another"
        )


def _check_model(run: Path, model: Path) -> None:
    if not (model / "config.json").is_file():
        raise ValueError(
            f"{run} holds no model/: name the folder of a finished run of podsrl train, which was "
            "not told save_model false"
        )
    index = model / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted({*wanted, CARD}):
        path = model / name
        if not path.is_file() or not path.stat().st_size:
            remedy = "write one" if name == CARD else "save the model again"
            raise ValueError(f"{path} is missing or empty: {remedy}")
