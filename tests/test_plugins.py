"""A user's own code by reference: what is found, and what is said of what is not."""

import sys
from pathlib import Path

import pytest

from podsrl.plugins import beside, by_file_name, digests, load_function, load_plugins


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_function_of_a_file_and_of_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = write(tmp_path, "helper_of_mine.py", "def three():\n    return 3\n")
    own = write(
        tmp_path,
        "own.py",
        "from helper_of_mine import three\n\ndef six():\n    return 2 * three()\n",
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_function(f"{own}:six")() == 6
    assert load_function(f"{own}:six") is load_function(f"{own}:six")  # loaded once
    assert load_function("helper_of_mine:three")() == 3
    assert load_function("math:floor")(2.5) == 2
    monkeypatch.chdir(tmp_path)
    assert load_function("own.py:six")() == 6
    assert helper.is_file()


@pytest.mark.parametrize(
    ("text", "reference", "said"),
    [
        ("", "gone.py:f", "there is no file"),
        ("def f(): pass\n", "own.py:g", "own.py has no function g; it has f"),
        ("f = 3\n", "own.py:f", "has no function f; it has none"),
        ("import math\n\nx = nothing\n", "own.py:f", "own.py, line 3: NameError: name 'nothing'"),
        ("def f(:\n", "own.py:f", "own.py, line 1: SyntaxError: "),
        ("raise SystemExit(1)\n", "own.py:f", "own.py, line 1: SystemExit: 1"),
        ("", "own.py", "write FILE.py:FUNCTION or MODULE:FUNCTION"),
        ("", "no_such_module_here:f", "there is no module no_such_module_here: install it"),
    ],
)
def test_what_is_said_of_a_function_that_is_not_there(
    text: str, reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "own.py", text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as raised:
        load_function(reference)
    assert said in str(raised.value)


def test_a_plugin_is_loaded_once(tmp_path: Path) -> None:
    counter = tmp_path / "loads"
    own = write(tmp_path, "own.py", f"with open({str(counter)!r}, 'a') as f: f.write('x')\n")
    load_plugins([str(own)])
    load_plugins([str(own)])
    assert counter.read_text() == "x"


def test_code_beside_a_recipe_is_named_by_its_whole_path(tmp_path: Path) -> None:
    own = write(tmp_path, "own.py", "")
    settings = {"plugins": ["own.py", "gone.py", "a.module"], "seed": 3}
    settings["reward_funcs"] = ["correctness", "own.py:f", "a.module:f"]
    assert beside(settings, tmp_path) == {
        "plugins": [str(own), "gone.py", "a.module"],
        "seed": 3,
        "reward_funcs": ["correctness", f"{own}:f", "a.module:f"],
    }


def test_own_code_wherever_it_lies_is_named_by_its_file() -> None:
    settings = {
        "plugins": ["/home/me/own.py", "own.py", "a.module"],
        "reward_funcs": ["correctness", "/home/me/own.py:f", "probe:/home/me/head.safetensors"],
        "grader": "/home/me/own.py:same",
        "data": "/home/me/own.py",  # no code of theirs, and left as it is
    }
    assert by_file_name(settings) == {
        "plugins": ["own.py", "own.py", "a.module"],
        "reward_funcs": ["correctness", "own.py:f", "probe:head.safetensors"],
        "grader": "own.py:same",
        "data": "/home/me/own.py",
    }


def test_a_digest_of_each_file_that_is_named(tmp_path: Path) -> None:
    own = write(tmp_path, "own.py", "x = 1\n")
    first = digests([f"{own}:f", f"{own}:g", "math:floor", "correctness"])
    assert list(first) == ["own.py"]
    own.write_text("x = 2\n")
    assert digests([str(own)])["own.py"] != first["own.py"]
