"""Reading curves from folders and CSV files, and putting runs on a common grid."""

import json

import pytest

from helpers.arms import ROWS, write_comparison, write_lines, write_run
from podsrl.report.curves import Arm, Run, curve_of
from podsrl.report.read import read_comparisons
from podsrl.report.sentences import sentences
from podsrl.report.summary import summarise

HEADER = "setting,run,hours,step,dataset,ans_acc_mean,for_acc_mean,both_acc_mean,mean_length\n"


def arm_of(*runs, **options):
    """An arm of runs given as lists of (seconds, mark, step, accuracy)."""
    keys = ("seconds", "mark", "step", "accuracy")
    points = [[dict(zip(keys, row, strict=True)) for row in run] for run in runs]
    return Arm(
        name="arm",
        settings={},
        runs=[Run(seed=str(i), points=list_, **options) for i, list_ in enumerate(points)],
    )


def test_runs_are_interpolated_onto_the_marks():
    # At 60 s: 0.2 + 0.1 x 60/64 = 0.29375; the last step ended at 119 s and holds to 120.
    arm = arm_of([(0, 0, 0, 0.2), (64, 60, 4, 0.3), (119, 120, 8, 0.5)])
    curve = curve_of(arm, "accuracy")
    assert curve.at_K.tolist() == [0, 60, 120]
    assert curve.values_SK[0].tolist() == pytest.approx([0.2, 0.29375, 0.5])


def test_the_grid_ends_with_the_shortest_run():
    arm = arm_of(
        [(0, 0, 0, 0.2), (60, 60, 4, 0.3), (120, 120, 8, 0.5)],
        [(0, 0, 0, 0.2), (60, 60, 4, 0.5), (80, None, 8, 0.6)],
    )
    curve = curve_of(arm, "accuracy")
    assert curve.at_K.tolist() == [0, 60]
    assert curve.mean_K.tolist() == pytest.approx([0.2, 0.4])


def test_runs_without_marks_meet_where_all_were_measured():
    arm = arm_of(
        [(0, None, 0, 0.2), (100, None, 10, 0.6)],
        [(0, None, 0, 0.2), (30, None, 5, 0.5), (50, None, 10, 0.8)],
    )
    curve = curve_of(arm, "accuracy")
    assert curve.at_K.tolist() == [0, 50]
    assert curve.values_SK[:, 1].tolist() == pytest.approx([0.4, 0.8])
    assert curve_of(arm, "accuracy", over="step").at_K.tolist() == [0, 10]


def test_a_measure_nobody_has():
    assert curve_of(arm_of([(0, 0, 0, 0.2)]), "format_rate") is None


def test_comparison_folder(tmp_path):
    (comparison,) = read_comparisons([write_comparison(tmp_path / "mine")])
    assert comparison.title == "mine"
    assert comparison.baseline == "grpo"
    assert list(comparison.arms) == ["grpo", "pods"]
    assert comparison.arms["pods"].size == (16, 4)
    assert comparison.about["device"] == "cpu, 2 threads"
    assert comparison.notes == []
    curve = curve_of(comparison.arms["pods"], "accuracy")
    assert curve.seeds == ["0", "1", "2"]
    assert curve.values_SK.tolist() == list(ROWS["pods"].values())
    # Phases of PHASES, the same in every step.
    assert comparison.arms["grpo"].runs[0].phases == pytest.approx(
        {"sampling": 1.0, "rewards": 0.1, "selection": 0.1, "update": 0.8}
    )


def test_failed_missing_and_unfinished_runs_are_told(tmp_path):
    rows = {"grpo": ROWS["grpo"], "pods": {0: ROWS["pods"][0], 1: ROWS["pods"][1]}}
    folder = write_comparison(tmp_path / "mine", rows)
    (folder / "pods" / "seed-1" / "result.json").unlink()
    (folder / "grpo" / "seed-2" / "failed.json").write_text(
        json.dumps({"exit_status": 1, "last_lines": ["Traceback", "MemoryError: too big", ""]})
    )
    (comparison,) = read_comparisons([folder])
    assert comparison.notes == [
        "grpo, seed 2: failed (exit status 1: MemoryError: too big).",
        "pods, seed 1: not finished, so it is left out if another run of the arm has finished.",
        "pods, seed 2: no evaluation yet.",
    ]
    assert [run.seed for run in comparison.arms["grpo"].used] == ["0", "1"]
    assert [run.seed for run in comparison.arms["pods"].used] == ["0"]


def test_runs_that_have_not_begun_are_one_note_an_arm(tmp_path):
    rows = {"grpo": ROWS["grpo"], "pods": {0: ROWS["pods"][0]}, "late": {}}
    write_comparison(tmp_path / "mine", rows)
    content = json.loads((tmp_path / "mine" / "comparison.json").read_text())
    content["seeds"] = [0, 1, 2, 3, 7]
    (tmp_path / "mine" / "comparison.json").write_text(json.dumps(content))
    (comparison,) = read_comparisons([tmp_path / "mine"])
    assert comparison.notes == [
        "grpo, seeds 3, 7: no evaluation yet.",
        "pods, seeds 1, 2, 3, 7: no evaluation yet.",
    ]
    assert "late: no run was evaluated, so it is in no figure." in summarise(comparison)["notes"]


def test_an_arm_without_a_finished_run_shows_what_it_has(tmp_path):
    folder = write_comparison(tmp_path / "mine", {"grpo": ROWS["grpo"], "pods": {}})
    write_run(folder / "pods" / "seed-0", [0.2, 0.5], finished=False)
    (comparison,) = read_comparisons([folder])
    assert curve_of(comparison.arms["pods"], "accuracy").at_K.tolist() == [0, 60]


def write_single(folder, *, seed=0, n=16, accuracy=0.5):
    """A run folder as podsrl train writes it, without a curve."""
    folder.mkdir()
    config = {"seed": seed, "output_dir": str(folder), "task": "arithmetic", "model": "tiny"}
    config |= {"num_rollouts": n, "num_generations": 4, "selection_rule": "max_variance"}
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(
        folder / "metrics.jsonl",
        [{"step": s, "reward": 0.1 * s, "time/sampling_seconds": 1.5} for s in (2, 4)],
    )
    for when, value in (("before", 0.2), ("after", accuracy)):
        (folder / when).mkdir()
        found = {"accuracy_greedy": {"value": value}, "format_rate": None}
        (folder / when / "evaluation.json").write_text(json.dumps(found))
    (folder / "result.json").write_text("{}")
    return folder


def test_single_runs_are_arms_by_their_settings(tmp_path):
    folders = [
        write_single(tmp_path / "a", seed=0),
        write_single(tmp_path / "b", seed=1, accuracy=0.7),
        write_single(tmp_path / "c", n=4),
    ]
    (comparison,) = read_comparisons(folders)
    assert comparison.baseline == "GRPO 4/4"
    assert list(comparison.arms) == ["GRPO 4/4", "max_variance 16/4"]
    curve = curve_of(comparison.arms["max_variance 16/4"], "accuracy")
    assert curve.at_K.tolist() == [0, 6]  # 4 steps of 1.5 s
    assert curve.mean_K.tolist() == pytest.approx([0.2, 0.6])


def test_a_setting_that_older_folders_do_not_have_makes_no_arm(tmp_path):
    folders = [write_single(tmp_path / "a", seed=0), write_single(tmp_path / "b", seed=1)]
    config = json.loads((folders[1] / "config.json").read_text())
    config["evaluate_every_steps"] = None
    (folders[1] / "config.json").write_text(json.dumps(config))
    (comparison,) = read_comparisons(folders)
    assert [len(arm.runs) for arm in comparison.arms.values()] == [2]
    assert comparison.clock == "seconds"


def test_arms_that_would_share_a_name_are_named_for_their_folders(tmp_path):
    folders = [write_single(tmp_path / name) for name in ("a", "b")]
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**config, "learning_rate": 1e-3}))
    (comparison,) = read_comparisons(folders)
    assert list(comparison.arms) == ["max_variance 16/4, a", "max_variance 16/4, b"]
    assert comparison.baseline is None
    findings = sentences(summarise(comparison), ("s", 1.0))
    assert findings[0] == "max_variance 16/4, a's accuracy went from 20.0 to 50.0 %."
    assert findings[2].startswith("No arm is the baseline")


def test_csv(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(
        HEADER
        + "base,0,0,0,gsm8k,0.2,0.1,0.05,100\nbase,0,0,0,amc23,0.1,,,\n"
        + "Mine-GSM8K-64-16,1,1.0,100,gsm8k,0.6,0.9,0.5,90\n"
        + "Mine-GSM8K-64-16,1,0.5,50,gsm8k,0.4,0.8,0.3,90\n"
        + "Mine-GSM8K-16-16,1,0.5,80,gsm8k,0.3,,,\nMine-GSM8K-16-16,1,1.0,160,gsm8k,0.5,,,\n"
        + "Mine-GSM8K-16-16,2,0.5,80,gsm8k,0.3,,,\n"
        + "Mine-GSM8K-64-16,1,1.0,100,amc23,0.2,,,\n"
    )
    first, second = read_comparisons([path])
    assert [first.title, second.title] == [
        "Mine-GSM8K, measured on gsm8k",
        "Mine-GSM8K, measured on amc23",
    ]
    assert (first.transfer, second.transfer) == (False, True)
    assert first.baseline == "16/16"
    curve = curve_of(first.arms["64/16"], "accuracy")
    assert curve.at_K.tolist() == [0, 1800, 3600]
    assert curve.mean_K.tolist() == [0.2, 0.4, 0.6]
    assert first.notes == ["16/16, run 2: ends before the others of its arm, so it is left out."]
    assert list(second.arms) == ["64/16"]
    assert second.baseline is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setting,run,hours\n", "no column ans_acc_mean"),
        (HEADER, "no rows"),
        (HEADER + "A-4-4,1,0.5,1,x,high,,,\n", "line 2: ans_acc_mean is 'high'"),
        (HEADER + "A-4-4,1,,1,x,0.5,,,\n", "hours is empty"),
    ],
)
def test_mistakes_in_a_csv(tmp_path, text, message):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_comparisons([path])


def test_mistakes_in_paths_and_baseline(tmp_path):
    with pytest.raises(ValueError, match="holds neither"):
        read_comparisons([tmp_path / "nothing"])
    folder = write_comparison(tmp_path / "mine")
    with pytest.raises(ValueError, match="choose from grpo, pods"):
        read_comparisons([folder], baseline="ppo")
    (turned,) = read_comparisons([folder], baseline="pods")
    assert list(turned.arms) == ["pods", "grpo"]
    empty = write_comparison(tmp_path / "empty", {"grpo": {}, "pods": {}})
    with pytest.raises(ValueError, match="no evaluation"):
        read_comparisons([empty])
