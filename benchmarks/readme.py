"""Write the tables of README.md and docs/ from what benchmarks/ holds.

python benchmarks/readme.py           rewrite them
python benchmarks/readme.py --check   fail if they are not what it would write
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pays import readme_table, table, theory_table

from podsrl.intervals import mean_interval
from podsrl.phases import PHASES
from podsrl.report.read import read_comparisons
from podsrl.report.summary import summarise

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
MEAN = 0
"""In the place of an evaluation: the mean over all of them but the first, before training."""


def read(name: str) -> dict[str, Any]:
    """The content of one benchmark's JSON."""
    content: dict[str, Any] = json.loads((BENCHMARKS / f"{name}.json").read_text())
    return content


def summary_of(name: str, *, baseline: str | None = None) -> dict[str, Any]:
    """What `podsrl report benchmarks/NAME` writes into summary.json."""
    (comparison,) = read_comparisons([BENCHMARKS / name], baseline=baseline)
    return summarise(comparison)


def share(interval: dict[str, float]) -> str:
    """A share and its 95 % interval in percent."""
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def run_table() -> str:
    """The default recipe's run, as `make train` wrote it."""
    result = read("arithmetic")
    seconds, before, after = result["seconds"], result["before"], result["after"]
    phases = ", ".join(f"{name} {seconds[name] / result['steps']:.1f} s" for name in PHASES)
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


def run_sentence() -> str:
    """The default recipe's run in one sentence."""
    result = read("arithmetic")
    before, after = (share(result[key]["accuracy_greedy"]) for key in ("before", "after"))
    minutes = result["seconds"]["wall"] / 60
    return (
        f"Seen: {before} of the held-out questions right before, {after} after {result['steps']} "
        f"steps, in {minutes:.1f} min (one seed, intervals over questions)."
    )


def paths_table() -> str:
    """The default recipe on TRL's sampling and update and on ours, seed by seed."""
    content = read("paths")
    rows = []
    for seed, sides in content["seeds"].items():
        trl, ours = (sides[side]["seconds"]["training"] / 60 for side in ("trl", "podsrl"))
        accuracies = [share(sides[side]["accuracy_after"]) for side in ("trl", "podsrl")]
        times = (f"{trl:.1f} min", f"{ours:.1f} min", f"{100 * ours / trl:.0f} %")
        rows.append((seed, *accuracies, *times))
    head = ("seed", "TRL's paths", "ours", "TRL's training", "our training", "of TRL's time")
    difference = points(content["summary"]["accuracy_difference"])
    return f"{table(head, rows)}\n\nOurs minus TRL's paths, 95 % interval: {difference} points."


def arms_table() -> str:
    """Arms at equal training time, and their lead over two baselines, averaged over the window."""
    summary = summary_of("arms")
    leads = [summary, summary_of("arms", baseline="grpo-ga")]
    rows = []
    for name, arm in summary["arms"].items():
        against = [lead["against_baseline"].get(name) for lead in leads]
        rows.append(
            (
                name,
                f"{arm['num_rollouts']}/{arm['num_generations']}",
                f"{arm['seconds_per_step']['value']:.2f}",
                share(arm["measures"]["accuracy"]["final"]),
                *(points(a["differences"]["accuracy"]["window"]) if a else "" for a in against),
            )
        )
    head = ("arm", "n/m", "s a step", "accuracy at the end", "minus grpo's", "minus grpo-ga's")
    return f"{table(head, rows)}\n\n{lead_sentence(leads[1])}"


def lead_sentence(against_grpo_ga: dict[str, Any]) -> str:
    """How much sooner PODS is where grpo-ga's best mean accuracy was."""
    found = against_grpo_ga["against_baseline"]["pods"]["speed_up"]["peak"]["interpolated"]
    low = f"{found['ratio_low']:.2f}" if found["ratio_low"] else "never"
    includes_1 = found["ratio_low"] <= 1 <= found["ratio_high"]
    return (
        f"pods reaches grpo-ga's best mean accuracy {found['ratio']:.2f} times sooner (95 % "
        f"interval: {low} to {found['ratio_high']:.2f}{', which includes 1' * includes_1})."
    )


# Of an arm of benchmarks/objectives: a setting, what the recipe says of it now, what the run did.
RAN_OTHERWISE = {"max_abs_advantage": ("advantage_from", "all", "kept statistics, not CPPO's")}
# Arms of both: what the others are compared with, and the twin of dr_grpo.
OF_BOTH = ("pods", "rloo")


def methods_table() -> str:
    """The arms of objectives that papers has not, at equal training time, minus the baseline's."""
    summary = summary_of("objectives")
    settings = read("objectives/comparison")["arms"]
    better = set(read("papers/comparison")["arms"]) - set(OF_BOTH)
    lines = (BENCHMARKS / "objectives" / "runs.jsonl").read_text().splitlines()
    starts = [json.loads(line)["curve"]["accuracy"][0] for line in lines]
    rows = [("(at the start)", "", f"{100 * sum(starts) / len(starts):.1f} %", "", "")]
    for name, arm in summary["arms"].items():
        if name in better:
            continue
        accuracy = arm["measures"]["accuracy"]
        against = summary["against_baseline"].get(name)
        end = against["differences"]["accuracy"]["end"] if against else None
        setting, now, told = RAN_OTHERWISE.get(name, ("", None, ""))
        rows.append(
            (
                name if settings[name].get(setting) == now else f"{name} ({told})",
                f"{arm['seconds_per_step']['value']:.2f}",
                f"{100 * accuracy['final']['value']:.1f} %",
                f"{100 * accuracy['peak']['value']:.1f} %",
                points(end) if end else "baseline",
            )
        )
    head = ("arm", "s a step", "at the end", "at its best", "minus baseline's, 95 % interval")
    return table(head, rows)


def points(difference: dict[str, float]) -> str:
    """A difference of shares and its interval in points."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


STEP_HEAD = ("arm, n/m", "sampling s", "update s", "step s", "range")
FIRST_CASE = "packaged 1 x (64 -> 16)"
FIRST_ARMS = ("grpo 64/64, TRL", "grpo 16/16, TRL", "pods 64/16, TRL's paths", "pods 64/16")


def step_row(name: str, figures: dict[str, float]) -> tuple[str, ...]:
    """Seconds of one arm's step."""
    each = [f"{figures[key]:.1f}" for key in ("sampling", "update", "total")]
    return (name, *each, f"{figures['total_min']:.1f} to {figures['total_max']:.1f}")


def steps_table() -> str:
    """Seconds of one training step, case by case and arm by arm."""
    rows = [
        (case, *step_row(name, figures))
        for case, result in read("step")["cases"].items()
        for name, figures in result["arms"].items()
    ]
    return table(("case", *STEP_HEAD), rows)


def step_table() -> str:
    """The first case without the arms that lie between TRL's paths and ours."""
    arms = read("step")["cases"][FIRST_CASE]["arms"]
    rows = [step_row(name, arms[name]) for name in FIRST_ARMS]
    return f"{table(STEP_HEAD, rows)}\n\n{step_ratios()}"


def step_ratios() -> str:
    """What the first case of the step table comes to."""
    ratios = read("step")["cases"][FIRST_CASE]["ratios"]
    wide, narrow, before = (
        f"{ratios[key]:.1f}"
        for key in ("grpo wide over ours", "grpo narrow over ours", "before over ours")
    )
    return (
        f"So TRL's GRPO takes {wide} times as long for a step on all 64, {narrow} times as long "
        f"with 16 sampled and 16 trained on, and PODS on TRL's paths {before} times as long."
    )


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


def tune_table() -> str:
    """What searches of 24 trials find on simulated surfaces, space by space."""
    rows = []
    for row in read("simulations")["tune"]["searches"]:
        shares = [
            "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * x for x in row[key]))
            for key in (
                "recommended_within_half_a_point",
                "confirmed_within_half_a_point",
                "tried_within_half_a_point",
            )
        ]
        below = "{:.1f} ({:.1f} to {:.1f})".format(*row["confirmed_points_below"])
        rows.append((row["space"], row["method"], f"{row['repeats']}", *shares, below))
    head = (
        "chosen",
        "search",
        "repeats",
        "recommended",
        "after the confirmation",
        "among all tried",
    )
    return table((*head, "points below the best, confirmed"), rows)


def faults_table() -> str:
    """Attempts and failures, row by row, today and before the mends."""
    found = read("faults")
    rows = []
    for name, row in found["rows"].items():
        before = found.get("before", {}).get("rows", {}).get(name, {"attempts": 0, "failures": 0})
        earlier = f"{before['failures']} of {before['attempts']}" if before["attempts"] else ""
        rows.append(
            (f"`{name}`", row["about"], f"{row['attempts']}", f"{row['failures']}", earlier)
        )
    total = [sum(row[key] for row in found["rows"].values()) for key in ("attempts", "failures")]
    rows.append(("", "in all", f"{total[0]}", f"{total[1]}", ""))
    return table(("row", "what was tried", "attempts", "failures", "failures before"), rows)


Measure = tuple[str, str, int, Callable[[float], float], str]
# Of a comparison at equal steps, column by column: heading, key of the curve or of the metrics that
# were kept, which evaluation, what is made of the value, and how it is written.
BY_ACCURACY: list[Measure] = [
    ("right at the end, %", "accuracy", -1, lambda share: 100 * share, ".1f"),
    ("mean over the three evaluations, %", "accuracy", MEAN, lambda share: 100 * share, ".1f"),
]
EXPERIMENTS: dict[str, list[Measure]] = {
    "papers": BY_ACCURACY,
    "votes": BY_ACCURACY,
    "diversity": [
        ("right at the end, %", "accuracy", -1, lambda share: 100 * share, ".1f"),
        (
            "pairs of right rollouts that differ, last 20 steps, %",
            "diversity/frac_different",
            -1,
            lambda share: 100 * share,
            ".1f",
        ),
        ("entropy of right ones, nats", "diversity/entropy", -1, float, ".2f"),
        ("different right ones of n", "diversity/num_right_answers", -1, float, ".1f"),
    ],
    "checks": [
        ("right at the end, greedy, %", "accuracy", -1, lambda share: 100 * share, ".1f"),
        (
            "right rollouts, last 20 steps, %",
            "rewards/correctness/mean",
            -1,
            lambda share: 100 * share,
            ".1f",
        ),
        (
            "inconsistent rollouts, last 20 steps, %",
            "rewards/consistency/mean",
            -1,
            lambda share: 100 * (1 - share),
            ".1f",
        ),
    ],
}


Runs = dict[str, dict[int, dict[str, Any]]]


def finished_runs(name: str) -> Runs:
    """The finished runs of a collected comparison, by arm and seed."""
    lines = (BENCHMARKS / name / "runs.jsonl").read_text().splitlines()
    runs: Runs = {}
    for record in map(json.loads, lines):
        if record.get("finished"):
            runs.setdefault(record["arm"], {})[record["seed"]] = record
    return runs


def experiment_table(name: str) -> str:
    """Each arm's means over seeds, and what it has more than the baseline, paired by seed."""
    runs = finished_runs(name)
    baseline = read(f"{name}/comparison")["baseline"]
    measures = EXPERIMENTS[name]
    rows = [("(at the start)", "", *(_start(runs[baseline], measure) for measure in measures))]
    for arm, of_seed in runs.items():
        means = [_mean(of_seed, measure) for measure in measures]
        if arm != baseline:
            leads = [_lead(of_seed, runs[baseline], measure) for measure in measures]
            means = [f"{mean}, {lead}" for mean, lead in zip(means, leads, strict=True)]
        rows.append((arm, f"{len(of_seed)}", *means))
    return table(("arm", "seeds", *(heading for heading, *_ in measures)), rows)


# Words of the papers that train as another does: the difference is what chance alone makes.
TWINS = {"rbrm": "dpo", "vargrad": "agro"}


def twins_table() -> str:
    """What a word has more than the one that it trains as, paired by seed, in points."""
    runs = finished_runs("papers")
    rows = []
    for word, other in TWINS.items():
        leads = [_lead(runs[word], runs[other], measure) for measure in BY_ACCURACY]
        rows.append((f"`{word}` minus `{other}`", f"{len(runs[word])}", *leads))
    return table(("points", "seeds", "at the end", "mean over the three evaluations"), rows)


def _value(record: dict[str, Any], measure: Measure) -> float:
    _, key, place, made, _ = measure
    values = (record["curve"] | record.get("metrics", {}))[key]
    chosen = values[1:] if place == MEAN else [values[place]]
    return made(sum(chosen) / len(chosen))


def _start(runs: dict[int, dict[str, Any]], measure: Measure) -> str:
    """The mean before training, nothing where a metric has no value without a step."""
    _, key, _, made, written = measure
    values = [made(run["curve"][key][0]) for run in runs.values() if key in run["curve"]]
    return f"{sum(values) / len(values):{written}}" if values else ""


def _mean(runs: dict[int, dict[str, Any]], measure: Measure) -> str:
    values = [_value(record, measure) for record in runs.values()]
    return f"{sum(values) / len(values):{measure[-1]}}"


def _lead(
    runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], measure: Measure
) -> str:
    shared = [seed for seed in runs if seed in others]
    pairs = [_value(runs[seed], measure) - _value(others[seed], measure) for seed in shared]
    found = mean_interval(pairs)
    value, low, high = (f"{found[key]:+{measure[-1]}}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


TABLES = {
    "README.md": {"pays": readme_table, "run-sentence": run_sentence, "step": step_table},
    "docs/results.md": {
        "run": run_table,
        "paths": paths_table,
        "steps": steps_table,
        "selection": selection_table,
        "arms": arms_table,
    },
    "docs/theory.md": {"pays": theory_table},
    "docs/methods.md": {"methods": methods_table, "twins": twins_table}
    | {name: partial(experiment_table, name) for name in EXPERIMENTS},
    "docs/tune.md": {"tune": tune_table},
    "docs/reliability.md": {"faults": faults_table},
}


def render(name: str, text: str) -> str:
    """The text of the file with every table between its markers written anew."""
    for title, make in TABLES[name].items():
        pattern = re.compile(rf"(<!-- table: {title} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"{name} has no markers for the table {title}"
        text = pattern.sub(lambda match, make=make: match[1] + make() + "\n" + match[2], text)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name in TABLES:
        path = ROOT / name
        text = path.read_text()
        wanted = render(name, text)
        if wanted != text:
            stale.append(name)
        if not check:
            path.write_text(wanted)
    if check and stale:
        print(f"stale tables in {', '.join(stale)}: run python benchmarks/readme.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
