"""Whole steps of verl's trainer: what is sampled, kept, taught and left in the queue."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Script, fit, make_config, make_trainer, queue_is_empty, sessions

from podsrl.core.selection import Selector

N, M, P = 8, 4, 4

ONE_OUTPUT: Script = [[(float(session % 4 == 0), 2 + session % 3)] for session in range(N)]
"""Sessions 0 and 4 are right, the other six wrong."""


def options(num_steps: int, *more: str) -> list[str]:
    return [
        f"actor_rollout_ref.rollout.n={M}",
        f"+trainer.v1.pods.num_rollouts={N}",
        f"data.train_batch_size={P}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={P}",
        f"trainer.total_training_steps={num_steps}",
        *more,
    ]


@pytest.fixture
def run(tiny_folder: str, tmp_path: Path, agents: Any, monkeypatch: Any) -> Any:
    """Trains on the scripts; returns workers and metrics."""

    def train(scripts: list[Script], *more: str, steps: int = 2) -> Any:
        config = make_config(tiny_folder, tmp_path, *options(steps, *more))
        trainer = make_trainer(config, scripts)
        metrics = fit(trainer, agents, tmp_path, monkeypatch)
        return trainer.actor_rollout_wg, metrics

    return train


def test_of_32_rollouts_16_reach_the_passes_and_nothing_stays_in_the_queue(run: Any) -> None:
    workers, metrics = run([ONE_OUTPUT] * P)
    assert len(workers.of("log_prob")) == len(workers.of("update")) == len(metrics) == 2
    for call in [*workers.of("log_prob"), *workers.of("update")]:
        assert len(call["keys"]) == P * M and not any(call["padding"])
        # Both right ones and two of the six wrong ones: variance 1/4 is the largest of four.
        assert all(
            {"0", "4"} < set(kept) and len(kept) == M for kept in sessions(call["keys"]).values()
        )
    for call in workers.of("update"):
        assert call["info"]["mini_batch_size"] == call["info"]["global_batch_size"] == P * M
        # (1 - 1/2) / sqrt(1/3), which is the deviation of (0, 0, 1, 1) with three degrees.
        assert sorted(call["advantages"]) == pytest.approx([-0.8660] * 8 + [0.8660] * 8, abs=1e-4)
    assert metrics[0]["pods/reward"] == 0.25 and metrics[0]["critic/score/mean"] == 0.5
    assert metrics[0]["pods/num_rows_sampled_total"] == 32
    assert metrics[0]["pods/num_rows_kept_total"] == 16
    assert metrics[0]["pods/num_rows_padding_total"] == 0
    assert metrics[0]["pods/kept_reward_variance"] == 0.25
    assert queue_is_empty()


def test_with_n_equal_to_m_every_rollout_goes_on_as_in_verls_own_mode(run: Any) -> None:
    workers, metrics = run([ONE_OUTPUT[:M]] * P, f"trainer.v1.pods.num_rollouts={M}", steps=1)
    (call,) = workers.of("update")
    assert len(call["keys"]) == P * M
    # One of four is right: (1 - 1/4) / (1/2), the deviation of (1, 0, 0, 0) being 1/2.
    assert sorted(call["advantages"])[-P:] == pytest.approx([1.5] * P, abs=1e-4)
    assert metrics[0]["pods/num_rows_sampled_total"] == 16


def test_a_session_of_two_outputs_is_kept_or_dropped_whole(run: Any) -> None:
    two: Script = [[(1.0, 3), (1.0, 2)], *([(0.0, 2 + s % 3)] for s in range(1, N))]
    workers, metrics = run([two, *[ONE_OUTPUT] * (P - 1)], steps=1)
    (call,) = workers.of("update")
    kept = sessions(call["keys"])
    assert all(len(sessions_kept) == M for sessions_kept in kept.values())
    # The only right one of its prompt, so it is kept, with both outputs.
    first = [key for key in call["keys"] if key.startswith(min(kept)) and "_0_" in key]
    assert sorted(key[-2:] for key in first) == ["_0", "_1"]
    advantages = dict(zip(call["keys"], call["advantages"], strict=True))
    # 1 of 4 kept is right, and counts once: (1 - 1/4) / (1/2) on both rows.
    assert [advantages[key] for key in first] == pytest.approx([1.5, 1.5], abs=1e-4)
    # 17 rows are padded to two mini-batches of 16, as verl does.
    assert metrics[0]["pods/num_rows_kept_total"] == 17
    assert metrics[0]["pods/num_rows_padding_total"] == sum(call["padding"]) == 15
    assert queue_is_empty()


def test_short_groups_and_rollouts_without_a_score(run: Any) -> None:
    nan = float("nan")
    empty: Script = [[] if s < 5 else [(float(s == 7), 2)] for s in range(N)]  # 3 sessions left
    failed: Script = [None if s < 6 else [(1.0, 2)] for s in range(N)]  # 2 left, the others raised
    unscored: Script = [[(nan if s % 2 else float(s == 4), 2)] for s in range(N)]  # 4 scored
    workers, metrics = run([empty, failed, unscored, ONE_OUTPUT], steps=1)
    (call,) = workers.of("update")
    assert list(sessions(call["keys"]).values())[:3] == [
        ["5", "6", "7"],
        ["6", "7"],
        ["0", "2", "4", "6"],
    ]
    assert all(advantage == advantage for advantage in call["advantages"])
    assert metrics[0]["pods/num_rows_kept_total"] == 3 + 2 + 4 + 4
    # 3 and 2 sessions of 8 came, 4 of the third prompt's have a score: 5 + 6 + 4 of 32 have none.
    assert metrics[0]["pods/frac_no_reward"] == 15 / 32
    assert metrics[0]["pods/min_kept_per_prompt"] == 2
    assert queue_is_empty()


def test_a_lone_rollout_does_not_teach_its_own_score(run: Any) -> None:
    """verl's GRPO takes the score of a rollout that is alone in its group as its advantage."""
    lone: Script = [[(7.0, 2)] if s == 3 else [] for s in range(N)]
    workers, _ = run([lone, *[ONE_OUTPUT] * (P - 1)], steps=1)
    (call,) = workers.of("update")
    assert len(sessions(call["keys"])) == P - 1
    assert max(call["advantages"]) < 1


def test_a_step_without_any_pair_of_scores_says_so(run: Any) -> None:
    nothing: Script = [[(float("nan"), 2)] for _ in range(N)]
    with pytest.raises(RuntimeError, match="step 1: of 32 rows no prompt has two rollouts with"):
        run([nothing] * P, steps=1)


@pytest.mark.parametrize("rule", ["max_reward", "shortest"])
def test_rules_see_rewards_and_lengths(run: Any, rule: str) -> None:
    script: Script = [[(float(session), N + 2 - session)] for session in range(N)]
    workers, _ = run([script] * P, f"+trainer.v1.pods.selection_rule={rule}", steps=1)
    (call,) = workers.of("update")
    # The last sessions have the highest rewards and the fewest tokens.
    assert list(sessions(call["keys"]).values()) == [["4", "5", "6", "7"]] * P


def test_a_pooled_budget_moves_rows_between_prompts_and_keeps_their_number(run: Any) -> None:
    constant: Script = [[(1.0, 2)] for _ in range(N)]
    workers, metrics = run(
        [constant, *[ONE_OUTPUT] * (P - 1)], "+trainer.v1.pods.budget=pooled", steps=1
    )
    (call,) = workers.of("update")
    kept = sessions(call["keys"])
    assert len(kept) == P - 1 and sum(map(len, kept.values())) == P * M
    assert not any(call["padding"])
    assert metrics[0]["pods/min_kept_per_prompt"] == 0


def test_several_updates_of_a_step_take_whole_mini_batches(run: Any) -> None:
    workers, _ = run(
        [ONE_OUTPUT] * P, f"actor_rollout_ref.actor.ppo_mini_batch_size={P // 2}", steps=1
    )
    (call,) = workers.of("update")
    assert call["info"]["mini_batch_size"] == P // 2 * M and len(call["keys"]) == P * M


def test_dropped_rollouts_are_written_where_that_is_asked_for(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dropped"
    workers, _ = run([ONE_OUTPUT] * P, f"+trainer.v1.pods.dropped_data_dir={folder}")
    kept = [set(call["keys"]) for call in workers.of("update")]
    for step, keys in enumerate(kept, start=1):
        lines = [json.loads(line) for line in (folder / f"{step}.jsonl").read_text().splitlines()]
        assert len(lines) == P * (N - M) and not {line["uid"] for line in lines} & keys
        assert {line["score"] for line in lines} == {0.0}


@pytest.mark.parametrize("seed", [42, 7])
def test_ties_fall_as_in_the_selector_with_the_steps_seed(run: Any, seed: int) -> None:
    """And so as in PODSTrainer, whose seed of its first step is made of the same words."""
    workers, _ = run([ONE_OUTPUT] * P, f"+trainer.v1.pods.seed={seed}")
    rewards = torch.tensor([[float(s % 4 == 0) for s in range(N)]] * P)
    for step, call in enumerate(workers.of("update")):
        step_seed = random.Random(f"{seed}/{step}/0").getrandbits(62)
        kept_PM = Selector(num_kept=M)(rewards.unsqueeze(-1), seed=step_seed).kept_PM
        expected = [[str(session) for session in kept] for kept in kept_PM.tolist()]
        assert list(sessions(call["keys"]).values()) == expected
