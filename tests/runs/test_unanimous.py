"""A run on majority rewards: it ends where all agree, goes on when told to, and is evaluated."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.tiny_runs import flags, rows_of
from podsrl.cli.evaluate import main as evaluate
from podsrl.cli.train import main
from podsrl.runs import unanimous
from podsrl.runs.folder import read_json
from podsrl.runs.settings import RunArguments
from podsrl.runs.unanimous import NothingToLearn, StopUnanimous
from podsrl.tasks import majority


def told(shares: list[float], share: float, **more: float) -> str | None:
    """What is said at the last of these logged steps, None where the run goes on."""
    history = [{"majority/frac_unanimous": each, **more} for each in shares]
    callback, said = StopUnanimous(share), None
    for number in range(1, len(history) + 1):
        assert said is None, "it went on"
        state = SimpleNamespace(log_history=history[:number])
        try:
            callback.on_log(None, state, None, logs=history[number - 1])
        except NothingToLearn as error:
            said = str(error)
    return said


def test_it_ends_at_the_mean_of_the_last_logged_steps() -> None:
    assert told([1.0] * 19, 0.9) is None
    ended = told([1.0] * 20, 0.9, **{"majority/frac_right": 0.25})
    assert ended is not None and "on 100% of the prompts of the last 20 logged steps" in ended
    assert "the right one on 25%" in ended and "majority_stop is 0.9" in ended
    assert told([0.0] * 5 + [1.0] * 17, 0.9) is None  # 17 of 20
    assert told([0.0] * 5 + [1.0] * 18, 0.9) is not None  # 18 of 20
    assert told([1.0] * 50, 1.1) is None
    # What a log without votes says, as the last one of a run, decides nothing.
    state = SimpleNamespace(log_history=[{"majority/frac_unanimous": 1.0}] * 20)
    StopUnanimous(0.9).on_log(None, state, None, logs={"train_runtime": 1.0})


def test_a_run_ends_goes_on_and_is_evaluated(
    tiny_folder: str,
    sums: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(unanimous, "WINDOW", 2)
    monkeypatch.setattr(majority, "_vote", lambda answer: "1")  # whatever they say
    folder = tmp_path / "run"
    own: dict[str, Any] = {"reward_funcs": "majority", "beta": 0.0, "save_strategy": "no"}
    assert main(flags(tiny_folder, sums, folder, **own)) == 1
    error = capfd.readouterr().err
    assert "all rollouts gave one answer, the right one on" in error and "Traceback" not in error
    assert "step 2 was finished; saved in checkpoint-2" in error
    assert len(rows_of(folder)) == 2  # the step that ended it is logged
    assert main([*flags(tiny_folder, sums, folder, majority_stop=2, **own), "--resume"]) == 0
    assert [row["step"] for row in rows_of(folder)] == [1, 2, 3, 4]
    assert {"majority/frac_right", "majority/frac_misled"} <= rows_of(folder)[0].keys()
    output = tmp_path / "evaluation"
    found = ["--model", str(folder / "model"), "--limit", "2", "--max-new-tokens", "6"]
    assert evaluate([*found, "--output", str(output)]) == 0
    # The accuracy is the verifier's, of the questions of the run.
    assert read_json(output / "evaluation.json")["accuracy_greedy"]["num_problems"] == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"majority_gate": 0.5}, "majority_gate is 0.5, but reward_funcs is None: name majority"),
        ({"majority_stop": 0.5}, "majority_stop is 0.5, but reward_funcs is None: name majority"),
        ({"majority_stop": 0.0, "reward_funcs": ["majority"]}, "a share above 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunArguments(**settings)
