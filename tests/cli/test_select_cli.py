"""The command podsrl select: formats, tables, JSON, errors."""

import io
import json

import pytest

from podsrl.cli import main as podsrl
from podsrl.cli.select import main, read_lengths, read_rewards
from podsrl.core.select import NEEDS_LENGTHS, RULES, select

ROWS = [[0.0, 0.0, 1.0, 0.5, 1.0], [3.0, 1.0, 2.0, 5.0, 4.0]]


@pytest.mark.parametrize(
    "text",
    [
        "[[0,0,1,0.5,1],[3,1,2,5,4]]",
        '{"rewards": [[0,0,1,0.5,1],[3,1,2,5,4]]}',
        "0,0,1,0.5,1\n3,1,2,5,4\n\n",
        "0, 0, 1, .5, 1e0\r\n3,1,2,5,4",
    ],
)
def test_formats(text):
    assert read_rewards(text) == ROWS


def test_missing_rewards_become_nan():
    for text in ("[0, null, NaN]", "0,,nan"):
        ((zero, first, second),) = read_rewards(text)
        assert zero == 0
        assert first != first
        assert second != second


def test_json_holds_what_select_keeps(tmp_path, capsys):
    path = tmp_path / "rewards.csv"
    path.write_text("0,0,1,0.5,1\n3,1,2,5,4\n")
    assert podsrl(["select", str(path), "--keep", "2", "--seed", "5", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [(row["group"], row["rule"]) for row in groups] == [
        (g, r) for g in (0, 1) for r in RULES if r not in NEEDS_LENGTHS
    ]
    for row in groups:
        assert row["kept"] == select(ROWS, 2, row["rule"], seed=5)[row["group"]].tolist()
        assert row["rewards"] == [ROWS[row["group"]][index] for index in row["kept"]]
    # Group 1: {1, 5} has variance 4, {4, 5} has 1/4.
    assert [row["variance"] for row in groups if row["group"] == 1][:2] == [4.0, 0.25]
    assert [row["frac_of_best"] for row in groups if row["group"] == 1][:2] == [1.0, 0.0625]


def test_lengths_bring_the_rules_that_need_them(monkeypatch, capsys):
    text = '{"rewards": [[1, 1, 0], [0, 1, 2]], "lengths": [[30, 10, 5], [4, 8, 40]]}'
    assert read_lengths(text) == [[30, 10, 5], [4, 8, 40]]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["-", "--keep", "1", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    kept = {(row["group"], row["rule"]): row["kept"] for row in groups}
    assert {rule for _, rule in kept} == set(RULES)
    assert [kept[g, "shortest"] for g in (0, 1)] == [[2], [0]]
    # Per token 1/30, 1/10, 0 and 0, 1/8, 2/40.
    assert [kept[g, "reward_per_token"] for g in (0, 1)] == [[1], [1]]


def test_a_rule_that_needs_lengths_asks_for_them(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("[0, 1]"))
    assert main(["-", "--keep", "1", "--rule", "shortest"]) == 2
    assert "needs the lengths" in capsys.readouterr().err


def test_table_from_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("[0, 0.5, 1, null]"))
    assert main(["-", "--keep", "2", "--rule", "max_variance", "--rule", "max_reward"]) == 0
    output = capsys.readouterr().out
    assert "0: 0  2: 1" in output
    assert "1: 0.5  2: 1" in output
    # Variances 1/4 and 1/16.
    assert "100.0%" in output
    assert "25.0%" in output
    assert "random" not in output


def test_groups_of_different_length_and_too_few_rewards(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("[[1, null, null], [0, 1]]"))
    assert main(["-", "--keep", "2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["groups"][0]
    assert sorted(first["rewards"], key=str) == [1.0, None]
    assert first["frac_of_best"] == 1.0


@pytest.mark.parametrize(
    ("text", "keep", "message"),
    [
        ("[0, 1]", "3", "keep is 3"),
        ("[0, 1]", "0", "keep is 0"),
        ("[0, Infinity]", "1", "is inf"),
        ("a,b\n0,1", "1", "'a', which is not a number"),
        ("[0, true]", "1", "True, which is not a number"),
        ("[[0], 1]", "1", "not a list"),
        ("[0, 1", "1", "delimiter"),
        ('{"scores": [1]}', "1", "no \"rewards\" among the keys ['scores']"),
        ("3", "2", "keep is 2"),
        ("[1, 2, 9" + "0" * 400 + "]", "1", "an integer of 401 digits; give numbers under 1e308"),
        ("[1, 2, " + "9" * 5000 + "]", "1", "no JSON that can be read (Exceeds the limit"),
        ("[" * 100_000, "1", "nested too deeply"),
        ("", "1", "no rewards found"),
        ("[[]]", "1", "at least 1 rollout"),
        ('{"rewards": 3}', "1", "not a list"),
        ('{"rewards": [0, 1], "lengths": [3]}', "1", "lengths have shape (1, 1)"),
        ('{"rewards": [0, 1], "lengths": [3, null]}', "1", "finite and >= 0"),
        ('{"rewards": [[0, 1], [0, 1]], "lengths": [3, 4]}', "1", "1 groups of lengths for 2"),
    ],
)
def test_errors_are_one_line_with_status_two(monkeypatch, capsys, text, keep, message):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["-", "--keep", keep]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("podsrl select: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_missing_file_and_unknown_rule(tmp_path, capsys):
    assert main([str(tmp_path / "none.json"), "--keep", "1"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main(["-", "--keep", "1", "--rule", "min_reward"]) == 2
    assert "unknown rule: min_reward; did you mean max_reward" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for word in ("--keep", "max_variance", "CSV", "podsrl select - --keep 4", "null"):
        assert word in output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"rewards": ' + "[" * 100_000, "nested too deeply"),
        (f"[1, {'9' * 400}]", "give numbers under 1e308"),
    ],
    ids=["brackets", "rewards", "digits"],
)
def test_json_that_no_rewards_are_is_one_line(text, words, tmp_path, capsys):
    path = tmp_path / "rewards.json"
    path.write_text(text)
    assert main([str(path), "--keep", "1"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
