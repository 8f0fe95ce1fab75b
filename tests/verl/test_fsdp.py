"""Steps of verl's trainer with its real FSDP workers: two processes, gloo, torch's FSDP2.

verl's worker, engine, losses, optimizer and checkpoints run as they are; the platform that lets
them is cpu_platform.py. What stands in is the language model server, whose rollouts are scripted.
"""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import verl.trainer.ppo.v1.trainer_base as host
from harness import Nothing, Script, fit, make_config, queue_is_empty, sessions, use_scripts
from safetensors.torch import load_file

N, M, P = 8, 4, 2
SCRIPTS: list[Script] = [
    [
        [(float((session + prompt) % 4 == 0), 2 + session % 3, 10 * prompt + session)]
        for session in range(N)
    ]
    for prompt in range(2 * P)
]
"""Two steps of two prompts; two of the eight sessions are right, and all say something else."""


def make_options(output: Path, *more: str) -> list[str]:
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    return [
        f"actor_rollout_ref.rollout.n={M}",
        f"data.train_batch_size={P}",
        f"{actor}.ppo_mini_batch_size={P}",
        "trainer.n_gpus_per_node=2",
        f"{actor}.strategy=fsdp2",
        f"{actor}.fsdp_config.model_dtype=fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype=fp32",
        f"{actor}.optim.lr=1e-2",
        f"{actor}.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"{model}.use_remove_padding=False",  # rows without padding need flash-attn, and so a GPU
        f"{model}.enable_gradient_checkpointing=False",
        f"+{model}.override_config.attn_implementation=sdpa",
        "trainer.save_freq=1",
        *more,
    ]


@pytest.fixture
def run(tiny_folder: str, tmp_path: Path, agents: Any, monkeypatch: Any) -> Any:
    """Trains on the scripts with real workers; returns kept rows per step, metrics, folder."""
    # A server for rollouts needs vLLM, which the agents here do without.
    monkeypatch.setattr(host.LLMServerManager, "create_empty", lambda config: Nothing())
    monkeypatch.setattr(host, "CheckpointEngineManager", lambda **_: Nothing())

    def train(name: str, *more: str, scripts: list[Script], steps: int, mode: str) -> Any:
        output, updated = tmp_path / name, []
        options = make_options(output, f"trainer.total_training_steps={steps}", *more)
        config = make_config(tiny_folder, output, *options, mode=mode)
        trainer = host.get_trainer_cls(mode)(config)
        trainer.replay_buffer.poll_interval = 0.05
        trainer._enable_hybrid_replicas = False  # verl's word for: no server beside the weights
        monkeypatch.setattr(trainer, "_init_dataloader", lambda: use_scripts(trainer, scripts))
        update = trainer._update_actor

        def remember(batch: Any, metrics: Any) -> Any:
            updated.append(sessions(batch.keys))
            return update(batch, metrics)

        monkeypatch.setattr(trainer, "_update_actor", remember)
        trainer.init()
        metrics = fit(trainer, agents, output, monkeypatch)
        dismiss(trainer)
        return updated, metrics, output / "checkpoints"

    return train


def dismiss(trainer: Any) -> None:
    """End the trainer's workers, so that the next one's find room."""
    rewarding = trainer.reward_loop_manager.reward_loop_worker_handles
    for worker in [*trainer.actor_rollout_wg.workers, *rewarding]:
        ray.kill(worker)
    for pool in trainer.resource_pool_manager.resource_pool_dict.values():
        for group in pool.pgs:
            ray.util.remove_placement_group(group)


def weights(checkpoints: Path, step: int) -> dict[str, torch.Tensor]:
    folder = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    return load_file(folder / "model.safetensors")


def test_real_workers_update_on_the_kept_alone_and_a_resume_keeps_the_same(
    run: Any, tiny_folder: str
) -> None:
    pods = ["+trainer.v1.pods.num_rollouts=8"]
    kept, metrics, folder = run("pods", *pods, scripts=SCRIPTS, steps=2, mode="pods_sync")
    assert [len(step) for step in kept] == [P, P]
    assert all(len(chosen) == M for step in kept for chosen in step.values())
    assert [line["pods/num_rows_sampled_total"] for line in metrics] == [P * N] * 2
    assert [line["pods/num_rows_kept_total"] for line in metrics] == [P * M] * 2
    assert all(line["actor/grad_norm"] > 0 for line in metrics)
    assert queue_is_empty()
    before = load_file(Path(tiny_folder) / "model.safetensors")
    first = weights(folder, 1)
    assert any(not torch.equal(first[name], before[name]) for name in before)

    # verl's own mode, given nothing but the kept rollouts, comes to the same weights.
    only_kept = [
        [SCRIPTS[prompt][int(session)] for session in chosen]
        for prompt, chosen in enumerate(kept[0].values())
    ]
    alone, _, its_folder = run("alone", scripts=only_kept, steps=1, mode="sync")
    assert [len(chosen) for chosen in alone[0].values()] == [M] * P
    for name, value in weights(its_folder, 1).items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)

    again, _, resumed = run(
        "resumed",
        *pods,
        "trainer.resume_mode=resume_path",
        f"trainer.resume_from_path={folder / 'global_step_1'}",
        scripts=SCRIPTS,
        steps=2,
        mode="pods_sync",
    )
    assert again == kept[1:]
    second = weights(folder, 2)
    for name, value in weights(resumed, 2).items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
