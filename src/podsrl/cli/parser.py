"""What all verbs have in common: how flags are spelled, and how an error is told."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

Main = Callable[..., int]


class VerbParser(argparse.ArgumentParser):
    """A parser that takes --dry-run and --dry_run alike, whichever it was given to know."""

    def __init__(self, verb: str, *, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"podsrl {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As argparse does, after every flag has got the spelling that the parser knows."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(
            spelled_as_known(words, self._option_string_actions), namespace
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; a word too many is told with the flag that was probably meant."""
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            from podsrl.runs.words import check_rest

            check_rest(self, rest, f"{self.prog} --help")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as `ValueError`, for `errors_in_one_line` to tell."""
        raise ValueError(f"{message}{_close_choice(message)}; see {self.prog} --help")


def spelled_as_known(words: Iterable[str], flags: Iterable[str]) -> list[str]:
    """The words, with each known flag in its own spelling of hyphens and underscores.

    Example: `spelled_as_known(["--dry-run", "a-b"], ["--dry_run"]) == ["--dry_run", "a-b"]`.
    """
    known = {flag.replace("-", "_"): flag for flag in flags}
    spelled = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--") and name not in flags:
            name = known.get(name.replace("-", "_"), name)
        spelled.append(name + equals + value)
    return spelled


def _close_choice(message: str) -> str:
    """`, did you mean X?` where argparse names a wrong word and the choices there are."""
    import re

    found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message)
    if not found:
        return ""
    import difflib

    choices = [word.strip("' ") for word in found[2].split(",")]
    close = difflib.get_close_matches(found[1], choices, 1)
    return f", did you mean {close[0]}?" if close else ""


def errors_in_one_line(verb: str) -> Callable[[Main], Main]:
    """Let a verb's main say `podsrl VERB: what is wrong` and return 2 for ValueError and OSError.

    They are what a mistake in the input, or a file that cannot be used, raises. Everything else is
    a defect and keeps its traceback.
    """

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(argv: list[str] | None = None) -> int:
            try:
                return main(sys.argv[1:] if argv is None else argv)
            except (ValueError, OSError) as error:
                print(f"podsrl {verb}: {' '.join(str(error).split())}", file=sys.stderr)
                return 2

        return guarded

    return wrap


def names(text: str) -> list[str]:
    """The words of a flag that takes several, with commas between them.

    Example: `names("grpo,pods") == ["grpo", "pods"]`.
    """
    return [name for name in text.split(",") if name]
