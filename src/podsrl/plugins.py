"""A user's own code by reference: functions, and plugins that add to the tables of names.

A reference is `my_reward.py:closeness`, a file and a name in it, or `my.module:closeness`. A
plugin is a file or a module alone; loading it is all that happens, and what it adds to
`podsrl.RULES`, `ESTIMATORS`, `OBJECTIVES`, `TASKS` or `GRADERS` is then known by name. Packages
bring theirs as entry points of the group `podsrl.plugins`.
"""

import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

GROUP = "podsrl.plugins"
OWN = "podsrl_own_"
"""How the modules are called that a user's files become."""
PROBE = "probe:"
"""Begins a reward that is a head, named by its file."""
REFERENCES = ("reward_funcs", "plugins")
"""Settings that are lists of references."""
DATA = ("dataset_name", "datasets", "test_datasets", "prompt_probe", "rbrm_head")
"""Settings that name data, or a head, where it is local by its path."""


def beside(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a file's settings, own code and data beside the file named by their whole paths.

    So a recipe means the same wherever it is started from, and so do the recipes that a comparison
    writes. What does not lie there is left as it is, for the current folder.

    Example: in `/home/me/recipe.yaml`, `plugins: [rules.py]` becomes `["/home/me/rules.py"]`.
    """
    found = _with_references(settings, functools.partial(_beside, folder=folder))
    for name in DATA:
        if isinstance(found.get(name), list):
            found[name] = [_data_beside(each, folder) for each in found[name]]
        elif name in found:
            found[name] = _data_beside(found[name], folder)
    return found


def by_file_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with own code named by its files' names, wherever the files lie.

    Example: `plugins: ["/home/me/rules.py"]` becomes `["rules.py"]`.
    """
    return _with_references(settings, _by_file_name)


def _with_references(settings: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of the settings in which every reference to own code is changed."""
    found = dict(settings)
    for name in REFERENCES:
        if isinstance(found.get(name), list):
            found[name] = [change(each) for each in found[name]]
    if "grader" in found:
        found["grader"] = change(found["grader"])
    return found


def _data_beside(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {**value, "path": _data_beside(value["path"], folder)} if "path" in value else value
    if not isinstance(value, str) or not (folder / value).exists():
        return value
    return str((folder / value).absolute())


def _beside(reference: Any, folder: Path) -> Any:
    if not isinstance(reference, str) or not _file(reference):
        return reference
    begin, end = reference.split(_file(reference), 1)
    place = folder / _file(reference)
    return f"{begin}{place.absolute()}{end}" if place.is_file() else reference


def _by_file_name(reference: Any) -> Any:
    if not isinstance(reference, str) or not _file(reference):
        return reference
    return reference.replace(_file(reference), Path(_file(reference)).name, 1)


def load_plugins(references: Iterable[str]) -> None:
    """Load installed packages' plugins, and these files or modules, each once.

    Raises `ValueError` naming file, line and what is wrong there.
    """
    _load_installed()
    for reference in references:
        _load(_file(reference) or reference, f"plugins names {reference}")


def load_function(reference: str, *, setting: str = "reward_funcs") -> Callable[..., Any]:
    """Return what `reference` names.

    Raises `ValueError` where there is no such file or module, where loading it fails (with file
    and line), where it lacks the name, and where the name is nothing to call.

    Example: `load_function("my_reward.py:closeness")`.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"{setting} names {reference!r}: write FILE.py:FUNCTION or MODULE:FUNCTION"
        )
    module = _load(place, f"{setting} names {reference}")
    function = getattr(module, name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        raise ValueError(
            f"{setting} names {reference}, but {place} has no function {name}; it has "
            f"{', '.join(own) or 'none'}"
        )
    return function


def digests(references: Iterable[str]) -> dict[str, str]:
    """SHA-256 of each file that is named, by its name: whether a resumed run has the same code.

    Modules are left out: their packages' versions say it.
    """
    files = dict.fromkeys(_file(reference) for reference in references if _file(reference))
    return {
        Path(file).name: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for file in files
        if Path(file).is_file()
    }


def told_with_line(error: BaseException, file: str | None) -> str:
    """The error in one line, after the last line of the user's file that it passed through.

    Example: "my_reward.py, line 3: KeyError: 'answer'".
    """
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if file is not None and Path(frame.filename) == Path(file)
    ]
    if isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    where = f"{file}, line {lines[-1]}: " if lines else f"{file}: " if file else ""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{where}{type(error).__name__}: {message}"


def _file(reference: str) -> str:
    """The file that is named, nothing where it is a module."""
    if reference.startswith(PROBE):
        return reference.removeprefix(PROBE)
    path, _, _ = reference.rpartition(":")
    return next((each for each in (path, reference) if each.endswith(".py")), "")


def _load(place: str, who: str) -> ModuleType:
    if not place.endswith(".py"):
        return _load_module(place, who)
    path = Path(place).absolute()
    if not path.is_file():
        raise ValueError(f"{who}, but there is no file {path}: correct the path")
    return _load_file(path)


@functools.cache
def _load_file(path: Path) -> ModuleType:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{OWN}{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it
    _find_also(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come out of it
        del sys.modules[name]
        raise ValueError(told_with_line(error, str(path))) from error
    return module


def _load_module(name: str, who: str) -> ModuleType:
    _find_also("")  # the current folder: the folder of the command's script is there in its place
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"{who}, but there is no module {name}: install it") from error
        raise ValueError(f"{who}, which fails: {told_with_line(error, None)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{who}, which fails: {told_with_line(error, None)}") from error


def _find_also(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that nothing of ours or the hosts' is hidden


@functools.cache
def _load_installed() -> None:
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            of = f" of {entry.dist.name}" if entry.dist else ""
            raise ValueError(
                f"the plugin {entry.value}{of} fails: {told_with_line(error, None)}; correct or "
                "uninstall it"
            ) from error
