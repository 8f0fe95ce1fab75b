"""What the README says is so: its script runs as printed, its tables come from benchmarks/.

Links and paths are checked in test_docs.py.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from podsrl.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.packaged
def test_the_script_runs_as_printed(tmp_path: Path) -> None:
    """Two real steps of PODSTrainer on the packaged model."""
    lines = [line for line in SCRIPTS[0].splitlines() if line.strip()]
    assert "PODSTrainer(" in SCRIPTS[0] and len(lines) <= 10
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[0]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("kept variance") == 2
    assert (tmp_path / "runs" / "quickstart" / "result.json").is_file()


def test_the_script_shows_rewards_and_ends_in_a_page(
    tiny_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Script and command as printed, with a tiny model in the packaged one's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("podsrl.models.resolve_model", lambda name: tiny_folder)
    exec(SCRIPTS[0], {})
    told = capsys.readouterr().out
    assert "16 rollouts for each of 2 prompts a step, 4 kept by max_variance: 8 rows" in told
    for step in (1, 2):
        assert re.search(
            rf"^step {step}/2  reward \d\.\d{{3}}  kept variance \d\.\d{{3}}  dead groups \d+ %  ",
            told,
            re.M,
        )
    (command,) = re.findall(r"^podsrl (view runs/quickstart) ", README, re.M)
    assert main(command.split()) == 0
    assert "runs/quickstart/view.html" in capsys.readouterr().out
    page = (tmp_path / "runs" / "quickstart" / "view.html").read_text(encoding="utf-8")
    assert "What is" in page and page.startswith("<!")


def test_the_rule_on_six_rewards() -> None:
    from podsrl import select

    assert "select([0, 0, 0, 1, 0, 0], keep=2)" in SCRIPTS[1]
    kept = select([0, 0, 0, 1, 0, 0], keep=2).tolist()
    assert 3 in kept and len(kept) == 2


def test_tables_come_from_the_benchmark_files() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    assert subprocess.run(command).returncode == 0, "run python benchmarks/readme.py"


def test_one_figure_two_tables_and_a_minute_to_read() -> None:
    assert README.count("![") == 1
    assert len(re.findall(r"^\| ---", README, re.M)) <= 2
    assert len(README.split()) < 1500 and README.count("\n") < 200


def test_the_map_names_every_room_and_nothing_else() -> None:
    """The tree under "The files": names at the margin, rooms of src/podsrl/ indented below it."""
    tree = README.split("## The files\n```\n")[1].split("```")[0]
    listed = re.findall(r"^( *)(\S+)/ ", tree.replace("podsrl/\n", "podsrl/ \n"), re.M)
    rooms = {name for indent, name in listed if indent}
    inside = {path.parent.name for path in (ROOT / "src" / "podsrl").glob("*/__init__.py")}
    assert rooms == inside
    assert all((ROOT / name).is_dir() for indent, name in listed if not indent)
