"""podsrl completion: the file by which a shell completes verbs, flags and choices."""

import argparse
import importlib

from podsrl.cli.parser import VerbParser, errors_in_one_line
from podsrl.extras import need

SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = """Print what a shell needs to complete podsrl's verbs, flags and choices.

shtab writes it: pip install 'podsrl[completion]'."""
EXAMPLES = """examples:
  podsrl completion bash > ~/.local/share/bash-completion/completions/podsrl
  podsrl completion zsh > ~/.zfunc/_podsrl
  podsrl completion tcsh > ~/.podsrl.tcsh

zsh looks in the folders of $fpath; ~/.tcshrc must source its file. A new shell knows it. Write the
file again after an update of podsrl."""


@errors_in_one_line("completion")
def main(argv: list[str] | None) -> int:
    """Print the script; 2 with one line on a mistake in the options."""
    options = build_parser().parse_args(argv)
    need("shtab", "podsrl completion")
    import shtab

    print(shtab.complete(parser_of_all(), options.shell))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("completion", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def parser_of_all() -> argparse.ArgumentParser:
    """Return one parser of all verbs with their flags, for shtab to read."""
    from podsrl.cli import VERBS
    from podsrl.cli.flags import flag_parser

    parser = argparse.ArgumentParser("podsrl")
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers()
    for verb, text in VERBS.items():
        module = importlib.import_module(f"podsrl.cli.{verb}")
        of_train = flag_parser if verb == "train" else None
        build = of_train or getattr(module, "build_parser", None) or module._parser
        own = build() or argparse.ArgumentParser()
        added = verbs.add_parser(verb, help=text, parents=[own], add_help=False)
        if verb == "train":
            added.add_argument("recipe", nargs="?", help="a YAML file of flags")
            added.add_argument("--dry_run", action="store_true", help="check, load no model")
    for action in _actions(parser):
        _complete_paths(action)
    return parser


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [each for verb in action.choices.values() for each in _actions(verb)]
    return actions


PATHS = ("recipe", "file", "run", "paths", "data", "output", "output_dir", "json", "figure")


def _complete_paths(action: argparse.Action) -> None:
    """Let the shell offer files where one is meant."""
    if action.dest in PATHS:
        from shtab import FILE

        action.complete = FILE  # type: ignore[attr-defined]
