"""podsrl view: a run's rollouts as one page."""

import argparse
import sys
from pathlib import Path

from podsrl.cli.parser import VerbParser, errors_in_one_line

DESCRIPTION = """\
Write one HTML page of a run's rollouts: per step and prompt all n of them, with rewards, length,
kept or dropped and why, advantage; with search and filters.  It opens in any browser, offline.

Training writes what the page shows to rollouts.jsonl.gz (log_rollouts: auto, true or false)."""
EXAMPLES = """\
examples:
  podsrl view runs/arithmetic-smollm2
  podsrl view runs/arithmetic-smollm2 --steps 10:20 --output steps-10-20.html
  podsrl view runs/arithmetic-smollm2 --limit 100000

keys on the page: left and right arrow go from prompt to prompt, / goes to the search."""


@errors_in_one_line("view")
def main(argv: list[str] | None = None) -> int:
    """Write the page; 2 with one line on a mistake in the options."""
    options = _parser().parse_args(argv)
    from podsrl.view.page import view_page

    run = Path(options.run)
    output = Path(options.output) if options.output else _default_output(run)
    page = view_page(run, steps=steps_of(options.steps), limit=options.limit)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    print(f"{output}  ({output.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _default_output(run: Path) -> Path:
    return (run if run.is_dir() else run.parent) / "view.html"


def steps_of(text: str) -> tuple[int | None, int | None]:
    """Return first and last step of "a:b"; either may be left out, and "a" alone is one step."""
    first, colon, last = text.partition(":")
    try:
        start = int(first) if first else None
        end = int(last) if last else None
    except ValueError:
        raise ValueError(
            f"--steps is {text!r}: write first:last, such as 10:20, 10: or 7"
        ) from None
    return (start, end) if colon else (start, start)


def _parser() -> argparse.ArgumentParser:
    from podsrl.view.page import DEFAULT_LIMIT

    parser = VerbParser("view", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("run", metavar="RUN_FOLDER", help="run folder, or its rollouts.jsonl.gz")
    parser.add_argument("--output", metavar="FILE", help="default: view.html in the run folder")
    parser.add_argument(
        "--steps", metavar="A:B", default=":", help="only the steps from A to B; default: all"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"show at most about N rollouts, spread over the steps; default: {DEFAULT_LIMIT}",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
