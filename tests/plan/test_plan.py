"""Fitting a step's cost, proposing n and m, and the plan command on a tiny model."""

import json

import pytest
import yaml

from podsrl.cli import plan as plan_command
from podsrl.plan import measure as plan_measure
from podsrl.plan import pilot as plan_pilot
from podsrl.plan import progress as progress_module
from podsrl.plan.fit import (
    Costs,
    Line,
    Point,
    check,
    fit,
    fit_line,
    held_out_points,
    merge,
    points_to_measure,
    predictions,
    propose,
)

NO_MEMORY = Line(0.0, 0.0)


def point(n: int, m: int, sampling: float, update: float, *, rows: int = 4, gib: float = 1.0):
    return Point(n, m, sampling, update, rows, gib)


def test_line_through_two_points():
    assert fit_line([1, 2], [3, 5]) == Line(1.0, 2.0)


def test_negative_intercept_becomes_a_line_through_zero():
    line = fit_line([1, 2], [1, 4])
    assert (line.intercept, line.slope) == (0.0, pytest.approx((1 * 1 + 2 * 4) / (1 + 4)))


def test_falling_times_become_a_constant():
    assert fit_line([4, 8], [3.0, 1.0]) == Line(2.0, 0.0)


def test_one_size_cannot_be_fitted():
    with pytest.raises(ValueError, match=r"all points lie at 4.*two sizes"):
        fit_line([4.0, 4.0], [1.0, 2.0])


def test_exact_costs_are_found_again():
    # sampling 1 + 0.5 n, update 2 + 0.25 m, memory 3 + 0.125 rows
    points = [
        point(n, m, 1 + 0.5 * n, 2 + 0.25 * m, rows=2 * m, gib=3 + 0.25 * m)
        for n, m in points_to_measure(16, 4)
    ]
    costs = fit(points)
    assert costs.sampling.slope == pytest.approx(0.5)
    assert costs.update.slope == pytest.approx(0.25)
    assert costs.memory.slope == pytest.approx(0.125)
    assert costs.seconds(16, 4) == pytest.approx(1 + 8 + 2 + 1)
    rows = check(costs, [point(10, 4, 5.0, 2.0)])  # predicted 1 + 5 + 2 + 1 = 9, measured 7
    assert rows[0]["relative_error"] == pytest.approx(9 / 7 - 1)


def test_measured_and_held_out_points_differ():
    assert points_to_measure(16, 4) == [(4, 4), (16, 4), (16, 8)]
    assert held_out_points(16, 4) == [(10, 4), (12, 6), (24, 4)]
    for n, m in ((16, 4), (64, 16), (8, 8), (6, 4), (2, 1)):
        measured, held_out = points_to_measure(n, m), held_out_points(n, m)
        assert not set(measured) & set(held_out)
        assert all(wide >= kept for wide, kept in measured + held_out)
        assert len({wide for wide, _ in measured}) > 1 < len({kept for _, kept in measured})


def test_rounds_are_merged_by_their_medians():
    merged = merge([point(4, 4, s, 2 * s, gib=s) for s in (1.0, 9.0, 2.0)])
    assert merged == [point(4, 4, 2.0, 4.0, gib=9.0)]


def test_dominant_update_makes_pods_pay():
    costs = Costs(Line(1.0, 0.01), Line(0.0, 1.0), NO_MEMORY)
    proposal = propose(costs, 4, 2, memory_gib=8.0)
    assert (proposal.num_rollouts, proposal.num_kept, proposal.pays) == (16, 4, True)
    assert (proposal.micro_rows, proposal.num_micro_batches) == (8, 1)
    # 1 + 0.01 n + m: 5.04, 17.16 and 5.16 seconds
    assert predictions(costs, proposal) == pytest.approx(
        {"grpo 4/4": 5.04, "grpo-ga 16/16": 17.16, "pods 16/4": 5.16}
    )


def test_dominant_sampling_is_told():
    costs = Costs(Line(0.0, 1.0), Line(0.0, 0.01), NO_MEMORY)
    proposal = propose(costs, 4, 2, memory_gib=8.0)
    assert not proposal.pays
    assert "sampling dominates" not in proposal.reasons[-1]  # n = 2 m doubles a step, no more
    assert "small part of the step" in proposal.reasons[-1]
    assert proposal.num_rollouts == 8  # 8.04 <= 2 x 4.04 < 12.04
    slower = Costs(Line(-0.0, 1.0), Line(0.0, 0.0), NO_MEMORY)
    assert propose(slower, 4, 2, memory_gib=8.0).num_rollouts == 8


def test_micro_batch_is_what_fits():
    memory = Line(2.0, 0.5)  # 4 groups of 4 rows need 10 GiB, 2 groups 6, 1 group 4
    costs = Costs(Line(1.0, 0.01), Line(0.0, 1.0), memory)
    assert propose(costs, 4, 4, memory_gib=12.0).micro_rows == 16  # 10 <= 10.8
    half = propose(costs, 4, 4, memory_gib=8.0)  # 10 > 7.2 >= 6
    assert (half.micro_rows, half.num_micro_batches) == (8, 2)
    with pytest.raises(ValueError, match=r"needs about 4.0 GiB.*gradient_checkpointing"):
        propose(costs, 4, 4, memory_gib=3.0)


def test_bad_recipes_are_refused_before_a_model_is_loaded(tmp_path, capsys):
    assert plan_command.main([str(tmp_path / "none.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_rollouts: 2\nnum_generations: 4\n")
    assert plan_command.main([str(recipe)]) == 2
    assert "less than num_generations" in capsys.readouterr().err


def test_plan_of_a_tiny_model(tiny_folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "task": "arithmetic",
        "model": str(tiny_folder),
        "num_rollouts": 4,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "beta": 0.0,
    }
    recipe.write_text(yaml.safe_dump(settings))
    output = tmp_path / "plan"
    command = [str(recipe), "--output", str(output), "--seconds", "0.001", "--steps", "1"]
    command += ["--pilot", "0"]
    assert plan_command.main(command) == 0
    content = json.loads((output / "plan.json").read_text())
    measured = [(p["num_rollouts"], p["num_kept"]) for p in content["points"]]
    assert measured == points_to_measure(4, 2)
    assert all(p["sampling_seconds"] > 0 < p["update_seconds"] for p in content["points"])
    planned = yaml.safe_load((output / "recipe.yaml").read_text())
    assert planned["num_generations"] == 2
    assert planned["num_rollouts"] == content["proposal"]["num_rollouts"]
    rows = planned["per_device_train_batch_size"] * planned["gradient_accumulation_steps"]
    assert rows == 4
    assert plan_command.main(command) == 2
    assert "holds a plan" in capsys.readouterr().err


def test_plan_with_a_pilot_of_a_tiny_model(tiny_folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "task": "arithmetic",
        "model": str(tiny_folder),
        "num_rollouts": 4,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "beta": 0.0,
    }
    recipe.write_text(yaml.safe_dump(settings))
    files = tmp_path / "gains.json", tmp_path / "gains.png"
    command = [str(recipe), "--output", str(tmp_path / "plan"), "--seconds", "0.001", "--steps=1"]
    command += ["--pilot", "6", "--pilot_rollouts", "8", "--json", str(files[0])]
    assert plan_command.main([*command, "--figure", str(files[1])]) == 0
    content = json.loads(files[0].read_text())
    assert content == json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert content["pilot"]["num_prompts"] == 6 and content["pilot"]["num_rollouts"] == 8
    best = max(content["gains"], key=lambda gain: gain["time_ratio"][1])
    assert content["advice"]["arm"] == best["arm"]
    assert content["dead_rows_free"] is True
    planned = yaml.safe_load((tmp_path / "plan" / "recipe.yaml").read_text())
    assert (planned["num_rollouts"], planned["num_generations"]) == (
        best["num_rollouts"],
        best["num_kept"],
    )
    told = capsys.readouterr().out
    assert content["spent"]["pilot_rollouts"] == 48
    # 2 prompts x (warm-up and one counted step) x (n of 2, 4 and 4)
    assert content["spent"]["timed_rollouts"] == 2 * 2 * (2 + 4 + 4)
    assert "40 rollouts to time steps and 48 for the pilot" in told
    assert "pilot: 48 of 48 rollouts, less than half a minute left of them" in told
    assert "a step is worth" in told and "times as fast as grpo 2/2" in told
    assert "pilot: 48 rollouts of 6 prompts" in told and content["advice"]["verdict"] in told
    assert files[1].stat().st_size > 5000


def test_whether_dead_rows_would_be_left_out():
    recipe = {"num_generations": 4, "num_rollouts": 4}
    assert plan_measure.skips_dead_rows({**recipe, "beta": 0.0})
    assert not plan_measure.skips_dead_rows({**recipe, "beta": 0.1})
    assert not plan_measure.skips_dead_rows({**recipe, "beta": 0.0, "skip_dead_rows": False})


def test_what_the_pilot_could_not_do_is_refused_first(tmp_path, capsys):
    for flags, words in (
        (["--pilot", "-1"], "--pilot is -1"),
        (["--pilot-rollouts", "1"], "--pilot-rollouts 1: give 0 or more prompts, and 2 or more"),
        (["--pilot", "0", "--figure", "a.png"], "leave --pilot 0 out"),
        (["--figure", "a.txt"], "--figure is a.txt: end it with .png, .svg, .pdf"),
    ):
        assert plan_command.main([str(tmp_path / "none.yaml"), *flags]) == 2
        assert words in capsys.readouterr().err


def test_rounds_go_there_and_back_after_one_that_does_not_count(monkeypatch):
    pairs, seen = [(4, 4), (16, 4), (16, 8)], []
    monkeypatch.setattr(plan_measure, "settings_at", lambda recipe, plan, n, m, num_steps: (n, m))
    monkeypatch.setattr(plan_measure, "measure", lambda settings: seen.append(settings) or settings)
    clock = iter([0.0, 5.0, 20.0])  # start, after the first round, after the second
    monkeypatch.setattr(plan_measure.time, "perf_counter", lambda: next(clock))
    plan = plan_measure.Layout(16, 4, 1, 1)
    rounds = plan_measure.measure_rounds({}, plan, pairs, num_steps=1, at_least_seconds=10)
    assert list(rounds) == [*pairs, *reversed(pairs)]
    assert seen == [(4, 4), *pairs, *reversed(pairs)]


def tiny_recipe(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    settings = {"task": "arithmetic", "model": str(folder), "num_rollouts": 4}
    settings |= {"num_generations": 2, "per_device_train_batch_size": 4}
    recipe.write_text(yaml.safe_dump(settings | {"max_completion_length": 4, "beta": 0.0}))
    return [str(recipe), "--output", str(tmp_path / "plan"), "--pilot", "6"]


def measured_until_ctrl_c(points):
    def rounds(*arguments, **options):
        yield from points
        raise KeyboardInterrupt

    return rounds


def test_ctrl_c_tells_what_was_measured(tiny_folder, tmp_path, monkeypatch, capsys):
    points = [point(n, m, 1 + n / 4, 1 + m / 2, rows=m) for n, m in points_to_measure(4, 2)]
    monkeypatch.setattr(plan_measure, "measure_rounds", measured_until_ctrl_c(points))
    assert plan_command.main(tiny_recipe(tiny_folder, tmp_path)) == 130
    content = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert content["stopped"] is True and "gains" not in content
    assert content["a_b_c"] == pytest.approx([2.0, 0.25, 0.5])
    assert content["spent"]["pilot_rollouts"] == 0
    told = capsys.readouterr().out
    assert "stopped by Ctrl-C: all this is from what had been measured" in told
    assert "seconds per step = 2.00 + 0.250 n + 0.500 m" in told


def test_ctrl_c_before_a_round_is_whole_writes_nothing(tiny_folder, tmp_path, monkeypatch, capsys):
    points = [point(2, 2, 1.0, 1.0), point(4, 2, 2.0, 1.0)]  # nothing to tell c by
    monkeypatch.setattr(plan_measure, "measure_rounds", measured_until_ctrl_c(points))
    assert plan_command.main(tiny_recipe(tiny_folder, tmp_path)) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "plan").exists()


def test_ctrl_c_in_the_first_batch_of_the_pilot_leaves_the_seconds(
    tiny_folder, tmp_path, monkeypatch
):
    points = [point(n, m, 1 + n / 4, 1 + m / 2, rows=m) for n, m in points_to_measure(4, 2)]
    monkeypatch.setattr(plan_measure, "measure_rounds", lambda *a, **k: iter(points))

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_pilot, "run_pilot", interrupted)
    assert plan_command.main(tiny_recipe(tiny_folder, tmp_path)) == 130
    content = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert content["stopped"] is True and content["proposal"]["num_kept"] == 2


def test_time_left_by_hand(monkeypatch):
    clock = iter([0.0, 20.0, 40.0, 100.0, 130.0, 135.0, 160.0, 190.0])
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(clock))
    lines: list[str] = []
    progress = progress_module.Progress(
        lines.append, num_pilot=512, num_prompts=4, num_steps=2, at_least_seconds=90.0
    )
    # 20 s for two measurements, so 10 each: the round ends in 20 s, all rounds after 90 - 10 s;
    # 512 rollouts at 8 / (4 x 4) s take 256 s more.
    progress.measured(point(4, 4, 8.0, 1.0), 3)
    # 40 s for three: the rounds go on for 90 - (40 - 13.3) = 63.3 s, the pilot takes 32 s.
    progress.measured(point(16, 4, 4.0, 1.0), 3)
    progress.begin_pilot()  # 100
    progress.pilot("rollouts", 128, 512)  # 130: 30 s a quarter, so 90 s
    progress.pilot("rollouts", 256, 512)  # 135: no line within 10 s
    progress.pilot("rollouts", 512, 512)  # 160
    assert lines == [
        "  about 5.6 minutes left",
        "  about 1.6 minutes left",
        "pilot: 128 of 512 rollouts, about 1.5 minutes left of them",
        "pilot: 512 of 512 rollouts, less than half a minute left of them",
    ]
    spent = progress.spent()  # 190
    # 3 steps x 4 prompts x (4 + 16)
    assert spent == {"minutes": 190 / 60, "timed_rollouts": 240, "pilot_rollouts": 512}


def test_ctrl_c_in_the_check_leaves_the_plan(tiny_folder, tmp_path, monkeypatch):
    points = [point(n, m, 1 + n / 4, 1 + m / 2, rows=m) for n, m in points_to_measure(4, 2)]
    rounds = iter([lambda *a, **k: iter(points), measured_until_ctrl_c([])])
    monkeypatch.setattr(plan_measure, "measure_rounds", lambda *a, **k: next(rounds)(*a, **k))
    command = [*tiny_recipe(tiny_folder, tmp_path)[:-1], "0", "--check"]
    assert plan_command.main(command) == 0
    content = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert content["check"] == [] and content["proposal"]["num_kept"] == 2
