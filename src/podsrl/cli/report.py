"""podsrl report: compare arms at equal training time or at equal steps, on one page."""

import argparse
import sys
from pathlib import Path

from podsrl.cli.parser import VerbParser, errors_in_one_line

DESCRIPTION = """Compare training arms at equal training time, or at equal optimizer steps: one page
with figures and intervals.

A PATH is a folder that podsrl compare wrote, a run folder of podsrl train (several are put
together by their settings), or a CSV of learning curves with the columns setting, run, hours,
ans_acc_mean and where known step, dataset, for_acc_mean, both_acc_mean, mean_length."""
EXAMPLES = """examples:
  podsrl report runs/my-comparison                  writes runs/my-comparison/report/report.html
  podsrl report runs/a runs/b --output report       single runs
  podsrl report curves.csv --baseline 16/16
  podsrl report runs/my-comparison --share .95         time to 95 % of the baseline's best
  podsrl report runs/my-comparison --collect results/my-comparison
  podsrl report runs/my-comparison --collect FOLDER --metrics frac_reward_zero_std

The output folder receives report.html (one file, no network), summary.json (every number) and
figures/ (SVG and PNG). docs/report.md defines each number.

--collect keeps a comparison in two small files, comparison.json and runs.jsonl (one line a run),
of which podsrl report makes the same report as of the runs' folders."""


@errors_in_one_line("report")
def main(argv: list[str] | None) -> int:
    """Write the report and print what follows; 2 with one line on a mistake in the options."""
    options = build_parser().parse_args(argv)
    from podsrl.report.records import collect
    from podsrl.report.write import in_brief, write_report

    paths = [Path(path) for path in options.paths]
    output = Path(options.output) if options.output else _beside(paths[0])
    if options.collect:
        kept = collect(_one_of(paths), Path(options.collect), options.metrics or ())
        print(f"collected in {kept}")
    elif options.metrics:
        raise ValueError("--metrics says what --collect is to keep: name its folder")
    times = options.seconds_per_step
    result = write_report(
        paths,
        output,
        baseline=options.baseline,
        share=options.share,
        seconds_per_step=Path(times) if times else None,
    )
    for comparison in result["comparisons"]:
        print(in_brief(comparison))
    print(f"written to {output / 'report.html'}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("report", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="+", help="comparison folder, run folder, or CSV of curves")
    add("--baseline", metavar="ARM", help="arm to compare with (default: n = m, the smallest n)")
    add(
        "--share",
        type=float,
        metavar="S",
        help="measure times to this share of the baseline's best (default: the comparison's, or 1)",
    )
    add(
        "--seconds_per_step",
        metavar="FILE",
        help="JSON that turns steps into time (default: seconds_per_step.json of the folder)",
    )
    add("--output", metavar="FOLDER", help="default: report/ in the folder, or beside the CSV")
    add("--collect", metavar="FOLDER", help="also write comparison.json and runs.jsonl there")
    add(
        "--metrics",
        metavar="KEY",
        nargs="+",
        help="keep these of metrics.jsonl in the collection, as means between evaluations",
    )
    return parser


def _one_of(paths: list[Path]) -> Path:
    if len(paths) > 1:
        raise ValueError(f"--collect takes one comparison folder, not {len(paths)} paths")
    return paths[0]


def _beside(path: Path) -> Path:
    return path / "report" if path.is_dir() else path.with_name(f"{path.stem}-report")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
