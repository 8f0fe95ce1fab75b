"""The asynchronous modes: the same choice, on verl's asynchronous buffer."""

from pathlib import Path
from typing import Any

import pytest
import transfer_queue as tq
from harness import Script, fit, make_config, make_trainer, sessions
from verl.trainer.ppo.v1.replay_buffer import ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_separate_async import HybridEngineMode

N, M, P = 8, 4, 4
SCRIPT: Script = [[(float(session % 4 == 0), 2)] for session in range(N)]
PODS = [
    f"actor_rollout_ref.rollout.n={M}",
    f"+trainer.v1.pods.num_rollouts={N}",
    f"data.train_batch_size={P}",
    "trainer.total_training_steps=2",
]
SEPARATE = [
    "trainer.v1.separate_async.parameter_sync_step=2",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={P // 2}",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]


@pytest.fixture
def run(tiny_folder: str, tmp_path: Path, agents: Any, monkeypatch: Any) -> Any:
    def train(mode: str, *more: str) -> Any:
        config = make_config(tiny_folder, tmp_path, *PODS, *more, mode=mode)
        trainer = make_trainer(config, [SCRIPT] * P)
        trainer.standalone_checkpoint_manager = trainer.checkpoint_manager
        trainer.current_mode = HybridEngineMode.TRAINER
        metrics = fit(trainer, agents, tmp_path, monkeypatch)
        return trainer, metrics

    return train


def check_choice(keys: list[str], num_prompts: int) -> None:
    kept = sessions(keys)
    assert len(kept) == num_prompts
    assert all({"0", "4"} < set(chosen) and len(chosen) == M for chosen in kept.values())


def left_in_queue() -> set[str]:
    """Prompts whose rollouts wait for the next step."""
    rows = (tq.kv_list("train") or {}).get("train") or {}
    return {key.split("_")[0] for key in rows}


def test_colocate_async(run: Any) -> None:
    trainer, metrics = run(
        "pods_colocate_async", f"actor_rollout_ref.actor.ppo_mini_batch_size={P}"
    )
    assert (
        type(trainer.replay_buffer) is ReplayBufferAsync
        and trainer.trainer_mode == "colocate_async"
    )
    calls = trainer.actor_rollout_wg.of("update")
    assert len(calls) == 2
    for call in calls:
        check_choice(call["keys"], P)
    assert [line["pods/num_rows_kept_total"] for line in metrics] == [P * M] * 2
    # One batch was asked for ahead; of what was trained on nothing is left.
    trained = {key.split("_")[0] for call in calls for key in call["keys"]}
    assert not left_in_queue() & trained


def test_separate_async_with_two_updates_a_step(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dropped"
    trainer, metrics = run(
        "pods_separate_async", *SEPARATE, f"+trainer.v1.pods.dropped_data_dir={folder}"
    )
    calls = trainer.actor_rollout_wg.of("update")
    assert len(calls) == 4
    for call in calls:
        check_choice(call["keys"], P // 2)
        assert len(call["keys"]) == call["info"]["mini_batch_size"] == P // 2 * M
    # Counts of both updates are added up, shares and means are averaged.
    assert [line["pods/num_rows_kept_total"] for line in metrics] == [P * M] * 2
    assert [line["pods/num_rows_sampled_total"] for line in metrics] == [P * N] * 2
    assert [line["pods/reward"] for line in metrics] == [0.25] * 2
    for part in range(2):
        lines = (folder / f"part_{part}" / "1.jsonl").read_text().splitlines()
        assert len(lines) == P // 2 * (N - M)


@pytest.mark.parametrize("failed", [0, 3])
def test_failed_groups_are_replaced_and_not_short(
    tiny_folder: str, tmp_path: Path, agents: Any, monkeypatch: Any, failed: int
) -> None:
    """verl's asynchronous buffer replaces a prompt of which a rollout has failed."""
    scripts: list[Script] = [SCRIPT] * P
    scripts[failed] = [None, *SCRIPT[1:]]
    more = [f"actor_rollout_ref.actor.ppo_mini_batch_size={P}", "trainer.total_training_steps=1"]
    config = make_config(tiny_folder, tmp_path, *PODS, *more, mode="pods_colocate_async")
    trainer = make_trainer(config, scripts)
    metrics = fit(trainer, agents, tmp_path, monkeypatch)
    (call,) = trainer.actor_rollout_wg.of("update")
    check_choice(call["keys"], P)
    assert metrics[0]["pods/frac_no_reward"] == 0.0


def test_prompts_under_way_at_a_checkpoint_ask_for_n_rollouts_again(
    tiny_folder: str, tmp_path: Path, agents: Any
) -> None:
    """verl keeps their fields in its queue and sends them out anew; how many is one of these."""
    half = f"actor_rollout_ref.actor.ppo_mini_batch_size={P}"
    config = make_config(tiny_folder, tmp_path, *PODS, half, mode="pods_colocate_async")
    trainer = make_trainer(config, [SCRIPT] * P)
    trainer.global_steps, trainer.agent_loop_manager = 3, agents
    asked: list[Any] = []
    trainer.agent_loop_manager = type("Lost", (), {"generate_sequences": asked.append})()
    trainer._add_prompts_to_generate(P)  # put down in the queue, and then the machine fails
    assert [len(batch) for batch in asked] == [P] and len(left_in_queue()) == P
    trainer.agent_loop_manager = agents
    assert trainer._reissue_inflight_prompts() == P
    batch, _ = trainer.replay_buffer.sample(4, "train", P)
    found = sessions(batch.keys)
    assert list(found) == [f"00000003-{place:08d}" for place in range(P)]
    assert all(len(rollouts) == N for rollouts in found.values())
    tq.kv_clear(keys=batch.keys, partition_id="train")
