"""Every example runs: on a tiny model, and what needs a GPU or another package up to there."""

import ast
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import run_python
from helpers.tiny_runs import rows_of
from helpers.turns import save_caller
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
LONGEST = 44


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
        "tools",
    }  # each has its test below


@pytest.mark.parametrize("name", ["own_reward", "lora"])
def test_it_trains(name: str, tiny_folder: str, tmp_path: Path) -> None:
    told = run_python(EXAMPLES / f"{name}.py", tiny_folder, cwd=tmp_path)
    assert told.count("kept variance") == 4  # steps
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


def test_the_tool_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a tiny model for which a letter calls it with what follows."""
    model = save_caller(tmp_path / "caller", tool="price", argument="item")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tools.py", model])
    runpy.run_path(str(EXAMPLES / "tools.py"), run_name="__main__")
    rows = rows_of(tmp_path / "runs" / "tools")
    assert len(rows) == 4 and all(row["tools/call_frequency"] > 0 for row in rows)
    texts = [r["texts"] for r in read_rollouts(tmp_path / "runs" / "tools" / FILE_NAME)[1]]
    assert any("not sold here" in text for group in texts for text in group)


def test_the_notebook(tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in turn, in plain Python: a row for each step, and the page of all rollouts."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", tiny_folder)
    names: dict[str, Any] = {}
    values = []
    for cell in cells:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            if isinstance(last, ast.Expr):  # what a notebook shows under the cell
                values.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
            else:
                exec(compile(ast.Module([last], []), "cell", "exec"), names)
    assert sorted(values[0]) == [0, 1]  # the two kept of the six rewards
    assert [row[0] for row in values[-2]] == [1, 2]
    assert values[-1] == "open runs/notebook/view.html in a browser"
    page = (tmp_path / "runs/notebook/view.html").read_text(encoding="utf-8")
    assert "what is" in page and "correct" in page
