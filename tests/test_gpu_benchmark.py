"""benchmarks/gpu.py without a GPU: every arm runs, tiny, or says why not; nothing is lost."""

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu
import gpu_arms

DRY = gpu.Place(torch.device("cpu"), dry=True)
RUNS_ANYWHERE = {
    "sampling": {"generate", "generate, static cache", "continuous batching", "ours"},
    "update": {
        "TRL, sdpa", "ours, sdpa", "ours, flex", "ours, dead rows read", "ours, dead rows skipped",
    },
    "steps": {"grpo n/n", "grpo m/m", "pods n/m, TRL's paths", "pods n/m"},
    "memory": {"pods n/m"},
}  # fmt: skip
NEEDS_MORE = {
    "sampling": {"vLLM, room for kept", "vLLM, room for rows"},
    "update": {"TRL, FA2", "ours, FA2"},
}


@pytest.fixture(scope="module")
def dry_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--dry` wrote, having found nothing wrong."""
    file = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, gpu.__file__, "--dry", "--output", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def test_a_dry_run_runs_every_arm_or_says_why_not(dry_report: dict[str, Any]) -> None:
    assert dry_report["complete"] and dry_report["dry"] and set(dry_report["rates"]) == {
        "flops", "bytes", "launch_seconds",
    }  # fmt: skip
    for model in ("135m", "0.5b"):
        for part, arms in RUNS_ANYWHERE.items():
            rows = [r for r in dry_report["results"] if (r["part"], r["model"]) == (part, model)]
            measured = {row["arm"] for row in rows if len(row["repeats"]) == 1}
            skipped = {row["arm"]: row["skipped"] for row in rows if row["skipped"]}
            assert measured >= arms, skipped
            assert measured | set(skipped) == arms | NEEDS_MORE.get(part, set())
            assert all("CUDA" in why or "not installed" in why for why in skipped.values())


def test_a_dry_run_draws_all_tokens_and_finds_equal_log_probs(dry_report: dict[str, Any]) -> None:
    rows = {(r["part"], r["model"], r["arm"]): r for r in dry_report["results"]}
    for model in ("135m", "0.5b"):
        assert rows["sampling", model, "ours"]["tokens"] == 2 * 3
        assert rows["steps", model, "grpo m/m"]["tokens"] == 2 * 3
        assert rows["steps", model, "pods n/m"]["tokens"] == 4 * 3
        assert rows["steps", model, "pods n/m"]["phases"][0]["update"] > 0
        assert 0 <= rows["update", model, "ours, flex"]["max_log_prob_difference"] < 1e-4


def test_a_wrong_prompt_moves_log_probs_by_far_more_than_is_allowed() -> None:
    """Else the dry run's comparison of log-probs could not fail."""
    sizes = {"prompts": 2, "kept": 2, "prompt_tokens": 3, "tokens": 3, "checkpointing": False}
    model, batch = gpu_arms.update_subject("0.5b", sizes, DRY)
    right, wrong = (
        gpu_arms.log_probs("padded", model, (prompts, *batch[1:]))[0]
        for prompts in (batch[0], batch[0].flip(0))
    )
    assert (right - wrong).abs().max() > 1000 * gpu.DRY_TOLERANCE


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"arm": "theirs"}, "('update', '0.5b', 'ours, sdpa') is missing"),
        ({"skipped": gpu.NOT_REACHED}, gpu.NOT_REACHED),
        ({"skipped": "failed: OSError: disk"}, "failed: OSError: disk"),
        ({"repeats": []}, "neither measured nor skipped"),
        ({"max_log_prob_difference": 0.01}, "differ by 0.01 nats"),
        ({"max_log_prob_difference": float("nan")}, "differ by nan nats"),
        ({"max_log_prob_difference": None}, "differ by None nats"),
        ({"peak_gib": "much"}, "peak_gib is 'much'"),
    ],
)
def test_what_is_wrong_is_told(
    dry_report: dict[str, Any], change: dict[str, Any], wrong: str
) -> None:
    options = Namespace(parts=["update"], models=["0.5b"])
    report = json.loads(json.dumps(dry_report))
    assert gpu.problems(report, options, DRY) == []
    for row in report["results"]:
        if (row["part"], row["model"], row["arm"]) == ("update", "0.5b", "ours, sdpa"):
            row.update(change)
    found = gpu.problems(report, options, DRY)
    assert found and wrong in found[0]


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two arms in the place of all, and the order in which they are called."""
    calls: list[str] = []

    def arm(name: str, subject: Any, sizes: Any, place: Any, **_: Any) -> gpu.Found:
        calls.append(name)
        if "fails" in name:
            raise RuntimeError("no room\nand more")
        if calls.count("b") == 2:
            raise KeyboardInterrupt
        return gpu.Found(1.0, 6)

    arms = {name: gpu.Arm(partial(arm, name)) for name in ("a", "fails", "b")}
    part = gpu.Part("sampling", 1, lambda *_: None, arms, [{"tokens": 6}], [{"tokens": 6}], 3)
    monkeypatch.setattr(gpu, "PARTS", [part])
    return calls


def run(tmp_path: Path, minutes: float) -> dict[str, Any]:
    """What two arms left: an interruption in the second repeat of one of them, at the latest."""
    output, report = tmp_path / "gpu.json", {"rates": {}}
    options = Namespace(parts=["sampling"], models=["0.5b"], minutes=minutes, output=output)
    try:
        gpu.run(report, options, gpu.Place(torch.device("cpu")))
    except KeyboardInterrupt:
        report["interrupted"] = True
    return {"file": json.loads(output.read_text()), **report}


def test_arms_alternate_and_an_interruption_keeps_what_was_measured(
    tmp_path: Path, in_turn: list[str]
) -> None:
    found = run(tmp_path, 5)
    # A round that is not counted, in reverse; then a counted one until the interruption.
    assert in_turn == ["b", "fails", "a", "a", "b"] and found["interrupted"]
    a, fails, b = found["file"]["results"]
    assert a["repeats"] == [1.0] and a["skipped"] is None and a["tokens"] == 6
    assert fails["repeats"] == [] and fails["skipped"] == "failed: RuntimeError: no room"
    assert b["repeats"] == [] and b["skipped"] == gpu.NOT_REACHED
    assert found["file"]["complete"] is False


def test_nothing_begins_after_the_minutes(tmp_path: Path, in_turn: list[str]) -> None:
    found = run(tmp_path, 0)
    assert in_turn == [] and "interrupted" not in found and not found["file"]["complete"]
    assert {row["skipped"] for row in found["file"]["results"]} == {gpu.NOT_REACHED}


def test_ctrl_c_has_its_status_and_its_file(
    tmp_path: Path, in_turn: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quiet = SimpleNamespace(disable_progress_bar=lambda: None, set_verbosity_error=lambda: None)
    monkeypatch.setattr(gpu, "logging", quiet)
    in_turn.append("b")  # so that the first call of b is the interrupted one
    file = tmp_path / "gpu.json"
    assert gpu.main(["--dry", "--models", "7b", "--output", str(file)]) == 130
    assert "not complete" in capsys.readouterr().out
    assert json.loads(file.read_text())["results"][0]["repeats"] == [1.0]


def test_shapes_are_those_of_the_models() -> None:
    counts = {}
    for name in gpu_arms.SHAPES:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(gpu_arms.make_config(name))
        counts[name] = model.num_parameters()
    assert counts == {
        "135m": 134_515_008, "0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512,
    }  # fmt: skip


@pytest.mark.parametrize(("room", "rows"), [("kept", 16), ("rows", 64)])
def test_vllm_is_given_room_for_m_and_for_n(
    monkeypatch: pytest.MonkeyPatch, room: str, rows: int
) -> None:
    """With a stub: vLLM itself has not been run."""
    built: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            built.append(options)

        def generate(self, prompts: list, options: dict, use_tqdm: bool) -> list:
            output = SimpleNamespace(token_ids=[0] * options["max_tokens"])
            return [SimpleNamespace(outputs=[output]) for _ in prompts]

    stub = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = LLM, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stub)
    sizes = gpu.rollouts(64, 256)
    subject = gpu_arms.vllm_subject("0.5b", sizes, DRY, room=room)
    assert gpu_arms.vllm(subject, sizes, DRY, warm_up=False).tokens == 64 * 256
    assert built[0]["max_num_seqs"] == rows and built[0]["load_format"] == "dummy"
    assert json.loads((Path(built[0]["model"]) / "config.json").read_text())["architectures"]


def test_the_machine_is_told_with_what_is_absent(dry_report: dict[str, Any]) -> None:
    machine = dry_report["machine"]
    assert machine["torch"] == torch.__version__ and machine["weights"]["135m"] == "random"
    assert {"device", "driver", "commit", "trl", "transformers", "vllm"} <= set(machine)
    assert gpu.version_of("no-such-package") is None


def test_rewards_depend_on_tokens_alone_and_differ() -> None:
    rows = [[i, i + 1, 7] for i in range(64)]
    rewards = gpu_arms.seeded_reward(rows)
    assert rewards == gpu_arms.seeded_reward(rows) and len(set(rewards)) == 64
    assert all(0 <= reward < 1 for reward in rewards)


def test_help_says_what_is_measured_and_a_cpu_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(["--help"])
    text = capsys.readouterr().out
    assert all(f"`{part}`" in text for part in gpu.NAMES)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.parse([])
    assert "--dry" in capsys.readouterr().err
