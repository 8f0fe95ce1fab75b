"""The same rewards, the same kept rollouts, in every host: one table, asked of each.

Here select, examples/loop.py, PODSTrainer in 1, 2 and 4 processes, their weights copied (DDP) or
sharded (FSDP2), and the asynchronous trainer; tests/verl/test_hosts.py asks verl's trainer.
"""

import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.async_groups import make_group, make_loop, rollouts_of, score
from helpers.commands import launch
from helpers.kept_sets import CASES, Case
from helpers.run_hosts import kept_by_trainer
from podsrl import select

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import loop

TESTS = Path(__file__).resolve().parents[1]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EVERY_CASE
def test_the_table_is_what_brute_force_finds_and_nothing_else_is_as_good(case: Case) -> None:
    for rewards, kept in zip(case.rewards, case.kept, strict=True):
        scored = [rollout for rollout, reward in enumerate(rewards) if reward == reward]
        variances = {
            subset: statistics.pvariance([rewards[rollout] for rollout in subset])
            for subset in itertools.combinations(scored, case.num_kept)
        }
        best, second = sorted(variances.values())[:-3:-1]
        assert variances[tuple(kept)] == best > second


@EVERY_CASE
@pytest.mark.parametrize("seed", range(3))
def test_select(case: Case, seed: int) -> None:
    assert select(case.rewards, case.num_kept, seed=seed).tolist() == case.kept


@EVERY_CASE
def test_loop(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of examples/loop.py's main but for the model, which a number per rollout is."""
    updated: list[Any] = []
    rewards = iter([reward for row in case.rewards for reward in row])
    num_rollouts = len(case.rewards[0])

    class NoModel(torch.nn.Linear):
        device = torch.device("cpu")

    class NoTokenizer:
        def batch_decode(self, ids: list[list[int]], **_: Any) -> list[str]:
            return [str(row[0]) for row in ids]

    def sample(*_: Any) -> tuple[list[list[int]], list[list[int]]]:
        numbers = [[number] for number in range(len(case.rewards) * num_rollouts)]
        return numbers, numbers

    monkeypatch.setattr(loop, "load_model", lambda _: NoModel(1, 1))
    monkeypatch.setattr(loop, "load_tokenizer", lambda _: NoTokenizer())
    monkeypatch.setattr(loop, "sample", sample)
    monkeypatch.setattr(loop, "reward", lambda *_: next(rewards))
    monkeypatch.setattr(loop, "evaluate", lambda *_: 0.0)
    monkeypatch.setattr(loop, "update", lambda *given: updated.append(given[2]) or 0.0)
    loop.main(
        loop.Options(
            steps=1,
            num_prompts=len(case.rewards),
            num_rollouts=num_rollouts,
            num_kept=case.num_kept,
            num_test=1,
        )
    )
    rows = updated[0].completion_BT.squeeze(1).view(len(case.rewards), -1)
    assert (rows % num_rollouts).tolist() == case.kept


@EVERY_CASE
def test_trainer_in_one_process(case: Case, tiny_folder: str, tmp_path: Path) -> None:
    check_trainer(case, [kept_by_trainer(tiny_folder, tmp_path, case, num_processes=1)])


@pytest.mark.parametrize("num_processes", [2, 4])
def test_trainer_in_several_processes(tiny_folder: str, tmp_path: Path, num_processes: int) -> None:
    """With 4 the eight rollouts of a prompt are those of two processes."""
    words = (tiny_folder, tmp_path)
    launch("run_hosts.py", *words, num_processes=num_processes, timeout_seconds=400)
    records = [
        json.loads((tmp_path / f"hosts-{rank}.json").read_text()) for rank in range(num_processes)
    ]
    for how, wrapped in (("DDP", "DistributedDataParallel"), ("FSDP2", "FSDPLlamaForCausalLM")):
        for case in CASES:
            of_case = [record[how][case.name] for record in records]
            assert {record["class"] for record in of_case} == {wrapped}
            check_trainer(case, of_case)


def check_trainer(case: Case, records: list[dict[str, Any]]) -> None:
    """All processes choose what the table says, and together hand on its rollouts' texts."""
    assert all(record["kept"] == case.kept for record in records)
    sampled = [text for record in records for text in record["sampled"]]
    handed_on = [text for record in records for text in record["handed_on"]]
    n = len(case.rewards[0])
    rows = [prompt * n + rollout for prompt, kept in enumerate(case.kept) for rollout in kept]
    assert handed_on == [sampled[row] for row in rows]


@EVERY_CASE
def test_asynchronous_trainer(case: Case) -> None:
    """TRL's own scoring in the loop of its child process, one group after the other."""
    asynchronous = make_loop(case.num_kept)
    kept = [rollouts_of(score(asynchronous, make_group(rewards))) for rewards in case.rewards]
    assert kept == case.kept
