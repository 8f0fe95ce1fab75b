"""Two processes keep exactly the rollouts that one process keeps from the same rewards."""

import json
from pathlib import Path

import pytest
import torch

from helpers.commands import launch
from helpers.harness import EASY
from podsrl import PODSConfig, select
from podsrl.core.advantage import masked_advantages
from podsrl.runs.rollout_log import FILE_NAME, read_rollouts
from podsrl.trl.checks import check_settings

TESTS = Path(__file__).resolve().parents[1]


CASES = {
    "8:8": "whole groups on each process",
    "2:8": "one group over two processes",
    "6:6": "three groups over two processes",
}


@pytest.fixture(scope="module")
def launched(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The folder and the records of the one launch that all tests here read."""
    folder = tmp_path_factory.mktemp("processes")
    launch("run_processes.py", tiny_folder, folder, *CASES, timeout_seconds=400)
    records = [json.loads((folder / f"records-{rank}.json").read_text()) for rank in range(2)]
    return folder, records


def test_two_processes_keep_what_one_would(launched: tuple[Path, list[dict]]) -> None:
    tmp_path, records = launched
    for case, what in CASES.items():
        print(what)  # pytest shows it where an assertion below fails
        check(case, *(record[case] for record in records))
        check_log(tmp_path, case, records[0][case])


def check(case: str, first: dict, second: dict) -> None:
    rows, num_rollouts = map(int, case.split(":"))
    assert (first["rank"], second["rank"]) == (0, 1)
    assert first["selections"] == second["selections"]
    assert len(first["selections"]) == 2
    for step, selection in enumerate(first["selections"]):
        rewards_PN = torch.tensor(selection["rewards"])
        assert rewards_PN.shape == (2 * rows // 4, num_rollouts)
        alone_PM = select(rewards_PN, 4, seed=selection["seed"])
        assert selection["kept"] == alone_PM.tolist()
        kept_texts = first["kept"][step]["texts"] + second["kept"][step]["texts"]
        kept_rewards = [float(len(text) % 2 == 0) for text in kept_texts]
        assert kept_rewards == rewards_PN.gather(1, alone_PM).flatten().tolist()
        for record in (first, second):
            assert record["texts"][step] == kept_texts
            prompts, questions = record["kept"][step]["prompts"], record["questions"][step]
            assert len(prompts) == rows
            assert all(q in p for p, q in zip(prompts, questions, strict=True))
    assert first["log_history"][0]["loss"] == second["log_history"][0]["loss"]


def check_log(folder: Path, case: str, first: dict) -> None:
    """The first process logs its prompts; the part of one that another sampled has no text."""
    rows, num_rollouts = map(int, case.split(":"))
    log = folder / f"log-{rows}-{num_rollouts}" / FILE_NAME
    groups = list(read_rollouts(log)[1])
    num_prompts, num_sampled = -(-rows // 4), rows * num_rollouts // 4
    assert len(groups) == 2 * num_prompts
    for step, selection in enumerate(first["selections"]):
        mine = groups[step * num_prompts : (step + 1) * num_prompts]
        texts = [text for group in mine for text in group["texts"]]
        assert [text is not None for text in texts[:num_sampled]] == [True] * num_sampled
        assert texts[num_sampled:] == [None] * (num_prompts * num_rollouts - num_sampled)
        for group, kept in zip(mine, selection["kept"], strict=False):
            assert [i for i, flag in enumerate(group["kept"]) if flag] == kept
        advantages = [value for group in mine for value in group["advantages"]]
        assert sum(value is not None for value in advantages) == rows


def test_two_processes_share_one_budget_and_refill_alike(
    launched: tuple[Path, list[dict]],
) -> None:
    first, second = (record["pooled"] for record in launched[1])
    refilled = [entry.get("pods/num_refill_rounds") for entry in first["log_history"]]
    assert sum(filter(None, refilled)) > 0  # questions of the first batches include easy ones
    for one, two, num_kept in zip(first["steps"], second["steps"], (2, 3), strict=True):
        for key in ("rewards", "kept", "logged", "logged_advantages"):
            assert one[key] == two[key], key
        rewards_PN, kept_PN = torch.tensor(one["rewards"]), torch.tensor(one["kept"])
        assert rewards_PN.shape == (2, 7)
        assert kept_PN.sum() == 2 * num_kept and len(one["texts"]) == len(two["texts"]) == num_kept
        assert (rewards_PN.amax(1) > rewards_PN.amin(1)).all()  # easy questions were replaced
        texts, prompts = one["texts"] + two["texts"], one["prompts"] + two["prompts"]
        rewards = [float(len(text) % 2 == 0) for text in texts]
        assert rewards == rewards_PN[kept_PN].tolist()
        logged = one["logged"][-2 * num_kept :]
        assert all(question in prompt for question, prompt in zip(logged, prompts, strict=True))
        assert not set(logged) & EASY
        expected = masked_advantages(rewards_PN, kept_PN)[kept_PN].tolist()
        assert one["advantages"] + two["advantages"] == pytest.approx(expected, abs=1e-6)
        assert one["logged_advantages"][-2 * num_kept :] == pytest.approx(expected, abs=1e-6)
    assert first["log_history"][0]["loss"] == second["log_history"][0]["loss"] != 0


def test_means_over_pairs_are_over_those_of_all_processes(
    launched: tuple[Path, list[dict]],
) -> None:
    """A process without a pair says nothing, instead of making the step's mean a NaN."""
    first, second = (record["pairs"] for record in launched[1])
    kinds = set()
    for *each, log in zip(first["own"], second["own"], first["log_history"], strict=False):
        counts = [own["objective/num_pairs"] for own in each]
        kinds.add(tuple(count > 0 for count in counts))
        assert log["objective/num_pairs"] == sum(counts) / 2
        for name in ("objective/pair_accuracy", "objective/pair_margin"):
            total = sum(own[name] * n for own, n in zip(each, counts, strict=True) if n)
            assert log.get(name) == (pytest.approx(total / sum(counts)) if any(counts) else None)
    assert kinds & {(True, False), (False, True)}  # or nothing was tested


def test_two_processes_end_by_one_clock(launched: tuple[Path, list[dict]]) -> None:
    folder, records = launched
    first, second = (record["clock"] for record in records)
    assert first == second
    assert first["seconds"] >= 0.5 and 1 <= first["steps"] < 200
    rows = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    assert [row["mark_seconds"] for row in rows] == pytest.approx([0.0, 0.2, 0.4, 0.5])
    assert rows[-1]["step"] == first["steps"]
    assert rows[-1]["training_seconds"] == first["seconds"]


def test_two_processes_leave_one_run_in_one_folder(launched: tuple[Path, list[dict]]) -> None:
    """The main one writes; what it calls the folder is what both save their checkpoint in."""
    folder, records = launched
    run = folder / "recorded-2"
    assert [record["recorded"]["output_dir"] for record in records] == [str(run)] * 2
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for name in ("config.json", "versions.json", "result.json", FILE_NAME):
        assert (run / name).is_file(), name
    assert {path.name for path in (run / "checkpoint-2").glob("rng_state_*.pth")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert [path.name for path in (folder / "recorded").iterdir()] == ["config.json"]


def test_a_fraction_of_a_rollout_per_process_is_refused(tmp_path: Path) -> None:
    """Half a group a process: n = 6, m = 4 would need 2 x 6 / 4 = 3 rollouts, n = 5 needs 2.5."""
    options = {"num_generations": 4, "use_cpu": True, "bf16": False}
    config = PODSConfig(str(tmp_path), per_device_train_batch_size=4, num_rollouts=5, **options)
    config.per_device_train_batch_size = 2  # half a group per process, as with two processes
    with pytest.raises(ValueError, match=r"2 x 5 / 4 .* multiple of num_generations .*8"):
        check_settings(config)
