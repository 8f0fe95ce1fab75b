"""flags.json is what the real parser of podsrl train says, and is asked before torch is loaded.

A flag that was added, or another version of TRL or transformers: `python tests/cli/test_flags.py`.
"""

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from podsrl.cli import VERBS, main
from podsrl.cli import flags as flags_module
from podsrl.cli.flags import HOSTS, KINDS, check_early, check_recipe, flag_parser, read_table
from podsrl.runs.settings import SettingsParser, setting_names

TABLE = Path(flags_module.__file__).with_name("flags.json")
# Their defaults are what this machine can do: the table has none.
OF_THE_MACHINE = ("bf16", "use_cpu")
NEW = "if this is meant: python tests/cli/test_flags.py"


def row(action: argparse.Action) -> dict[str, Any]:
    """What the table says of a flag."""
    name = action.option_strings[0].removeprefix("--")
    own: dict[str, Any] = {"name": name}
    if action.dest != name:
        own["dest"] = action.dest
    if isinstance(action, argparse._StoreFalseAction):
        return own | {"kind": "off", "default": False, "help": action.help}
    kind = getattr(action.type, "__name__", "str")
    own["kind"] = kind if kind in KINDS else "str"
    if action.dest not in OF_THE_MACHINE:
        own["default"] = plain(action.default)
    if getattr(action.type, "__qualname__", "").startswith("_accept_none"):
        own["may be none"] = True
    for option in ("nargs", "const"):
        if getattr(action, option) is not None:
            own[option] = getattr(action, option)
    if action.choices is not None:
        own["choices"] = [plain(choice) for choice in action.choices]
    return own | {"help": action.help}


def plain(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enumeration


def table() -> dict[str, Any]:
    """The table as it should be: of the real parser and the versions that are installed."""
    actions = [action for action in SettingsParser()._actions if action.dest != "help"]
    return {"made of": {host: version(host) for host in HOSTS}, "flags": [row(a) for a in actions]}


def as_text(content: dict[str, Any]) -> str:
    """One line for each flag, so that two additions merge."""
    rows = ",\n".join(json.dumps(each, ensure_ascii=False) for each in content["flags"])
    return f'{{"made of": {json.dumps(content["made of"])},\n"flags": [\n{rows}\n]}}\n'


def written_for_these_versions() -> bool:
    return read_table()["made of"] == {host: version(host) for host in HOSTS}


of_these_versions = pytest.mark.skipif(
    not written_for_these_versions(),
    reason=f"flags.json is for other versions: {read_table()['made of']}",
)


@of_these_versions
def test_the_table_is_what_the_real_parser_says() -> None:
    assert TABLE.read_text(encoding="utf-8") == as_text(table()), NEW


@of_these_versions
def test_both_parsers_print_the_same_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    real, fast = SettingsParser(), flag_parser()
    assert fast is not None
    for action in real._actions:
        if action.dest in OF_THE_MACHINE:
            action.default = argparse.SUPPRESS
    assert fast.format_help() == real.format_help()


WORDS = [
    ["--num-rollouts", "64", "--learning_rate=2e-5"],
    ["--bf16", "true", "--no_save_model", "--use_vllm"],
    ["--num_rollouts", "none", "--reward_weights", "1", "0.5", "--report_to", "wandb", "trackio"],
    ["--lr_scheduler_type", "constant", "--optim", "sgd", "--task_arguments", '{"a": 1}'],
    ["--num_roll", "8"],
    [],
]


@of_these_versions
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_both_parsers_read_the_same(words: list[str]) -> None:
    fast = flag_parser()
    assert fast is not None
    read = vars(fast.parse_args(words))
    real = {name: plain(value) for name, value in vars(SettingsParser().parse_args(words)).items()}
    machine = {name: real[name] for name in OF_THE_MACHINE}
    assert machine | read == real


MISTAKES = [
    (["--nmu_rollouts", "8"], "did you mean --num_rollouts"),
    (["--num-rolouts=8"], "did you mean --num_rollouts"),
    (["--learning_rate", "fast"], "invalid float value: 'fast'"),
    (["--optim", "adam"], "invalid choice: 'adam'"),
    (["--use_vllm", "maybe"], "maybe"),
    (["--beta"], "expected one argument"),
    (["--seed", "1", "surplus"], "'surplus' follows no flag that takes it"),
]


@of_these_versions
@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_both_parsers_refuse_the_same(words: list[str], told: str) -> None:
    for check in (lambda: check_early(words, None), lambda: SettingsParser().parse(words)):
        with pytest.raises(ValueError) as error:
            check()
        assert told in str(error.value) and "HfArgumentParser" not in str(error.value)


@of_these_versions
def test_a_recipe_may_set_what_it_may_set() -> None:
    check_recipe(dict.fromkeys([*setting_names(), "env"]))
    with pytest.raises(ValueError, match="unknown setting: nmu_rollouts; did you mean num_roll"):
        check_recipe({"nmu_rollouts": 8})
    with pytest.raises(ValueError, match="unknown setting: help"):
        check_recipe({"help": True})


def test_with_other_versions_the_real_parser_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags_module, "version_of", lambda package: "0.0")
    assert flag_parser() is None
    check_early(["--nmu_rollouts", "8"], {"nmu_rollouts": 8})  # nothing is said
    assert main(["train", "--nmu_rollouts", "8"]) == 2  # of the real one


HEAVY = ("torch", "transformers", "datasets", "matplotlib", "trl", "numpy", "accelerate")
LIGHT = [
    ["--help"],
    ["trian"],
    ["train", "--help"],
    ["train", "--help", "all"],
    ["train", "--nmu_rollouts", "8"],
    *([verb, "--help"] for verb in VERBS if verb != "train"),
    *([verb, "--no_such"] for verb in VERBS if verb != "train"),
]


@of_these_versions
def test_help_and_typing_errors_load_nothing_heavy() -> None:
    """In one process, as nothing that one of them loads is let go."""
    script = f"""
import sys, podsrl.cli
for words in {LIGHT}:
    try:
        podsrl.cli.main(words)
    except SystemExit:
        pass
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    TABLE.write_text(as_text(table()), encoding="utf-8")
