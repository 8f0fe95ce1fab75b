"""podsrl doctor: what is installed, what this machine can do, what is slow here and why."""

import argparse
import json
import sys
from typing import Any

from podsrl.cli.parser import VerbParser, errors_in_one_line

DESCRIPTION = """Say what is installed and in which version, what this machine can do, and what will
be slow or fail here, with the remedy of each.  Takes a few seconds; nothing is written or sent."""
EXAMPLES = """examples:
  podsrl doctor
  podsrl doctor --json > doctor.json      what an issue report should hold

The status is 0 where podsrl train can run, 1 where something that it needs is missing."""


@errors_in_one_line("doctor")
def main(argv: list[str] | None) -> int:
    """Print what was found; 0, or 1 where training cannot run here."""
    options = build_parser().parse_args(argv)
    from podsrl.runs.machine import advice, examine

    found = examine()
    words = advice(found)
    if options.json:
        print(json.dumps(found | {"advice": words}, indent=2))
    else:
        _print(found, words)
    return int(any(line["stops"] for line in words))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("doctor", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _print(found: dict[str, Any], words: list[dict[str, Any]]) -> None:
    print("installed")
    for package, version in found["needed"].items():
        print(f"  {package:<16} {version or 'missing'}")
    print("\nfor some uses")
    for package, of in found["optional"].items():
        state = of["version"] or f"not installed: {of['remedy']}"
        print(f"  {package:<16} {of['for']}: {state}")
    print("\nthis machine")
    for name, value in found["machine"].items():
        print(f"  {name.replace('_', ' '):<28} {value}")
    print("\nwhat follows")
    for line in words:
        print(f"  {'STOPS ' if line['stops'] else ''}{line['text']}")
    if not words:
        print("  nothing stands in the way, and nothing is known to be slow")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
