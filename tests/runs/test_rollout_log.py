"""The rollout log: reasons, records, resume, limit, and what it costs."""

import gzip
import json
import math
import random
import time
from pathlib import Path

import pytest
import torch

from helpers.sample_rollouts import HEADER, batch, write_log
from podsrl import select
from podsrl.core.selection import Selection, Selector
from podsrl.runs.rollout_log import FILE_NAME, RolloutLog, read_rollouts
from podsrl.runs.rollout_records import batch_records, why

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "kept", "reasons"),
    [
        # dropped: 0.4 and 0.6; 0.1 lies below both, 0.9 above both
        ([0.4, 0.1, 0.9, 0.6], [0, 1, 1, 0], ["dropped", "lowest", "highest", "dropped"]),
        # one of two zeros and one of three ones: the seed chose within both
        ([0, 1, 0, 1, 1], [1, 1, 0, 0, 0], ["tie", "tie", "dropped", "dropped", "dropped"]),
        # the single one has no dropped twin
        ([0, 0, 0, 1], [1, 0, 0, 1], ["tie", "dropped", "dropped", "highest"]),
        ([NAN, 0, 1, 2], [0, 1, 0, 1], ["no_reward", "lowest", "dropped", "highest"]),
        # two of three scored, m = 3: a NaN fills up, and nothing scored is left out
        ([NAN, 0, 1, NAN], [1, 1, 1, 0], ["no_reward", "all", "all", "no_reward"]),
        ([1, 2], [1, 1], ["all", "all"]),
        ([1, 2], [0, 0], ["dropped", "dropped"]),
        ([5, 5, 5], [0, 1, 0], ["dropped", "tie", "dropped"]),
        ([], [], []),
    ],
)
def test_reasons(rewards: list[float], kept: list[int], reasons: list[str]) -> None:
    assert why(rewards, [bool(flag) for flag in kept]) == reasons


def test_equal_means_equal_to_the_last_bit() -> None:
    above = math.nextafter(1.0, 2.0)
    assert why([0.0, 1.0, above], [True, False, True]) == ["lowest", "dropped", "highest"]


@pytest.mark.parametrize("rule", ["random", "percentile", "something_of_mine"])
def test_other_rules_are_said_by_name(rule: str) -> None:
    rewards, kept = [0.0, 0.5, 0.5, 1.0, NAN], [True, True, False, True, False]
    assert why(rewards, kept, rule) == [rule, rule, "dropped", rule, "no_reward"]


def test_max_reward_keeps_highest_and_ties() -> None:
    assert why([0, 1, 1, 2], [0, 0, 1, 1], "max_reward") == ["dropped", "dropped", "tie", "highest"]


def test_a_kept_set_with_a_hole_is_not_called_an_end() -> None:
    # 0.5 lies between dropped 0 and 1: neither lowest nor highest whatever the rule is called
    assert why([0.0, 0.5, 1.0], [False, True, False]) == ["dropped", "max_variance", "dropped"]


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        why([0.0, 1.0], [True])


def test_max_variance_is_always_explained_by_ends_and_ties() -> None:
    """Every kept rollout of the real rule has one of the words, on groups with many ties."""
    for seed in range(100):
        draw = random.Random(seed)
        n = draw.randint(2, 12)
        rewards = [draw.choice([0.0, 0.5, 1.0, 2.0, NAN]) for _ in range(n)]
        m = draw.randint(1, n)
        chosen = set(select(rewards, m, seed=seed).tolist())
        reasons = why(rewards, [i in chosen for i in range(n)])
        assert set(reasons) <= {"lowest", "highest", "tie", "all", "no_reward", "dropped"}
        assert sum(reason == "dropped" for reason in reasons) == sum(
            i not in chosen and not math.isnan(reward) for i, reward in enumerate(rewards)
        )


def test_a_record_holds_every_rollout_of_its_prompt() -> None:
    """Two prompts, n = 3, kept {0, 2} and {1, 2}; the first process has all six."""
    parts_PNF = torch.tensor([[[0.0], [1.0], [2.0]], [[1.0], [NAN], [0.25]]])
    kept_PN = torch.tensor([[True, False, True], [False, True, True]])
    selection = Selection(Selector(num_kept=2), parts_PNF, 2 * parts_PNF[..., 0], kept_PN)
    rows = [
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2?"}]},
        {"prompt": "3+3=", "answer": 6},
    ]
    records = batch_records(
        selection,
        rows,
        ["a", "b", "c", [{"role": "assistant", "content": "d"}], "e", "f"],
        [1, 2, 3, 4, 5, 6],
        advantages={0: -0.70710677, 2: 0.70710677, 4: 0.0, 5: NAN},
        rule="max_variance",
    )
    assert records[0] == {
        "question": "2+2?",
        "rewards": [0.0, 2.0, 4.0],
        "parts": [[0.0, 1.0, 2.0]],
        "num_tokens": [1, 2, 3],
        "kept": [1, 0, 1],
        "why": ["lowest", "dropped", "highest"],
        "advantages": [-0.707107, None, 0.707107],
        "texts": ["a", "b", "c"],
    }
    assert records[1]["rewards"] == [2.0, None, 0.5]
    assert (records[1]["question"], records[1]["answer"]) == ("3+3=", "6")
    assert records[1]["why"] == ["dropped", "no_reward", "lowest"]
    assert records[1]["advantages"] == [None, 0.0, None]
    assert records[1]["texts"] == ["d", "e", "f"]


def test_a_group_shared_with_another_process_lacks_its_texts() -> None:
    rewards_PN = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    kept_PN = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool()  # two of one, one of the other
    selection = Selection(Selector(num_kept=2), rewards_PN.unsqueeze(2), rewards_PN, kept_PN)
    (record,) = batch_records(
        selection, [{"prompt": "p"}], ["a", "b"], [7, 8], advantages={0: -1.0}, rule="max_variance"
    )
    assert record["texts"] == ["a", "b", None, None]
    assert record["num_tokens"] == [7, 8, None, None]
    assert record["kept"] == [1, 0, 0, 1]
    assert record["advantages"] == [-1.0, None, None, None]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / FILE_NAME, HEADER)
    first, second = batch(1), batch(2)
    log.write(1, first[:2])
    log.write(1, first[2:])  # two generation batches in one step
    log.write(2, second)
    header, records = read_rollouts(tmp_path / FILE_NAME)
    rows = list(records)
    assert header["reward_names"] == ["correctness", "format"]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (1, 2) for prompt in range(4)
    ]
    assert rows[2] == {"step": 1, "prompt": 2, **first[2]}


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    """Steps 1 to 3 were logged; the run goes on from a checkpoint after step 1."""
    folder = write_log(tmp_path, steps=3)
    log = RolloutLog(folder / FILE_NAME, HEADER)
    again = [{**record, "question": "again"} for record in batch(2)]
    log.write(2, again)
    rows = list(read_rollouts(folder / FILE_NAME)[1])
    assert [row["step"] for row in rows] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert {row["question"] for row in rows[4:]} == {"again"}


def test_a_run_killed_while_writing_loses_only_that_batch(tmp_path: Path) -> None:
    path = write_log(tmp_path, steps=2) / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert {row["step"] for row in read_rollouts(path)[1]} <= {1, 2}
    log = RolloutLog(path, HEADER)
    log.write(3, batch(3))
    steps = [row["step"] for row in read_rollouts(path)[1]]
    assert steps[:4] == [1, 1, 1, 1] and steps[-4:] == [3, 3, 3, 3]


def test_the_log_stops_at_its_limit_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    limit_mib = 6_000 / 2**20  # two or three batches of about 2 KB
    log = RolloutLog(path, HEADER, limit_mib=limit_mib)
    for step in range(1, 20):
        log.write(step, batch(step))
    rows = list(read_rollouts(path)[1])
    stopped = rows[-1]
    assert 1 < stopped["step"] < 20 and "MiB" in stopped["stopped"]
    assert [row["step"] for row in rows[:-1]] == [
        step for step in range(1, stopped["step"]) for _ in range(4)
    ]
    assert path.stat().st_size < 6_000 + 200
    assert len(caplog.records) == 1 and "log_rollouts: true" in caplog.text


def test_a_log_that_stopped_stays_stopped_after_a_resume_past_that_step(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    log = RolloutLog(path, HEADER, limit_mib=6_000 / 2**20)
    for step in range(1, 20):
        log.write(step, batch(step))
    size = path.stat().st_size
    late = RolloutLog(path, HEADER, limit_mib=1.0)
    late.write(20, batch(20))
    assert late.stopped and path.stat().st_size < 1.5 * size
    early = RolloutLog(path, HEADER, limit_mib=1.0)  # before the stop: there is room again
    early.write(2, batch(2))
    assert not early.stopped
    assert [row["step"] for row in read_rollouts(path)[1]] == [1] * 4 + [2] * 4


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(gzip.compress(json.dumps({"step": 1}).encode() + b"\n"))
    with pytest.raises(ValueError, match="no rollout log"):
        read_rollouts(path)
    with pytest.raises(ValueError, match="limit_mib is 0"):
        RolloutLog(path, limit_mib=0)


def test_a_realistic_batch_takes_a_small_part_of_a_step(tmp_path: Path) -> None:
    """4 x 64 rollouts of about 1,000 characters: below 1 % of a step of five seconds, 50 ms.

    Processor time, which other work on the machine does not change.
    """
    log = RolloutLog(tmp_path / FILE_NAME, HEADER)
    log.write(1, batch(1))
    records = batch(2, n=64, m=16, num_words=250)
    seconds = []
    for step in range(2, 7):
        start = time.process_time()
        log.write(step, records)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
