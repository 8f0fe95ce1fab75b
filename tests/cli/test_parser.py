"""What all verbs share: one spelling is as good as the other, an error is one line."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from podsrl.cli import VERBS, main
from podsrl.cli.parser import VerbParser, errors_in_one_line, spelled_as_known


def test_hyphens_and_underscores_are_one() -> None:
    parser = VerbParser("x", description="", epilog="")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--dry_run", action="store_true")
    for words in (["--max-new-tokens", "3", "--dry_run"], ["--max_new_tokens=3", "--dry-run"]):
        assert vars(parser.parse_args(words)) == {"max_new_tokens": 3, "dry_run": True}


def test_values_and_unknown_words_keep_theirs() -> None:
    words = ["a-b", "--name=a-b", "--what_else", "--", "-k"]
    assert spelled_as_known(words, ["--name"]) == words
    assert spelled_as_known(["--a-b_c=d-e"], ["--a_b-c"]) == ["--a_b-c=d-e"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_every_verb_takes_its_flags_spelled_either_way(verb: str) -> None:
    module = importlib.import_module(f"podsrl.cli.{verb}")
    parser = getattr(module, "build_parser", None) or module._parser
    assert isinstance(parser(), VerbParser)


def test_train_takes_its_flags_spelled_either_way() -> None:
    from podsrl.runs.settings import SettingsParser

    for flag in ("--max-steps", "--max_steps", "--evaluate-limit", "--num-rollouts"):
        assert SettingsParser().parse_args_and_config([flag, "8", "--use-cpu", "true"])


@pytest.mark.parametrize("error", [ValueError("n is\n 3"), OSError("n is 3")])
def test_a_mistake_is_one_line_and_status_2(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str] | None) -> int:
        raise error

    assert errors_in_one_line("view")(fail)([]) == 2
    assert capsys.readouterr().err == "podsrl view: n is 3\n"


def test_a_defect_keeps_its_traceback() -> None:
    def fail(argv: list[str] | None) -> int:
        raise TypeError("ours")

    with pytest.raises(TypeError):
        errors_in_one_line("view")(fail)([])


@pytest.mark.parametrize(
    "words",
    [
        ["select", "/no/such/file", "--keep", "1"],
        ["view", "/no/such/run"],
        ["compare", "/no/such.yaml"],
        ["plan", "/no/such.yaml"],
        ["train", "/no/such.yaml"],
        ["evaluate", "--task", "chess"],
        ["report", "/no/such/run"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_tells_a_mistake_in_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"podsrl {words[0]}: ") and error.count("\n") == 1


def test_an_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = tmp_path / "curves.csv"
    rows = [f"{arm},{run},{h},{0.1 * h}" for arm in "ab" for run in "12" for h in (0, 1, 2)]
    curves.write_text("\n".join(["setting,run,hours,ans_acc_mean", *rows]))
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "report")  # a folder below a file cannot be made
    assert main(["report", str(curves), "--output", output]) == 2
    error = capsys.readouterr().err
    assert error.startswith("podsrl report: ") and error.count("\n") == 1 and "file" in error


@pytest.mark.parametrize("module", ["podsrl.cli", "podsrl.cli.train"])
def test_both_ways_to_start_tell_alike(module: str) -> None:
    words = [*(["train"] if module == "podsrl.cli" else []), "none.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("podsrl train: recipe none.yaml does not exist")
