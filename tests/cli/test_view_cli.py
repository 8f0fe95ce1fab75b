"""podsrl view: the file it writes, what it shows of a big log, and its one-line errors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.sample_rollouts import HEADER, batch, write_log
from podsrl.cli import main as podsrl
from podsrl.cli.view import main, steps_of
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog
from podsrl.view.page import OverSteps, _spread, view_page


def data_of(page: str) -> dict[str, Any]:
    """The rollouts inside the page."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_the_page_is_written_into_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "my-run", steps=2)
    assert podsrl(["view", str(tmp_path / "my-run")]) == 0
    page = (tmp_path / "my-run" / "view.html").read_text()
    assert "view.html" in capsys.readouterr().out
    data = data_of(page)
    assert data["run"] == "my-run" and data["about"]["num_generations"] == 4
    assert [(group["step"], group["prompt"]) for group in data["groups"]] == [
        (step, prompt) for step in (1, 2) for prompt in range(4)
    ]
    assert data["numRollouts"] == 2 * 4 * 16 and data["stopped"] is None
    assert "{{" not in page and "http://www.w3.org/2000/svg" in page
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing to load


@pytest.mark.parametrize(
    ("steps", "expected"), [("2:3", [2, 3]), ("3:", [3, 4]), (":2", [1, 2]), ("2", [2])]
)
def test_steps_are_bounds_on_both_sides(tmp_path: Path, steps: str, expected: list[int]) -> None:
    write_log(tmp_path, steps=4, prompts=1)
    output = tmp_path / "out" / "some.html"
    assert main([str(tmp_path / FILE_NAME), "--steps", steps, "--output", str(output)]) == 0
    assert [group["step"] for group in data_of(output.read_text())["groups"]] == expected


def test_a_limit_spreads_whole_prompts_over_the_steps(tmp_path: Path) -> None:
    """4 steps of 4 prompts of 16: 256 rollouts. A limit of 64 leaves 4 of the 16 prompts."""
    write_log(tmp_path, steps=4)
    data = data_of(view_page(tmp_path, limit=64))
    assert [group["step"] for group in data["groups"]] == [1, 2, 3, 4]
    assert (data["numGroups"], data["numRollouts"]) == (16, 256)
    assert all(len(group["texts"]) == 16 for group in data["groups"])


def test_groups_are_spread_evenly() -> None:
    assert _spread([10, 10, 10, 10], 20) == {0, 2}
    assert _spread([10] * 4, 1000) == {0, 1, 2, 3}
    assert _spread([10] * 4, 1) == {0}


def test_no_text_can_leave_its_place(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!-- & \u2028 {{script}} \ud800"
    log = RolloutLog(tmp_path / FILE_NAME, {**HEADER, "task": hostile})
    log.write(1, [{**batch(1)[0], "question": hostile, "texts": [hostile] * 16}])
    page = view_page(tmp_path)
    page.encode()
    assert page.count("</script>") == 2 and "<!--" not in page  # the data's and the page's own
    data = data_of(page)
    assert data["groups"][0]["texts"] == [hostile] * 16
    assert data["groups"][0]["question"] == data["about"]["task"] == hostile


def test_a_log_that_stopped_is_said_on_the_page(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / FILE_NAME, HEADER, limit_mib=4_000 / 2**20)
    for step in range(1, 9):
        log.write(step, batch(step))
    data = data_of(view_page(tmp_path))
    assert data["stopped"]["step"] == data["groups"][-1]["step"] + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "limit is 0"),
        (["--steps", "a:b"], "--steps is 'a:b'"),
        (["--steps", "90:"], "no rollouts in steps 90:"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    write_log(tmp_path, steps=1)
    assert main([str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_without_a_log_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "log_rollouts" in capsys.readouterr().err


def test_a_single_step_and_open_ranges() -> None:
    assert [steps_of(text) for text in (":", "7", "7:", ":7", "2:7")] == [
        (None, None),
        (7, 7),
        (7, None),
        (None, 7),
        (2, 7),
    ]


def test_three_hundred_steps_of_64_rollouts_stay_below_25_mb(tmp_path: Path) -> None:
    """19,200 rollouts would make 26 MB; a page leaves prompts out, the steps' means are of all."""
    groups = [record for step in range(1, 9) for record in batch(step, prompts=1, n=64, m=16)]
    for group in groups:  # escaped as \\u003c, six bytes for one
        group["texts"] = ["<" * 100 + "carry " * 110] * 64
    log = RolloutLog(tmp_path / FILE_NAME, HEADER)
    for step in range(1, 301):
        log.write(step, [groups[step % 8]])
    page = view_page(tmp_path)
    assert 15_000_000 < len(page.encode()) < 25_000_000
    data = data_of(page)
    assert data["numRollouts"] == 300 * 64 and len(data["groups"]) < 300
    steps = [group["step"] for group in data["groups"]]
    assert steps[0] == 1 and steps[-1] > 295 and max(map(int.__sub__, steps[1:], steps)) <= 2
    assert data["overSteps"]["step"] == list(range(1, 301))
    assert set(data["overSteps"]["kept"]) == {0.25}  # 16 of 64
    assert len(data_of(view_page(tmp_path, limit=100_000))["groups"]) == 300


def test_means_over_steps_by_hand() -> None:
    means = OverSteps()
    means.add({"step": 2, "rewards": [0.0, 1.0], "kept": [1, 1]})
    means.add({"step": 2, "rewards": [1.0, 1.0], "kept": [1, 0]})
    means.add({"step": 1, "rewards": [None, None], "kept": [0, 1]})
    means.add({"step": 3, "rewards": [None, 0.5, 0.0, 0.0], "kept": [1, 1, 0, 0]})
    # Step 2: (1/2 + 1) / 2, (1 + 1/2) / 2, and the second group is dead. Step 3: 0.5 / 3, and one
    # known reward among the kept teaches nothing.
    assert means.columns() == {
        "step": [1, 2, 3],
        "reward": [None, 0.75, 0.166667],
        "kept": [0.5, 0.75, 0.5],
        "dead": [1.0, 0.5, 1.0],
    }
