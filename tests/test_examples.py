"""Every example runs: on a tiny model, and what needs a GPU or another package up to there."""

import json
from pathlib import Path

import pytest

from helpers.commands import run_python

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LONGEST = 40


# No first examples, but a specification and a study; tests/test_loop.py and
# tests/test_few_shot_tabular.py run them.
LONG = ("loop.py", "few_shot_tabular.py")
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if path.name not in LONG)


def test_all_are_short_and_told() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in [*SCRIPTS, EXAMPLES / "notebook.ipynb", *(EXAMPLES / name for name in LONG)]:
        assert f"examples/{path.name}" in page
    assert all(len(path.read_text().splitlines()) <= LONGEST for path in SCRIPTS)
    names = {path.stem for path in SCRIPTS}
    assert names == {
        "own_reward",
        "lora",
        "vllm_sampling",
        "several_gpus",
    }  # each has its test below


@pytest.mark.parametrize("name", ["own_reward", "lora"])
def test_it_trains(name: str, tiny_folder: str, tmp_path: Path) -> None:
    told = run_python(EXAMPLES / f"{name}.py", tiny_folder, cwd=tmp_path)
    assert told.count("pods/kept_reward_variance") == 4  # steps
    if name == "lora":
        assert (tmp_path / "runs/lora/adapter/adapter_model.safetensors").is_file()


def test_vllm_up_to_the_gpu(tmp_path: Path) -> None:
    told = run_python(EXAMPLES / "vllm_sampling.py", "--dry-run", cwd=tmp_path)
    assert told == "4 prompts x 64 rollouts by vLLM, 16 of each kept\n"


@pytest.mark.slow
def test_several_processes(tiny_folder: str, tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    told = run_python(*words, EXAMPLES / "several_gpus.py", tiny_folder, cwd=tmp_path)
    assert "trained by 2 processes" in told


def test_the_notebook(tiny_folder: str, tmp_path: Path) -> None:
    """Its cells in turn, in plain Python; the last one has a row for each step."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    script = "\n".join(code[:-1]) + "\n" + code[-1].replace("[(row", "assert 2 == len([(row") + ")"
    run_python("-c", script, cwd=tmp_path, MODEL=tiny_folder)
