"""The report: the numbers of real curves, what it says in words, and its files."""

import json
import re
from pathlib import Path

import pytest

from helpers.arms import ROWS, write_comparison, write_run
from podsrl.cli import main as podsrl
from podsrl.report.figures import line_figure
from podsrl.report.read import read_comparisons
from podsrl.report.sentences import sentences
from podsrl.report.summary import summarise
from podsrl.report.theme import inline

MINUTES = ("min", 60.0)
AUTHORS = {
    # Title, arm: level, baseline's hours, grid and interpolated hours, ratio, its interval.
    "Instruct-GSM8K-512, measured on gsm8k": ("64/16", 81.64, 4.0, 2.5, 2.41, 1.66, (1.0, 2.4)),
    "Instruct-MATH-NF-512, measured on math500": ("32/8", 48.90, 6.0, 2.5, 2.49, 2.41, (1.1, 2.7)),
}


@pytest.mark.parametrize("title", AUTHORS)
def test_the_authors_curves(shared_data: Path, title: str):
    comparisons = read_comparisons([shared_data / "authors_runs" / "curves.csv"])
    (comparison,) = [found for found in comparisons if found.title == title]
    arm, level, base_hours, grid_hours, hours, ratio, bounds = AUTHORS[title]
    found = summarise(comparison)["against_baseline"][arm]["speed_up"]
    peak = found["peak"]["interpolated"]
    assert round(100 * peak["level"], 2) == level
    assert peak["baseline_reached"] == base_hours * 3600
    assert found["peak"]["grid"]["reached"] == grid_hours * 3600
    assert round(peak["reached"] / 3600, 2) == hours
    assert round(peak["ratio"], 2) == ratio
    assert [peak["ratio_low"], peak["ratio_high"]] == pytest.approx(bounds, abs=0.1)
    assert found["99 % of peak"]["grid"]["ratio"] == 2.0


def summary_of(folder: Path) -> dict:
    (comparison,) = read_comparisons([folder])
    return summarise(comparison)


def test_numbers_of_a_comparison(tmp_path):
    # Peak of grpo 0.6 at 180 s; pods 0.55 at 60 s, 0.7 at 120 s: 60 + 60 x 0.05 / 0.15 = 80 s.
    summary = summary_of(write_comparison(tmp_path / "mine"))
    peak = summary["against_baseline"]["pods"]["speed_up"]["peak"]
    assert peak["grid"]["reached"] == 120
    assert peak["interpolated"]["reached"] == pytest.approx(80)
    assert peak["interpolated"]["ratio"] == pytest.approx(2.25)
    # Window: (0.2 + 0.2 + 0.2) / 3 in every seed.
    window = summary["against_baseline"]["pods"]["differences"]["accuracy"]["window"]
    assert window["value"] == pytest.approx(0.2)
    assert window["paired"]
    # 90 steps in 180 s.
    assert summary["arms"]["pods"]["seconds_per_step"]["value"] == pytest.approx(2.0)
    assert summary["step_seconds_fit"]["fit"] is None
    assert summary["notes"] == [
        "Bootstrap intervals over fewer than 5 runs are too narrow: grpo, pods."
    ]


def test_what_follows(tmp_path):
    summary = summary_of(write_comparison(tmp_path / "mine"))
    (text,) = sentences(summary, MINUTES)
    assert text.startswith(
        "pods reached grpo's best mean accuracy (60.00 %) after 1.3 min, grpo after 3.0 min: "
        "2.25 times as fast (95 % interval "
    )
    assert "no difference" not in text
    assert text.endswith(
        " Over the window, pods's accuracy was 20.0 points above grpo's (20.0 to 20.0); at its end "
        "(3.0 min), 20.0 points above grpo's (20.0 to 20.0)."
    )


def test_no_difference_is_called_none(tmp_path):
    rows = {"grpo": ROWS["grpo"], "pods": {0: [0.2, 0.4, 0.4, 0.7], 1: [0.2, 0.3, 0.6, 0.5]}}
    (text,) = sentences(summary_of(write_comparison(tmp_path / "mine", rows)), MINUTES)
    assert "The interval includes 1: no difference in speed can be told." in text
    assert "so no difference can be told" in text


def test_never_is_said(tmp_path):
    rows = {"grpo": ROWS["grpo"], "pods": {s: [0.2, 0.2, 0.3, 0.3] for s in range(3)}}
    summary = summary_of(write_comparison(tmp_path / "mine", rows))
    peak = summary["against_baseline"]["pods"]["speed_up"]["peak"]["interpolated"]
    assert peak["reached"] == "never"
    assert peak["ratio"] == 0
    assert peak["frac_never"] == 1.0
    assert sentences(summary, MINUTES)[0].startswith(
        "pods never reached grpo's best mean accuracy (60.00 %) within what was measured, nor did "
        "it in any draw of runs. Over the window, pods's accuracy was 21.7 points below grpo's (−"
    )
    json.dumps(summary, allow_nan=False)


def test_one_run_has_no_interval(tmp_path):
    rows = {arm: {0: runs[0]} for arm, runs in ROWS.items()}
    summary = summary_of(write_comparison(tmp_path / "mine", rows))
    assert "pods: one run, so its figures have no interval." in summary["notes"]
    (text,) = sentences(summary, MINUTES)
    assert "it may be chance" in text
    assert "too few runs for an interval" in text


def change_curves(folder: Path, change) -> None:
    for path in folder.glob("*/*/curve.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for index, row in enumerate(rows):
            change(path.parts[-3], index, row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_gain_in_format_alone_is_named(tmp_path):
    same = {"grpo": ROWS["grpo"], "pods": ROWS["grpo"]}
    folder = write_comparison(tmp_path / "mine", same)

    def better_format(arm, index, row):
        if arm == "pods":
            row["both_rate"] = row["accuracy"]

    change_curves(folder, better_format)
    assert any(
        "the gain is in the format" in text for text in sentences(summary_of(folder), MINUTES)
    )


def test_collapse_is_flagged(tmp_path):
    folder = write_comparison(tmp_path / "mine")

    def collapse(arm, index, row):
        if arm == "grpo" and index == 3 and row["accuracy"] == 0.62:
            row["format_rate"] = 0.05

    change_curves(folder, collapse)
    assert (
        "In 1 of 3 runs of grpo the format rate died (90 to 5 %) while answer accuracy held."
        in sentences(summary_of(folder), MINUTES)
    )


def test_fit_needs_the_same_prompts_per_step(tmp_path):
    folder = write_comparison(tmp_path / "mine")
    content = json.loads((folder / "comparison.json").read_text())
    for arm, batch in (("grpo", 8), ("pods", 16)):
        content["arms"][arm] |= {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
        }
    (folder / "comparison.json").write_text(json.dumps(content))
    assert "different numbers of prompts" in summary_of(folder)["step_seconds_fit"]["why"]


def test_a_figure_is_the_same_every_time_and_follows_the_page(tmp_path):
    (comparison,) = read_comparisons([write_comparison(tmp_path / "mine")])
    first, second = (
        line_figure(comparison, "accuracy", "Accuracy", unit=MINUTES) for _ in range(2)
    )
    assert first == second
    assert first.alt == "Accuracy: grpo ends at 60.0 %; pods ends at 80.0 %."
    inlined = inline(first.svg, "c1", "alt")
    assert "#" not in re.sub(r"url\(#c1-|href=\"#c1-", "", inlined)  # no colour of its own
    assert "var(--arm-1)" in inlined


def test_a_start_far_below_is_left_out_and_said(tmp_path):
    rows = {"grpo": {0: [0.1, 0.8, 0.81, 0.82]}, "pods": {0: [0.1, 0.83, 0.84, 0.85]}}
    (comparison,) = read_comparisons([write_comparison(tmp_path / "mine", rows)])
    drawn = line_figure(comparison, "accuracy", "Accuracy", unit=MINUTES)
    assert drawn.caption.endswith("The start, 10.0 %, is below the picture.")


def test_command_prints_what_follows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("podsrl.report.write.draw_figures", lambda *_: [])
    folder = write_comparison(tmp_path / "mine")
    assert podsrl(["report", str(folder)]) == 0
    output = capsys.readouterr().out
    head, line = output.splitlines()[1:3]
    assert head.split("  ")[0] == "against"
    assert line.startswith("grpo     pods  +20.00 (+20.00 to +20.00)  2.25 (")
    assert "2.25 times as fast" not in output  # the table says it
    assert "Bootstrap intervals over fewer than 5 runs are too narrow" in output
    assert f"written to {folder / 'report' / 'report.html'}" in output


def test_mistakes_are_one_line_with_status_two(tmp_path, capsys):
    assert podsrl(["report", str(tmp_path / "none")]) == 2
    folder = write_comparison(tmp_path / "mine")
    assert podsrl(["report", str(folder), "--baseline", "ppo"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 2
    assert "choose from grpo, pods" in captured.err
    assert not (folder / "report").exists()


def test_an_arm_without_a_finished_run_is_told(tmp_path):
    folder = write_comparison(tmp_path / "mine", {"grpo": ROWS["grpo"], "pods": {}})
    write_run(folder / "pods" / "seed-0", [0.2, 0.5], finished=False)
    summary = summary_of(folder)
    assert any("pods: no run has finished" in note for note in summary["notes"])
    # grpo's best, 0.6, is above the 0.5 reached so far.
    assert sentences(summary, MINUTES)[0].startswith("pods never reached")
