"""benchmarks/pays.py: what stands beside what was measured is what was predicted."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import pays

from podsrl.intervals import mean_interval


def test_a_pilot_and_its_rho_give_the_steps_ratios_that_plan_wrote_down() -> None:
    """From rounded mean, spread and rho: within 3 % of what plan made of the unrounded ones."""
    for task in pays.collected(pays.TASKS):
        rho = pays.beforehand()[task]["pilot"]["rho"][0]
        again = pays.by_rho(task, "steps", rho)
        assert set(again) == {"grpo-32", "grpo-ga", "pods-32", "pods"}
        before = pays.predicted(task)["steps"]
        assert again == pytest.approx({arm: before[arm][0] for arm in again}, rel=0.03)


def test_a_larger_rho_brings_every_arm_nearer_to_one() -> None:
    small, large = (pays.by_rho("hard", "steps", rho) for rho in (0.1, 10.0))
    assert all(1 < large[arm] < small[arm] for arm in small)
    in_time = pays.by_rho("hard", "time", 0.1)
    assert all(in_time[arm] < small[arm] for arm in small)  # every arm's step is longer


def test_how_many_lie_inside_is_counted_from_the_same_numbers() -> None:
    for kind in ("steps", "time"):
        seen, before = pays.measured("hard")[kind], pays.predicted("hard")[kind]
        for arm, is_inside in pays.inside("hard", kind).items():
            _, low, high = seen[arm]
            assert is_inside == (low <= before[arm][0] <= high)
        most, least, largest = pays.fitting_rhos("hard", kind)
        found = pays.by_rho("hard", kind, (least * largest) ** 0.5)
        assert most == sum(seen[arm][1] <= x <= seen[arm][2] for arm, x in found.items())


def test_an_arm_that_never_gets_there_is_told_so() -> None:
    assert pays.interval((0.85, 0.631, 1.07)) == ".85 (.63 to 1.07)"
    assert pays.interval((0.93, 0.0, 1.36)) == ".93 (never to 1.36)"
    assert pays.interval(None) == ""


def test_the_sentence_at_equal_time_says_what_its_runs_say() -> None:
    """Mean and interval over seeds of pods minus grpo at the last mark, in points."""
    root = Path(__file__).resolve().parents[1]
    lines = (root / "benchmarks" / "pays-hard-seconds" / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    last = {(run["arm"], run["seed"]): 100 * run["curve"]["accuracy"][-1] for run in runs}
    seeds = sorted({seed for _, seed in last})
    ahead = mean_interval([last["pods", seed] - last["grpo", seed] for seed in seeds])
    mean, low, high = (f"{abs(float(ahead[key] or 0)):.1f}" for key in ("value", "low", "high"))
    assert ahead["high"] is not None and ahead["high"] < 0 and len(seeds) == 5
    sentence = f"64/16 is {mean} points behind ({high} to {low})"
    assert sentence in (root / "README.md").read_text()
    bare = [each.removeprefix("0") for each in (mean, low, high)]
    assert "-{} points (-{} to -{})".format(*bare) in (root / "docs" / "theory.md").read_text()
