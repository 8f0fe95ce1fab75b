"""What only some uses need is told with the command that installs it, and nothing else needs it."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from podsrl import extras, models
from podsrl.cli import main
from podsrl.runs.folder import versions
from podsrl.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture()
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the extras is installed, as far as anybody can tell."""
    real = extras.find_spec

    def find(module: str) -> object:
        return None if module in extras.EXTRAS else real(module)

    monkeypatch.setattr(extras, "find_spec", find)


def test_every_extra_brings_its_module() -> None:
    optional = PROJECT["optional-dependencies"]
    for module, extra in extras.EXTRAS.items():
        (requirement,) = optional[extra]
        name = re.split(r"[<>=]", requirement)[0].replace("-", "_")
        assert name == {"sklearn": "scikit_learn"}.get(module, module)
        assert extra in re.split(r"[\[\],]", optional["all"][0])
        assert importlib.util.find_spec(module) is not None  # dev brings all of them
    needed = {re.split(r"[<>=]", each)[0].replace("-", "_") for each in PROJECT["dependencies"]}
    assert not needed & {*extras.EXTRAS, "scikit_learn"}


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_the_remedy_is_told_before_anything_is_done(
    bare: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "lora.yaml"
    content = {"model": "no-such/model", "use_peft": True, "use_cpu": True, "bf16": False}
    recipe.write_text(yaml.safe_dump({**content, "output_dir": str(tmp_path / "run")}))
    assert "use_peft needs peft: pip install 'podsrl[lora]'" in told(capsys, "train", recipe)
    task = "reasoning_gym:leg_counting"
    assert "pip install 'podsrl[gym]'" in told(capsys, "evaluate", "--task", task, "--device=cpu")
    curves = tmp_path / "curves.csv"
    curves.write_text("setting,run,hours,ans_acc_mean\na,1,0,0.1\na,1,1,0.2\n")
    assert "pip install 'podsrl[figures]'" in told(capsys, "report", curves)
    assert "'podsrl[figures]'" in told(capsys, "plan", recipe, "--figure", "gains.svg")
    assert "podsrl tune needs sklearn: pip install 'podsrl[tune]'" in told(capsys, "tune", recipe)
    monkeypatch.setenv("PODSRL_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_packaged_file", lambda: tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"smollm2-135m needs gguf: pip install 'podsrl\[packaged"):
        models.resolve_model("smollm2-135m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "lora.yaml"]


def test_versions_are_those_that_are_there(bare: None) -> None:
    assert "peft" not in versions("cpu") and "trl" in versions("cpu")


def test_nothing_of_the_main_path_imports_an_extra() -> None:
    script = f"""
import importlib.util, sys
absent, real = {set(extras.EXTRAS)}, importlib.util.find_spec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
importlib.util.find_spec = lambda name, *of: None if name in absent else real(name, *of)
import podsrl.trl.trainer, podsrl.runs.training, podsrl.evaluate, podsrl.report.read
import podsrl.plan.pilot, podsrl.compare.screen, podsrl.view.page
from podsrl.tasks import load_task
print(load_task("arithmetic").rows("test", 1)[0]["answer"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "65", done.stderr[-2000:]


@pytest.mark.parametrize("num_terms", [1, 2, 5])
@pytest.mark.parametrize("max_digits", [1, 2, 4])
def test_the_sums_are_those_of_reasoning_gym(num_terms: int, max_digits: int) -> None:
    from reasoning_gym import create_dataset

    from podsrl.tasks.arithmetic import chain_sum

    for seed in (0, 10_000_019, 1_000_000_007):
        theirs = create_dataset(
            "chain_sum",
            min_terms=num_terms,
            max_terms=num_terms,
            min_digits=1,
            max_digits=max_digits,
            seed=seed,
            size=200,
        )
        for index in range(200):
            entry = theirs[index]
            ours = chain_sum(seed + index, num_terms, max_digits)
            assert ours == {name: entry[name] for name in ("question", "answer")}


def test_the_questions_of_the_default_recipe_stay() -> None:
    """Its results were measured on them: 15 + 50 is the first held-out one."""
    task = load_task("arithmetic")
    first = task.rows("test", 2)
    assert [row["answer"] for row in first] == ["65", "-38"]
    assert first[0]["prompt"][0]["content"].endswith("problem: 15 + 50 =")
    assert len(task.rows("train")) == 10_000


@pytest.mark.parametrize("option", ["num_terms", "max_digits"])
def test_sums_of_nothing_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 0: it must be at least 1"):
        load_task("arithmetic", **{option: 0})
