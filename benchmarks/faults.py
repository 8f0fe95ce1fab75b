"""How podsrl bears being killed, damaged, misused and lied to: attempts and failures, row by row.

    python benchmarks/faults.py                      every row, about an hour on two cores
    python benchmarks/faults.py --quick              a small version of every row, some minutes
    python benchmarks/faults.py --rows kill signals  these rows alone

A failure is a traceback, a hang, trained steps that are lost without a word, other bits after
--resume than the uninterrupted run has, or a folder left behind by a refused setting. Runs are of
four short steps of a tiny random model, in forked children of one process that has imported what
they need; what a run leaves is compared with the uninterrupted run: weights, metrics, rollouts and
evaluations, all bits.

Each attempt is a line of --log as soon as it is done. Ctrl-C keeps them, and the same command goes
on; attempts with other code in src/podsrl are made anew. At the end the JSON is written from the
log: attempts and failures of every row, and the first failures in words.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# The rows are shared with tests/test_faults.py, which runs a small version of each.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fault_rows import answers, damage, data, kills, memory, misuse, recipes, rewards, together
from fault_rows.case import Attempt, Bench, Row, Verdict, make_bench

ROWS: dict[str, Row] = {
    **kills.ROWS,
    **damage.ROWS,
    **together.ROWS,
    **recipes.ROWS,
    **data.ROWS,
    **misuse.ROWS,
    **rewards.ROWS,
    **answers.ROWS,
    **memory.ROWS,
}
SHOWN_FAILURES = 5
# One thread a process, so that a run is short on two cores and a fork is safe; no hub, no screen.
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
}


def main(argv: list[str] | None = None) -> int:
    """Make the attempts that are missing in the log, and write the JSON."""
    options = build_parser().parse_args(argv)
    os.environ |= SURROUNDINGS
    code = code_under_test()
    rows = {name: ROWS[name] for name in options.rows or ROWS}
    try:
        if not options.summary:
            make_attempts(rows, options, code)
    except KeyboardInterrupt:
        print(f"\nstopped; what is done is in {options.log}, and the same command goes on")
        return 130
    summary = summarise(read_log(options.log, code), code)
    for earlier in options.also:
        for name, row in summarise(read_log(options.log, earlier), earlier)["rows"].items():
            if row["attempts"] > summary["rows"][name]["attempts"]:
                summary["rows"][name] = row
    if options.before:
        earlier = summarise(read_log(options.log, options.before), options.before)
        counts = ("attempts", "failures")
        rows_before = {n: {key: row[key] for key in counts} for n, row in earlier["rows"].items()}
        summary["before"] = {"code": options.before, "rows": rows_before}
    if options.output:
        Path(options.output).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name in rows:
        print(describe(name, summary["rows"][name]))
    return int(any(summary["rows"][name]["failures"] for name in rows))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    rows = "\n".join(
        f"  {name:<16} {row.about} ({row.full}; quick: {row.quick}"
        f"{'; needs root' if row.needs_root else ''})"
        for name, row in ROWS.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"rows (attempts):\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="few attempts of each row")
    parser.add_argument(
        "--log", type=Path, default=Path("runs/faults.jsonl"), help="default: %(default)s"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/faults"), help="default: %(default)s"
    )
    parser.add_argument("--output", metavar="JSON", help="for example benchmarks/faults.json")
    parser.add_argument(
        "--summary", action="store_true", help="attempt nothing, sum up what the log holds"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="CODE",
        help="take a row from this code in the log where it has more attempts; the JSON says so",
    )
    parser.add_argument(
        "--before", metavar="CODE", help="add the counts of this code, as the log names it"
    )
    return parser


def make_attempts(rows: dict[str, Row], options: argparse.Namespace, code: str) -> None:
    """Make what the log lacks of each row, and log it."""
    options.log.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["row"], line["number"]) for line in read_log(options.log, code)}
    wanted = [
        (name, number)
        for name, row in rows.items()
        for number in range(row.quick if options.quick else row.full)
        if (name, number) not in done and (os.geteuid() == 0 or not row.needs_root)
    ]
    if not wanted:
        return
    scratch = options.scratch.resolve() / str(os.getpid())
    bench = make_bench(scratch)
    start = time.perf_counter()
    try:
        for count, (name, number) in enumerate(wanted, 1):
            verdict = attempt_once(bench, name, number)
            line = {"row": name, "number": number, "code": code, **vars(verdict)}
            with options.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            left = (time.perf_counter() - start) / count * (len(wanted) - count) / 60
            mark = f"FAILED: {verdict.failure}" if verdict.failure else "held"
            print(
                f"{count}/{len(wanted)}  {name} {number}  {mark}  ({verdict.outcome})  "
                f"{left:.0f} min left",
                flush=True,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def attempt_once(bench: Bench, name: str, number: int) -> Verdict:
    """One attempt in a folder of its own, which is removed."""
    folder = bench.scratch / f"{name}-{number}"
    folder.mkdir()
    try:
        return ROWS[name].attempt(Attempt(bench, name, number, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_log(path: Path, code: str) -> list[dict[str, Any]]:
    """The attempts with this code; a line torn by a kill is none."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text("utf-8").rpartition("\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if line["code"] == code]


def summarise(lines: list[dict[str, Any]], code: str) -> dict[str, Any]:
    """Attempts and failures of every row."""
    rows = {}
    for name, row in ROWS.items():
        tried = {line["number"]: line for line in lines if line["row"] == name}
        failed = [line for line in tried.values() if line["failure"]]
        outcomes: dict[str, int] = {}
        for line in tried.values():
            outcomes[line["outcome"]] = outcomes.get(line["outcome"], 0) + 1
        rows[name] = {
            "about": row.about,
            "code": code,
            "planned": row.full,
            "attempts": len(tried),
            "failures": len(failed),
            "outcomes": dict(sorted(outcomes.items())),
            "first_failures": [
                f"{line['number']}: {line['outcome']}: {line['failure']}"
                for line in failed[:SHOWN_FAILURES]
            ],
        }
    return {"code": code, "rows": rows}


def describe(name: str, row: dict[str, Any]) -> str:
    """One row in a line, its first failures below it."""
    line = (
        f"{name:<16} {row['attempts']:>4} attempts  {row['failures']:>4} failures  {row['about']}"
    )
    return "\n".join([line, *(f"    {failure}" for failure in row["first_failures"])])


def code_under_test() -> str:
    """The git tree of the podsrl that is imported, with a + where files differ from it.

    Other files of the repository, such as the docs, do not change it; `git rev-parse
    COMMIT:src/podsrl` tells the tree of a commit.
    """
    spec = importlib.util.find_spec("podsrl")
    assert spec is not None and spec.origin is not None
    folder = str(Path(spec.origin).parent)

    def git(*words: str) -> str:
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    tree = git("rev-parse", "--short=12", "HEAD:./") or "unknown"
    return tree + ("+" if git("status", "--porcelain", ".") else "")


if __name__ == "__main__":
    raise SystemExit(main())
