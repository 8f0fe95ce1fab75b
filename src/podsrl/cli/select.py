"""podsrl select: show which rollouts each rule keeps for the rewards in a file."""

import argparse
import csv
import io
import json
import reprlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.parser import VerbParser, errors_in_one_line

if TYPE_CHECKING:
    from torch import Tensor

DESCRIPTION = """\
Show which rollouts each rule keeps, and how much reward variance the kept ones have.

PODS samples n rollouts of each prompt and updates the policy on m of them.  max_variance keeps
the m whose rewards vary most; the other rules are there to compare.  "of best" is the kept
variance as a share of the best possible one.  Rules that look at lengths, shortest and
reward_per_token, run when the file has them."""

EXAMPLES = """\
the file:
  JSON  [0, 1, 0.5]   or one list per group   [[0, 1], [1, 1]]   or   {"rewards": [...]}
        with lengths in tokens:   {"rewards": [...], "lengths": [...]}
  CSV   one group per line: 0,1,0.5
  A reward that could not be computed: null in JSON, an empty field or nan in CSV.

examples:
  echo '[0, 0, 0, 0, 1, 1, 1, 0]' | podsrl select - --keep 4
  podsrl select rewards.csv --keep 16 --rule max_variance --rule random --seed 3
  podsrl select rewards.json --keep 16 --json > kept.json"""


@errors_in_one_line("select")
def main(argv: list[str] | None) -> int:
    """Print what each rule keeps; return 0, or 2 when the input cannot be used."""
    args = _parser().parse_args(argv)
    from podsrl.core.select import NEEDS_LENGTHS, RULES
    from podsrl.runs.checks import check_names

    check_names("rule", args.rule or (), RULES, f"choose from {', '.join(RULES)}")
    text = _read(args.file)
    groups, lengths = read_rewards(text), read_lengths(text)
    rules = args.rule or [name for name in RULES if lengths or name not in NEEDS_LENGTHS]
    results = [
        describe(group, values, args.keep, rule, args.seed, lengths=own_lengths)
        for group, (values, own_lengths) in enumerate(_with_lengths(groups, lengths))
        for rule in rules
    ]
    if args.json:
        print(json.dumps({"keep": args.keep, "seed": args.seed, "groups": results}, indent=2))
    else:
        _print_tables(results, args.keep)
    return 0


def read_rewards(text: str) -> list[list[float]]:
    """Return the groups of rewards in JSON or CSV text, NaN where a reward is missing.

    Raises ValueError when the text is neither, or holds something that is not a number.

    Example:
        >>> read_rewards("0,1\\n1,0.5")
        [[0.0, 1.0], [1.0, 0.5]]
    """
    text = text.strip()
    if text[:1] in ("[", "{"):
        content = _parsed(text)
        if isinstance(content, dict):
            if "rewards" not in content:
                raise ValueError(f'no "rewards" among the keys {list(content)}; name the list so')
            content = content["rewards"]
        rows = _as_rows(content)
    else:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows:
        raise ValueError("no rewards found; give a JSON list or one group per CSV line")
    return _numbers(rows)


def read_lengths(text: str) -> list[list[float]] | None:
    """Return the groups under "lengths" of a JSON object, None where the text has none.

    Example:
        >>> read_lengths('{"rewards": [0, 1], "lengths": [12, 30]}')
        [[12.0, 30.0]]
    """
    content = _parsed(text) if text.strip()[:1] == "{" else {}
    return _numbers(_as_rows(content["lengths"])) if "lengths" in content else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply; give a list, or a list of lists") from None
    except ValueError as error:  # also a number of more digits than Python converts
        reason = str(error).partition(";")[0]
        raise ValueError(f"the rewards are no JSON that can be read ({reason})") from None


def _as_rows(content: Any) -> list[Any]:
    is_nested = isinstance(content, list) and content and isinstance(content[0], list)
    return content if is_nested else [content]


def _numbers(rows: list[Any]) -> list[list[float]]:
    for row in rows:
        if not isinstance(row, list):
            raise ValueError(
                f"{reprlib.repr(row)} stands where a group should, and is not a list; give lists"
            )
    return [[_number(field, group) for field in row] for group, row in enumerate(rows)]


def _with_lengths(
    groups: list[list[float]], lengths: list[list[float]] | None
) -> list[tuple[list[float], list[float] | None]]:
    if lengths is None:
        return [(values, None) for values in groups]
    if len(lengths) != len(groups):
        raise ValueError(f"{len(lengths)} groups of lengths for {len(groups)} groups of rewards")
    return list(zip(groups, lengths, strict=True))


def describe(
    group: int,
    values: list[float],
    keep: int,
    rule: str,
    seed: int,
    *,
    lengths: list[float] | None = None,
) -> dict[str, Any]:
    """Return what a rule keeps of one group: indices, rewards, variance and share of the best."""
    import torch

    rewards_N = torch.tensor(values, dtype=torch.float64)
    kept_M = _select_group(rewards_N, keep, rule, seed, group=group, lengths=lengths)
    best_M = _select_group(rewards_N, keep, "max_variance", seed, group=group)
    variance, best = _variance(rewards_N[kept_M]), _variance(rewards_N[best_M])
    return {
        "group": group,
        "rule": rule,
        "kept": kept_M.tolist(),
        "rewards": [None if value != value else value for value in rewards_N[kept_M].tolist()],
        "variance": variance,
        "frac_of_best": variance / best if best > 0 else 1.0,
    }


def _select_group(
    rewards_N: "Tensor",
    keep: int,
    rule: str,
    seed: int,
    *,
    group: int,
    lengths: list[float] | None = None,
) -> "Tensor":
    """Return what `select` keeps of the group at this position; groups may differ in length."""
    import torch

    from podsrl.core.select import NEEDS_LENGTHS, RULES, select

    select(rewards_N, keep, rule, seed, lengths=lengths)  # checks the values and `keep`
    own = {"lengths_PN": torch.tensor([lengths])} if rule in NEEDS_LENGTHS else {}
    return RULES[rule](rewards_N.unsqueeze(0), keep, seed=seed, first_group=group, **own)[0]


def _variance(rewards: "Tensor") -> float:
    """Return the mean squared deviation of the rewards that are not NaN, 0 for none."""
    scored = rewards[~rewards.isnan()]
    return scored.var(correction=0).item() if len(scored) else 0.0


def _number(field: Any, group: int) -> float:
    if field is None or (isinstance(field, str) and not field.strip()):
        return float("nan")
    if isinstance(field, bool) or not isinstance(field, (int, float, str)):
        raise ValueError(
            f"group {group} holds {reprlib.repr(field)}, which is not a number; give numbers"
        )
    try:
        return float(field)
    except OverflowError:
        raise ValueError(
            f"group {group} holds an integer of {len(str(field))} digits; give numbers under 1e308"
        ) from None
    except ValueError:
        raise ValueError(
            f"group {group} holds {reprlib.repr(field)}, which is not a number; remove headers and "
            "text"
        ) from None


def _read(file: str) -> str:
    return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")


def _print_tables(results: list[dict[str, Any]], keep: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for group in sorted({result["group"] for result in results}):
        table = Table(title=f"group {group}: {keep} kept", title_justify="left")
        for column in ("rule", "kept (index: reward)", "variance", "of best"):
            table.add_column(
                column, justify="right" if column in ("variance", "of best") else "left"
            )
        for result in (result for result in results if result["group"] == group):
            pairs = zip(result["kept"], result["rewards"], strict=True)
            kept = "  ".join(
                f"{index}: {'none' if reward is None else f'{reward:g}'}" for index, reward in pairs
            )
            table.add_row(
                result["rule"], kept, f"{result['variance']:.4g}", f"{result['frac_of_best']:.1%}"
            )
        console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("select", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="rewards, JSON or CSV; - is standard input")
    parser.add_argument("--keep", type=int, required=True, metavar="M", help="rollouts to keep")
    parser.add_argument(
        "--rule",
        action="append",
        metavar="RULE",
        help="max_variance, max_reward, random, percentile, max_abs_advantage, shortest or "
        "reward_per_token; repeat for several; default: all that the file has the numbers for",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides among equal rewards")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser
