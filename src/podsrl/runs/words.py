"""Words of a command line that no flag takes, and what was probably meant."""

import argparse
from collections.abc import Sequence

from podsrl.runs.checks import check_names

YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def check_words(parser: argparse.ArgumentParser, words: Sequence[str], see: str) -> None:
    """Raise `ValueError` for what the parser takes for no flag and for no flag's value.

    see: the command that lists the flags.

    Example: `--num_rolouts 8` is told with "did you mean --num_rollouts?".
    """
    check_rest(parser, parser.parse_known_args(list(words))[1], see)


def check_rest(parser: argparse.ArgumentParser, rest: Sequence[str], see: str) -> None:
    """Raise `ValueError` for words that `parse_known_args` left over; see `check_words`."""
    # A flag may have a spelling with hyphens beside its own, which would be told twice.
    spellings = reversed(parser._option_string_actions)
    known = {flag.replace("-", "_"): flag for flag in spellings}.values()
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    check_names("flag", flags, list(known)[::-1], f"see {see}")
    if rest:
        raise ValueError(f"{rest[0]!r} follows no flag that takes it: see {see}")


def truth(text: str) -> bool:
    """Return what a word for true or false stands for.

    Example: `truth("Yes") is True`.
    """
    if text.lower() in YES:
        return True
    if text.lower() in NO:
        return False
    raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
