"""Write the README's tables from the JSON files in benchmarks/.

python benchmarks/readme.py           rewrite README.md
python benchmarks/readme.py --check   fail if README.md is not what it would write
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def read(name: str) -> dict[str, Any]:
    """The content of one benchmark's JSON."""
    content: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text())
    return content


def share(interval: dict[str, float]) -> str:
    """A share and its 95 % interval in percent."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def run_table() -> str:
    """The default recipe's run, as `make train` wrote it."""
    result = read("arithmetic")
    seconds, before, after = result["seconds"], result["before"], result["after"]
    phases = ", ".join(
        f"{name} {seconds[name] / result['steps']:.1f} s"
        for name in ("sampling", "rewards", "selection", "update")
    )
    rows = [
        ("held-out accuracy before", share(before["accuracy_greedy"])),
        (f"after {result['steps']} steps", share(after["accuracy_greedy"])),
        ("training", f"{seconds['training'] / 60:.1f} min of {seconds['wall'] / 60:.1f} in all"),
        ("a step", phases),
        ("n, m, rule, seed", ", ".join(
            str(result[key])
            for key in ("num_rollouts", "num_generations", "selection_rule", "seed")
        )),
        ("on", result["versions"]["device"]),
    ]  # fmt: skip
    return table(("", "seen"), rows)


def step_table() -> str:
    """Seconds of one training step, case by case and arm by arm."""
    rows = []
    for case, result in read("step")["cases"].items():
        for name, figures in result["arms"].items():
            each = [f"{figures[key]:.1f}" for key in ("sampling", "update", "total")]
            extent = f"{figures['total_min']:.1f} to {figures['total_max']:.1f}"
            rows.append((case, name, *each, extent))
    return table(("case", "arm, n/m", "sampling s", "update s", "step s", "range"), rows)


def selection_table() -> str:
    """Choosing 16 of n, beside a loop over groups and a plain sort."""
    rows = []
    for case in read("selection")["rows"]:
        seconds = case["seconds"]
        rows.append(
            (
                f"{case['num_groups']:,} x {case['num_rollouts']:,}",
                f"{1000 * seconds['podsrl']:.0f} ms",
                f"{seconds['group_loop'] / seconds['podsrl']:.0f}",
                f"{seconds['sort_and_scan'] / seconds['podsrl']:.1f}",
            )
        )
    return table(("groups x n", "podsrl", "times a loop over groups", "times a plain sort"), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES = {"run": run_table, "step": step_table, "selection": selection_table}


def render(text: str) -> str:
    """The text with every table between its markers written anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"README.md has no markers for the table {name}"
        text = pattern.sub(lambda match, make=make: match[1] + make() + "\n" + match[2], text)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text()
    wanted = render(text)
    if parser.parse_args().check:
        return int(text != wanted)
    readme.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
