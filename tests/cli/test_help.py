"""Help texts name files, verbs and flags that exist, and podsrl train's names all that is ours."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from trl import GRPOConfig

from podsrl.cli import USAGE, VERBS, main
from podsrl.core.advantage import ESTIMATORS
from podsrl.core.objectives import OBJECTIVES
from podsrl.core.select import RULES
from podsrl.runs.settings import RunArguments
from podsrl.tasks import TASKS
from podsrl.trl.config import PODSConfig

ROOT = Path(__file__).resolve().parents[2]
# When tests are collected no plugin of another test has added its own.
BUILT_IN_TASKS = [*TASKS]
# Folders of the project: what a help text names below one of them is there for the reader.
FOLDERS = "|".join(("recipes", "docs", "examples", "benchmarks", "src", "tests"))


def help_text(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    try:
        assert main([*words]) == 0
    except SystemExit as end:  # argparse's way to end --help
        assert not end.code
    return capsys.readouterr().out


HELPS = [("--help",), *((verb, "--help") for verb in VERBS), ("train", "--help", "all")]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_path_that_a_help_text_names_exists(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text(capsys, *words)
    named = re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]*\w", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_the_test_above_finds_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert "recipes/arithmetic-smollm2.yaml" in help_text(capsys, "--help")


@pytest.mark.parametrize("words", HELPS[:-1], ids=" ".join)
def test_every_command_that_a_help_text_names_exists(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """In an example line all flags of the command are flags of that verb."""
    text = help_text(capsys, *words)
    for line in re.findall(r"^ *(?:.*\| )?podsrl [a-z].*$", text, re.MULTILINE):
        verb, *rest = line.split("podsrl ")[-1].split("  ")[0].split()
        verb = verb.rstrip(":")
        assert verb in VERBS, line
        flags = [word.split("=")[0] for word in rest if word.startswith("--")]
        known = help_text(capsys, verb, "-h")
        known += help_text(capsys, verb, "--help", "all") if verb == "train" else ""
        assert all(re.search(rf"{flag}\b", known) for flag in flags), line


def test_every_verb_is_named_first(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, "--help")
    assert all(re.search(rf"^  {verb} ", text, re.MULTILINE) for verb in VERBS)
    assert "{verbs}" in USAGE


def test_help_of_train_names_every_setting_that_is_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_text(capsys, "train", "--help")
    own = {field.name for field in fields(PODSConfig)} - {f.name for f in fields(GRPOConfig)}
    own |= {field.name for field in fields(RunArguments)}
    own.remove("write_run")  # of scripts; podsrl train always writes its run
    missing = sorted(name for name in own if not re.search(rf"--{name}\b", text))
    assert not missing


def test_help_of_select_and_evaluate_name_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    of_select, of_evaluate = (help_text(capsys, verb, "--help") for verb in ("select", "evaluate"))
    assert all(re.search(rf"\b{rule}\b", of_select) for rule in RULES)
    assert all(re.search(rf"\b{task}\b", of_evaluate) for task in BUILT_IN_TASKS)


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("task", BUILT_IN_TASKS),
        ("selection_rule", list(RULES)),
        ("advantage", list(ESTIMATORS)),
        ("objective", list(OBJECTIVES)),
    ],
)
def test_help_of_train_names_every_choice(
    flag: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_text(capsys, "train", "--help")
    about = re.split(rf"^  --{flag} ", text, flags=re.MULTILINE)[1].split("\n  --")[0]
    assert all(re.search(rf"\b{name}\b", about) for name in names), about
