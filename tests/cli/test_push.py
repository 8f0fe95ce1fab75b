"""podsrl push with a stand-in for the hub: what goes, what does not, and what is refused before."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from podsrl.cli import main

(TRANSPORT_ERROR, *_) = huggingface_hub.errors.HfHubHTTPError.__bases__


class StandIn:
    """Keeps what it is told, as the hub's client does; calls that it does not have fail."""

    endpoint = "https://hub"

    def __init__(self, private: dict[str, bool] | None = None) -> None:
        self.private = private or {}
        self.files: dict[str, dict[str, int]] = {}
        self.error: Exception | None = None

    def whoami(self) -> dict[str, str]:
        if self.error:
            raise self.error
        return {"name": "me"}

    def repo_exists(self, repo_id: str) -> bool:
        return repo_id in self.private

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.private[repo_id])

    def create_repo(self, repo_id: str, *, private: bool) -> None:
        self.private[repo_id] = private

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, path_in_repo: str | None, commit_message: str
    ) -> None:
        assert commit_message
        for path in folder_path.iterdir():
            place = f"{path_in_repo}/{path.name}" if path_in_repo else path.name
            self.files.setdefault(repo_id, {})[place] = path.stat().st_size


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return stand_in


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """What a finished LoRA run leaves, the weights apart."""
    folder = tmp_path / "run"
    for name in ("model", "adapter", "before"):
        (folder / name).mkdir(parents=True)
    (folder / "rollouts.jsonl.gz").write_text("private")
    (folder / "before" / "answers.jsonl").write_text("private")
    for name in ("config.json", "model.safetensors", "README.md", "tokenizer.json"):
        (folder / "model" / name).write_text("{}")
    base = {"base_model_name_or_path": "Some/Base"}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    return folder


def test_the_stand_in_has_the_calls_of_the_real_one() -> None:
    for name in ("whoami", "repo_exists", "repo_info", "create_repo", "upload_folder"):
        assert callable(getattr(HfApi, name))
    assert HfApi(endpoint="https://hub").endpoint == StandIn.endpoint


def test_model_card_and_adapter_go_and_nothing_else(
    run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/mine"]) == 0
    assert hub.private == {"me/mine": True}
    assert set(hub.files["me/mine"]) == {
        *("config.json", "model.safetensors", "README.md", "tokenizer.json"),
        "adapter/adapter_config.json",
    }
    text = capsys.readouterr().out
    assert "uploaded to https://hub/me/mine" in text and "adapter/adapter_config.json" in text


def test_public_is_said_and_a_public_place_is_not_taken_for_private(
    run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), "me/open", "--public"]) == 0
    assert hub.private == {"me/open": False}
    hub.files.clear()
    assert main(["push", str(run), "me/open"]) == 2
    assert "me/open is there and public: add --public" in capsys.readouterr().err
    assert not hub.files
    hub.private["me/shut"] = True
    assert main(["push", str(run), "me/shut", "--public"]) == 0  # keeps what its owner chose
    assert hub.private["me/shut"] is True and hub.files


def test_a_dry_run_needs_no_token_and_sends_nothing(
    run: Path,
    hub: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "me/mine", "--dry-run"]) == 0
    assert "would go to me/mine, private" in capsys.readouterr().out
    assert main(["push", str(run), "me/mine"]) == 2
    assert "no token for the hub: run hf auth login" in capsys.readouterr().err
    assert not hub.private and not hub.files


def test_an_adapter_of_a_folder_here_stays_here(
    run: Path, hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"base_model_name_or_path": str(tmp_path)}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(base))
    assert main(["push", str(run), "me/mine"]) == 0
    assert "adapter/ stays here" in capsys.readouterr().out
    assert not any(name.startswith("adapter") for name in hub.files["me/mine"])


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_what_is_missing_or_empty_is_told_before(
    name: str, run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "model" / name).write_text("")
    assert main(["push", str(run), "me/mine"]) == 2
    assert f"{name} is missing or empty" in capsys.readouterr().err
    (run / "model" / name).unlink()
    assert main(["push", str(run), "me/mine"]) == 2
    assert not hub.private


def test_a_model_in_parts_is_whole_or_refused(
    run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run / "model"
    parts = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (model / "model.safetensors").rename(model / parts["a"])
    assert main(["push", str(run), "me/mine"]) == 2
    assert "model-2-of-2.safetensors is missing" in capsys.readouterr().err
    (model / parts["b"]).write_text("{}")
    assert main(["push", str(run), "me/mine"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-run", "me/mine"], "no-such-run holds no model/"),
        (["RUN", "me/mine/ours"], "Repo id must be in the form"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], told: str, run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", *(word.replace("RUN", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not hub.private


def test_a_hub_that_does_not_answer_is_one_line(
    run: Path, hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.error = TRANSPORT_ERROR("connection refused")
    assert main(["push", str(run), "me/mine"]) == 2
    error = capsys.readouterr().err
    assert "the hub did not take it: connection refused" in error and error.count("\n") == 1
    assert not hub.private
