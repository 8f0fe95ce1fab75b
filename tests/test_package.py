"""The sdist, the wheel that is built of it, and what that wheel installs."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.commands import run_python

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run_python("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_the_sdist_holds_what_the_wheel_is_built_of(dist: Path) -> None:
    (sdist,) = dist.glob("podsrl-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/podsrl/py.typed"} <= names


def test_the_wheel_holds_every_file_of_the_package(dist: Path) -> None:
    (wheel,) = dist.glob("podsrl-*.whl")
    ours = [path for path in (ROOT / "src" / "podsrl").rglob("*") if path.is_file()]
    wanted = {str(p.relative_to(ROOT / "src")) for p in ours if "__pycache__" not in p.parts}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        about = archive.read(metadata).decode()
    assert wanted <= names, wanted - names
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}" in about
    assert "Project-URL: Paper, https://arxiv.org/abs/2504.13818" in about
    assert "Provides-Extra: lora" in about and "Requires-Dist: matplotlib" in about


def test_the_wheel_installs_and_works(dist: Path, tmp_path: Path) -> None:
    """In a folder of its own, with this environment's other packages."""
    (wheel,) = dist.glob("podsrl-*.whl")
    target = tmp_path / "site"
    run_python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel, cwd=tmp_path
    )
    script = """
import sys, podsrl, podsrl.cli
assert "site" in podsrl.__file__, podsrl.__file__
sys.exit(podsrl.cli.main(sys.argv[1:]))
"""
    site = {"PYTHONPATH": str(target)}
    assert "selection_rule" in run_python(
        "-c", script, "train", "--help", "all", cwd=tmp_path, **site
    )
    rewards = tmp_path / "rewards.json"
    rewards.write_text("[0, 0, 0, 1]")
    kept = run_python(
        "-c", script, "select", rewards, "--keep", "2", "--json", cwd=tmp_path, **site
    )
    assert '"max_variance"' in kept
