"""Comparisons at equal optimizer steps: their numbers, steps turned into time, predictions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from helpers.arms import ROWS, curve, write_comparison
from podsrl.cli import main as podsrl
from podsrl.report.axis import axis_label, duration, levels, time_unit
from podsrl.report.curves import STEPS
from podsrl.report.page import page
from podsrl.report.read import read_comparisons
from podsrl.report.sentences import sentences
from podsrl.report.speedup import speed_up
from podsrl.report.summary import summarise
from podsrl.report.write import in_brief

SECONDS = {
    "grpo": {"value": 1.0, "low": 0.9, "high": 1.1},
    "pods": {"value": 1.5, "low": 1.5, "high": 1.5},
}


def by_steps(folder: Path, *, seconds: dict | None = None, **more) -> Path:
    """The comparison of ROWS as `budget: steps` writes it: 30 steps between evaluations."""
    write_comparison(folder)
    content = json.loads((folder / "comparison.json").read_text())
    del content["training_seconds"], content["evaluate_every_seconds"]
    content |= {"budget": "steps", "max_steps": 90, "evaluate_every_steps": 30, **more}
    (folder / "comparison.json").write_text(json.dumps(content))
    for path in folder.glob("*/*/curve.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        slow = 1 + len(path.parts[-2])  # what else the machine did
        rows = [
            row | {"mark_seconds": None, "training_seconds": slow * row["training_seconds"]}
            for row in rows
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if seconds is not None:
        path = folder / "seconds_per_step.json"
        path.write_text(json.dumps({"seconds_per_step": seconds}))
    return folder


def summary_of(folder: Path, **options) -> dict:
    (comparison,) = read_comparisons([folder], **options)
    return summarise(comparison)


def test_times_are_steps(tmp_path):
    # Peak of grpo 0.6 at step 90; pods 0.55 at 30, 0.7 at 60: 30 + 30 x 0.05 / 0.15 = 40.
    summary = summary_of(by_steps(tmp_path / "mine"))
    assert summary["clock"] == "steps"
    found = summary["against_baseline"]["pods"]["speed_up"]["peak"]
    assert found["interpolated"]["baseline_reached"] == 90
    assert found["interpolated"]["reached"] == pytest.approx(40)
    assert found["interpolated"]["ratio"] == pytest.approx(2.25)
    assert found["grid"]["reached"] == 60 and "time_ratio" not in found["grid"]
    against = summary["against_baseline"]["pods"]
    assert against["lead"]["at"] == [0, 30, 60, 90]
    assert against["differences"]["accuracy"]["window"]["until"] == 90
    assert "at_equal_time" not in against
    assert summary["about"]["max_steps"] == 90 and summary["about"]["evaluate_every_steps"] == 30


def test_the_steps_of_an_evaluation_are_kept_also_where_the_last_gap_is_shorter(tmp_path):
    folder = by_steps(tmp_path / "mine")
    for path in folder.glob("*/*/curve.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[-1]["step"] = 70
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert summary_of(folder)["arms"]["pods"]["curves"]["accuracy"]["at"] == [0, 30, 60, 70]


def test_a_share_of_the_baselines_best(tmp_path):
    # 95 % of 0.6 is 0.57: grpo 0.5 at 60, 0.6 at 90: 60 + 30 x 0.07 / 0.1 = 81; pods 0.55 at 30,
    # 0.7 at 60: 30 + 30 x 0.02 / 0.15 = 34.
    folder = by_steps(tmp_path / "mine", share=0.95)
    speed_ups = summary_of(folder)["against_baseline"]["pods"]["speed_up"]
    assert list(speed_ups) == ["95 % of peak", "peak", "99 % of peak"]
    found = speed_ups["95 % of peak"]["interpolated"]
    assert found["level"] == pytest.approx(0.57)
    assert (found["baseline_reached"], found["reached"]) == pytest.approx((81, 34))
    assert found["ratio"] == pytest.approx(81 / 34)
    # The option wins over the comparison's own: 50 % of 0.6 is reached at 0.3.
    half = summary_of(folder, share=0.5)["against_baseline"]["pods"]["speed_up"]
    assert half["50 % of peak"]["interpolated"]["level"] == pytest.approx(0.3)
    assert list(levels(1.0)) == ["peak", "99 % of peak"]
    with pytest.raises(ValueError, match=r"--share is 1\.5: give a number above 0 and at most 1"):
        summary_of(folder, share=1.5)


def test_steps_become_time(tmp_path):
    # 90 steps of 1 s against 40 of 1.5 s: 90 / 60 = 1.5.
    summary = summary_of(by_steps(tmp_path / "mine", seconds=SECONDS))
    against = summary["against_baseline"]["pods"]
    found = against["speed_up"]["peak"]["interpolated"]
    assert found["time_ratio"] == pytest.approx(1.5)
    assert found["time_ratio_low"] < found["ratio_low"] / 1.5
    assert found["time_ratio_high"] > found["ratio_high"] / 1.5
    # Equal time: both until 90 s. grpo at 30, 60, 90 s: 0.35, 0.5, 0.6; pods at 45, 90 s (30, 60
    # steps) 0.55, 0.7, so at 30 s 0.2 + 0.35 x 30 / 45 = 0.43333, at 60 s 0.6, at 90 s 0.7.
    window = against["at_equal_time"]["window"]
    assert window["until"] == 90
    assert window["value"] == pytest.approx((0.43333 + 0.6 + 0.7 - 0.35 - 0.5 - 0.6) / 3, abs=1e-4)
    assert against["at_equal_time"]["end"]["value"] == pytest.approx(0.1)
    assert summary["arms"]["pods"]["seconds_per_step_alone"] == SECONDS["pods"]


def test_the_uncertainty_of_seconds_is_that_of_the_log_normal():
    # All runs alike, so the seconds alone are uncertain: 2 x 1 s over 1 x S, where S has the
    # interval 0.8 to 1.25: the ratio has 2 / 1.25 to 2 / 0.8.
    base, arm = curve([[0.0, 0.3, 0.6]] * 4), curve([[0.0, 0.6, 0.6]] * 4)
    times = tuple(
        {"value": 1.0, "low": low, "high": high} for low, high in ((1.0, 1.0), (0.8, 1.25))
    )
    found = speed_up(base, arm, interpolated=True, step_times=times, num_draws=50_000)
    assert found["time_ratio"] == 2.0
    assert (found["ratio_low"], found["ratio_high"]) == (2.0, 2.0)
    bounds = (found["time_ratio_low"], found["time_ratio_high"])
    assert bounds == pytest.approx((1.6, 2.5), rel=1e-2)


def test_never_and_at_once_stay_what_they_are_in_time():
    times = ({"value": 1.0, "low": 1.0, "high": 1.0}, {"value": 3.0, "low": 3.0, "high": 3.0})
    base, never = curve([[0.0, 0.5], [0.0, 0.5]]), curve([[0.0, 0.1], [0.0, 0.2]])
    assert speed_up(base, never, interpolated=True, step_times=times)["time_ratio_high"] == 0.0
    there = curve([[0.7, 0.8], [0.7, 0.8]])
    found = speed_up(base, there, interpolated=True, step_times=times)
    assert found["time_ratio"] == found["time_ratio_low"] == math.inf
    best = curve([[0.5, 0.4], [0.5, 0.4]])  # both at step 0: no seconds against no seconds
    assert speed_up(best, best, interpolated=True, step_times=times)["time_ratio"] == 1.0


def test_seeds_are_drawn_together():
    # Seed a is easy and b hard for both arms, each exactly twice as fast: so in every pair. Drawn
    # apart, baseline's hard seed would meet the arm's easy one.
    base = curve([[0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.2, 0.4, 0.6, 0.8]], seeds=["a", "b"])
    arm = curve([[0.0, 0.4, 0.8, 0.8, 0.8], [0.0, 0.2, 0.4, 0.4, 0.4]], seeds=["b", "a"])
    found = speed_up(base, arm, interpolated=True)
    assert found["paired"]
    bounds = (found["ratio"], found["ratio_low"], found["ratio_high"])
    assert bounds == pytest.approx((2.0, 2.0, 2.0))
    strangers = curve(arm.values_SK.tolist(), seeds=["c", "d"])
    apart = speed_up(base, strangers, interpolated=True)
    assert not apart["paired"]
    assert apart["ratio_low"] < 1.9 and apart["ratio_high"] > 2.1


def test_what_follows_says_steps(tmp_path):
    (text,) = sentences(summary_of(by_steps(tmp_path / "mine")), STEPS)
    assert text.startswith(
        "pods reached grpo's best mean accuracy (60.00 %) after 40 steps, grpo after 90 steps: "
        "2.25 times as fast by steps (95 % interval "
    )
    assert text.endswith("at its end (90 steps), 20.0 points above grpo's (20.0 to 20.0).")
    folder = by_steps(tmp_path / "timed", seconds=SECONDS, share=0.95)
    (text,) = sentences(summary_of(folder), STEPS)
    assert text.startswith("pods reached 95 % of grpo's best mean accuracy (57.00 %) after 34 step")
    assert "measured alone, it was 1.59 times as fast (95 % interval " in text  # 81 / (34 x 1.5)
    assert "At equal time, until 90.0 s, pods's accuracy was 9.4 points above grpo's (" in text
    for word in ("training time", " min"):
        assert word not in text


def test_words_of_an_axis():
    assert axis_label(STEPS) == "optimizer step"
    assert axis_label(("h", 3600.0)) == "training time, h"
    assert duration(81.4, STEPS) == "81 steps" and duration("never", STEPS) == "never"
    assert duration(90.0, time_unit(180.0)) == "1.5 min"


def predicted(ratio: str, value: float) -> dict:
    arms = {"pods": {"low": 0.9 * value, "value": value, "high": 1.1 * value}}
    return {"ratio": ratio, "baseline": "grpo", "arms": arms}


@pytest.mark.parametrize(
    ("ratio", "value", "inside"),
    [("steps", 2.25, True), ("steps", 4.5, False), ("time", 1.5, True), ("time", 2.25, False)],
)
def test_predictions_beside_what_was_measured(tmp_path, ratio, value, inside):
    folder = by_steps(tmp_path / "mine", seconds=SECONDS, predictions=predicted(ratio, value))
    summary = summary_of(folder)
    row = summary["predictions"]["arms"]["pods"]
    assert row["measured"] == pytest.approx(2.25 if ratio == "steps" else 1.5)
    assert row["inside"] is inside
    assert row["inside"] == (row["measured_low"] <= value <= row["measured_high"])
    assert (summary["predictions"]["num_inside"], summary["predictions"]["num_told"]) == (inside, 1)


def test_predictions_that_cannot_be_told(tmp_path):
    folder = by_steps(tmp_path / "mine", predictions=predicted("time", 1.2))
    summary = summary_of(folder)
    assert summary["predictions"]["arms"]["pods"]["inside"] is None
    assert summary["predictions"]["num_told"] == 0
    assert any("seconds per step are missing" in note for note in summary["notes"])
    other = summary_of(folder, baseline="pods")
    assert other["predictions"] is None
    assert any("predictions are against grpo" in note for note in other["notes"])


def test_predictions_of_a_comparison_by_seconds(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    content = json.loads((folder / "comparison.json").read_text())
    content["predictions"] = predicted("time", 2.25)
    (folder / "comparison.json").write_text(json.dumps(content))
    row = summary_of(folder)["predictions"]["arms"]["pods"]
    assert row["measured"] == pytest.approx(2.25) and row["inside"] is True


def test_on_screen_a_table_and_no_wall_of_text(tmp_path):
    folder = by_steps(
        tmp_path / "mine", seconds=SECONDS, share=0.95, predictions=predicted("time", 1.5)
    )
    lines = in_brief(summary_of(folder)).splitlines()
    assert lines[0] == "mine: accuracy over the window, and steps to 95 % of the other's best"
    columns = "against  arm   points ahead  times as fast by steps  times as fast by time  speed"
    assert lines[1].split() == columns.split()
    assert lines[2].startswith("grpo     pods  +20.00 (+20.00 to +20.00)  2.38 (")
    assert "1.59 (" in lines[2] and lines[2].endswith("faster")
    told = "Times as fast by time: 1 of 1 predictions lie inside the interval of what was measured"
    assert lines[4] == told
    assert lines[6].startswith("pods  1.50 (1.35 to 1.65)  1.59 (") and "inside" in lines[6]
    assert len(lines) == 9  # and one note: few runs
    by_steps_alone = in_brief(summary_of(by_steps(tmp_path / "plain"))).splitlines()
    assert by_steps_alone[2].endswith("fewer steps")


def test_the_page_says_which_clock_it_was(tmp_path):
    mine = by_steps(tmp_path / "mine", seconds=SECONDS, predictions=predicted("time", 1.5))
    text = page([summary_of(mine)], [[]])
    assert "compared at equal optimizer steps." in text and "times are steps" in text
    assert "compared at equal training time" not in text
    assert "The clock counts training alone" not in text
    assert "times as fast by time" in text and "measured alone" in text
    assert "1 of 1 predictions lie inside" in text
    seconds = page([summary_of(write_comparison(tmp_path / "other"))], [[]])
    assert "compared at equal training time." in seconds and "times are steps" not in seconds


def test_command_collects_times_and_names_files(tmp_path, capsys):
    folder = by_steps(tmp_path / "mine", seconds=SECONDS)
    kept = tmp_path / "kept"
    assert podsrl(["report", str(folder), "--share", ".95", "--collect", str(kept)]) == 0
    assert "1.59 (" in capsys.readouterr().out
    assert "at equal optimizer steps" in (folder / "report" / "report.html").read_text()
    names = {path.name for path in (folder / "report" / "figures").iterdir()}
    assert {"mine-lead-over-step.svg", "mine-accuracy-over-step.svg"} <= names
    assert not any("over-time" in name for name in names)
    assert summary_of(kept) == summary_of(folder)
    other = tmp_path / "own.json"
    other.write_text(json.dumps({"seconds_per_step": {a: SECONDS["grpo"] for a in SECONDS}}))
    assert podsrl(["report", str(kept), "--seconds_per_step", str(other)]) == 0
    (summary,) = json.loads((kept / "report" / "summary.json").read_text())["comparisons"]
    found = summary["against_baseline"]["pods"]["speed_up"]["peak"]["interpolated"]
    assert found["time_ratio"] == found["ratio"] == pytest.approx(2.25)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON file: podsrl compare FILE --time_steps writes one"),
        ("[]", "has no mapping seconds_per_step"),
        ('{"seconds_per_step": {"grpo": 1.0}}', "arm grpo is 1.0: give value, low and high"),
        ('{"seconds_per_step": {"grpo": {"value": 1, "low": 2, "high": 3}}}', "0 < low <= value"),
        ('{"seconds_per_step": {"grpo": {"value": 1, "low": 0, "high": 3}}}', "0 < low <= value"),
    ],
)
def test_seconds_that_are_none(tmp_path, content, words):
    folder = by_steps(tmp_path / "mine")
    (tmp_path / "seconds.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_comparisons([folder], seconds_per_step=tmp_path / "seconds.json")


def test_seconds_per_step_of_a_comparison_by_seconds_are_refused(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    with pytest.raises(ValueError, match="nothing here was compared at equal steps: leave it out"):
        read_comparisons([folder], seconds_per_step=tmp_path / "seconds.json")


def test_single_runs_evaluated_by_steps(tmp_path):
    folder = by_steps(tmp_path / "mine") / "pods" / "seed-0"
    (folder / "config.json").write_text(json.dumps({"seed": 0, "evaluate_every_steps": 30}))
    (comparison,) = read_comparisons([folder])
    assert comparison.clock == "steps"
    (arm,) = summarise(comparison)["arms"].values()
    assert arm["curves"]["accuracy"]["at"] == [0, 30, 60, 90]
    assert np.allclose(arm["curves"]["accuracy"]["mean"], ROWS["pods"][0])
