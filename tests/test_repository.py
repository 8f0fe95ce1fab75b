"""Files around the code: what they run and name exists, and agrees with pyproject.toml."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Console scripts whose distribution has another name.
DISTRIBUTION = {"lint-imports": "import-linter"}


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def dev_tools() -> set[str]:
    """Distributions of the dev extra, without versions."""
    extra = PROJECT["optional-dependencies"]["dev"]
    return {re.split(r"[<>=\[]", requirement)[0] for requirement in extra}


def check_command(command: str) -> None:
    """The first word can be run, and every path among the others is there."""
    program, *words = command.split()
    if program == "make":
        assert words[0] in make_targets(), command
    elif program.startswith(".venv/bin/"):
        tool = program.removeprefix(".venv/bin/")
        assert tool == "python" or DISTRIBUTION.get(tool, tool) in dev_tools(), command
    else:
        assert os.access(ROOT / program, os.X_OK), command
    for word in words:
        if "/" in word or "." in word:
            assert (ROOT / word).exists(), command


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_commands_and_paths_exist(path: Path) -> None:
    commands = 0
    for job in load(path)["jobs"].values():
        for step in job["steps"]:
            for command in step.get("run", "").splitlines():
                check_command(command)
                commands += 1
            named = step.get("with", {}).get("cache-dependency-path")
            assert named is None or (ROOT / named).exists()
    assert commands


def test_ci_runs_on_every_python_that_is_allowed() -> None:
    versions = load(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert versions["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"


def test_ci_runs_lint_and_tests() -> None:
    """.ci/run is `make test`, which depends on lint, and `make test-verl`."""
    ran = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make test$", ran, re.M) and re.search(r"^make test-verl$", ran, re.M)
    assert re.search(r"^test:.*\blint\b", (ROOT / "Makefile").read_text(), re.M)


def test_hooks_are_commands_of_ours_and_concern_files_that_are_there() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("needs a git checkout, to know which files are tracked")
    for repository in load(ROOT / ".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            check_command(hook["entry"])
            pattern = re.compile(hook.get("files", ""))
            assert any(pattern.search(name) for name in files.stdout.splitlines()), hook["id"]


def test_hooks_cover_what_lint_runs() -> None:
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    tools = set(re.findall(r"\$\(BIN\)/([\w-]+)", lint))
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = " ".join(hook["entry"] for hook in repository["hooks"])
    assert tools and all(f".venv/bin/{tool}" in entries for tool in tools)


def test_citation_is_that_of_the_readme_and_of_the_package() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    paper = citation["preferred-citation"]
    assert paper["title"] in readme and str(paper["year"]) in readme
    assert "2504.13818" in paper["url"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert f"author = {{{' and '.join(names)}}}" in readme


def test_the_image_runs_the_two_commands() -> None:
    """Its instructions name what the project has; nobody builds it here."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert 'CMD ["make", "train"]' in text and "docker run podsrl make test" in text
    target = re.findall(r"^RUN make (\S+)$", text, re.M)
    assert target == [".venv/.installed"]
    assert "$(VENV)/.installed:" in (ROOT / "Makefile").read_text()
    version = re.findall(r"^FROM python:(\d+\.\d+)", text, re.M)
    assert f"Programming Language :: Python :: {version[0]}" in PROJECT["classifiers"]


def test_the_site_has_every_page_and_is_part_of_the_tests() -> None:
    """`make test` builds it with warnings as errors; a page that it does not list is one."""
    assert re.search(r"^test:.*\bdocs\b", (ROOT / "Makefile").read_text(), re.M)
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for kind in ("not_found", "anchors", "absolute_links", "unrecognized_links"):
        assert f"{kind}: warn" in settings
    assert "omitted_files: warn" in settings
