"""The flags of podsrl train without the libraries that define them, which take seconds to load.

flags.json has them as the real parser does (runs/settings.py): spelling, kind, default, choices and
help, written by tests/cli/test_flags.py, which holds the two together. It speaks for the versions
of the libraries that it was made of; with others, the real parser is asked.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from podsrl.extras import version_of
from podsrl.plugins import beside
from podsrl.runs.checks import check_names, read_yaml
from podsrl.runs.words import check_words, truth

HELP = "podsrl train --help all"
HOSTS = ("trl", "transformers")
KINDS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "string_to_bool": truth,
}
# Left out of a recipe's names by the parser of flags alone.
NOT_FLAGS = ("env",)


def flag_parser() -> argparse.ArgumentParser | None:
    """Return a parser of train's flags, None where it would speak for other libraries' versions.

    Its help, its choices and its errors are those of the real parser. Values of kinds that only the
    libraries know are left as text.

    Example: `flag_parser().parse_args(["--num-rollouts", "64"]).num_rollouts == 64`.
    """
    table = read_table()
    if table["made of"] != {host: version_of(host) for host in HOSTS}:
        return None
    parser = _FlagParser(
        "podsrl train", formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=True
    )
    for row in table["flags"]:
        _add(parser, row)
    return parser


def read_table() -> dict[str, Any]:
    """Return what flags.json holds."""
    table: dict[str, Any] = json.loads(
        files("podsrl.cli").joinpath("flags.json").read_text(encoding="utf-8")
    )
    return table


def check_early(words: Sequence[str], recipe: Mapping[str, Any] | None) -> None:
    """Raise `ValueError` for names, kinds and choices that the real parser would refuse, too."""
    parser = flag_parser()
    if parser is None:
        return
    check_recipe(recipe or {}, parser)
    check_words(parser, words, HELP)


def check_recipe(
    recipe: Mapping[str, Any],
    parser: argparse.ArgumentParser | None = None,
    *,
    where: str = "",
) -> None:
    """Raise `ValueError` for a setting that no recipe has, naming those that are close to it.

    where: whose settings they are, where a file has those of several.
    """
    parser = parser or flag_parser()
    if parser is None:
        return
    known = {action.dest for action in parser._actions} | set(NOT_FLAGS)
    what = f"setting of {where}" if where else "setting"
    check_names(what, recipe, known - {"help"}, f"{HELP} lists them")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return a recipe's settings, its names checked; `ValueError` where it is none."""
    if not path.is_file():
        raise ValueError(f"recipe {path} does not exist: give a YAML file, or flags only")
    recipe = read_yaml(path)
    check_recipe(recipe)
    return beside(recipe, path.parent)


class _FlagParser(argparse.ArgumentParser):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog=prog, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _add(parser: argparse.ArgumentParser, row: Mapping[str, Any]) -> None:
    options = {name: row[name] for name in ("help", "nargs", "const") if name in row}
    options["default"] = row.get("default", argparse.SUPPRESS)  # none: what the machine can
    options["dest"] = row.get("dest", row["name"])
    if row["kind"] == "off":
        options["action"] = "store_false"
    else:
        options["type"] = _kind(row)
        options["choices"] = row.get("choices")
    spelled = dict.fromkeys((f"--{row['name']}", f"--{row['name'].replace('_', '-')}"))
    parser.add_argument(*spelled, **options)


def _kind(row: Mapping[str, Any]) -> Callable[[str], Any]:
    known = KINDS.get(row["kind"], str)
    if not row.get("may be none"):
        return known

    def read(text: str) -> Any:
        return None if text.lower() in ("none", "null") else known(text)

    read.__name__ = row["kind"]  # argparse names it in its error
    return read
