"""A trainer of verl with its real configuration, replay buffer, queue and agent loops.

What stands in: the agent (its rollouts are scripted), the language model servers, and, but for the
tests of FSDP, the workers that hold the model.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.dataset.rl_dataset import collate_fn

Script = list[list[tuple[float, ...]] | None]
"""The sessions of one prompt, see scripted_agent.py."""

NUM_PARTS = 2
"""Data-parallel processes that the stand-in workers pretend to be."""


def make_config(folder: str, output: Path, *overrides: str, mode: str = "pods_sync") -> DictConfig:
    """verl's own configuration of PPO, with the tiny model and the scripted agent."""
    agents = output / "agents.yaml"
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save([{"name": "scripted", "_target_": "scripted_agent.ScriptedAgent"}], agents)
    rollout = "actor_rollout_ref.rollout"
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                f"trainer.v1.trainer_mode={mode}",
                f"actor_rollout_ref.model.path={folder}",
                f"{rollout}.name=vllm",
                f"{rollout}.agent.num_workers=1",
                f"{rollout}.agent.default_agent_loop=scripted",
                f"{rollout}.agent.agent_loop_config_path={agents}",
                f"{rollout}.log_prob_use_dynamic_bsz=True",
                "actor_rollout_ref.actor.use_dynamic_bsz=True",
                "algorithm.adv_estimator=grpo",
                "trainer.device=cpu",
                "reward.num_workers=1",
                "trainer.logger=[file]",
                "trainer.val_before_train=False",
                "trainer.test_freq=-1",
                "trainer.save_freq=-1",
                "trainer.total_epochs=100",
                "trainer.resume_mode=disable",
                f"trainer.default_local_dir={output / 'checkpoints'}",
                *overrides,
            ],
        )
    config.transfer_queue.enable = True
    return config


class Prompts(torch.utils.data.Dataset):
    """Rows as verl's data set hands them on, with the script of each prompt."""

    def __init__(self, scripts: list[Script]) -> None:
        self.scripts = scripts

    def __len__(self) -> int:
        return len(self.scripts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chat = [{"role": "user", "content": str(index)}]
        return {
            "raw_prompt": chat,
            "index": index,
            "script": self.scripts[index],
            "reward_model": {"ground_truth": str(index)},
            "dummy_tensor": torch.zeros(1, dtype=torch.uint8),
        }


class Workers:
    """Stands in for the group of workers that hold the model: remembers what it was given."""

    def __init__(self) -> None:
        self._dispatch_info = {"actor": list(range(NUM_PARTS))}
        self.calls: list[dict[str, Any]] = []

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        self._remember("log_prob", batch)
        ids = _field(batch, "input_ids")
        found = torch.nested.as_nested_tensor([-x.float() for x in ids], layout=torch.jagged)
        fields = TensorDict({"log_probs": found, "entropy": found.clone()}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def update_actor(self, batch: KVBatchMeta) -> dict[str, Any]:
        advantages = [float(row[0]) for row in _field(batch, "advantages")]
        self._remember("update", batch, advantages=advantages)
        return {"metrics": {"loss": [0.0], "mfu": [0.0], "grad_norm": [0.1]}}

    def _remember(self, name: str, batch: KVBatchMeta, **more: Any) -> None:
        padding = [bool(tag.get("is_padding")) for tag in batch.tags]
        info = dict(batch.extra_info)
        self.calls.append(
            {"name": name, "keys": list(batch.keys), "padding": padding, "info": info, **more}
        )

    def of(self, name: str) -> list[dict[str, Any]]:
        """What every call of that name was given."""
        return [call for call in self.calls if call["name"] == name]

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.calls.append({"name": name})


class Nothing:
    """Answers every call with nothing: servers that are not there have no weights to update."""

    reward_loop_worker_handles = ("streaming",)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def make_trainer(config: DictConfig, scripts: list[Script]) -> Any:
    """The trainer that the configuration names, set up as its `init` does but for the engines."""
    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
    trainer.replay_buffer.poll_interval = 0.05
    trainer.tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    trainer.processor = None
    use_scripts(trainer, scripts)
    trainer._init_dump_executor()
    trainer.actor_rollout_wg = Workers()
    trainer.checkpoint_manager = trainer.reward_loop_manager = Nothing()
    trainer.resource_pool_manager = type("Pool", (), {"get_n_gpus": lambda _: NUM_PARTS})()
    trainer.distillation_config = trainer.teacher_model_manager = None
    trainer._load_checkpoint()
    return trainer


def use_scripts(trainer: Any, scripts: list[Script]) -> None:
    """Give the trainer prompts with scripts, as its `_init_dataloader` does with a data set."""
    config = trainer.config
    is_sync = trainer.trainer_mode == "sync"
    config.data.gen_batch_size = config.data.train_batch_size if is_sync else 1
    trainer.train_dataset = trainer.val_dataset = Prompts(scripts)
    trainer.train_dataloader = StatefulDataLoader(
        trainer.train_dataset,
        batch_size=config.data.gen_batch_size,
        collate_fn=collate_fn,
        drop_last=True,
    )
    trainer.train_dataloader_it = None
    trainer.steps_per_epoch = max(1, len(scripts) // config.data.train_batch_size)
    trainer.total_training_steps = config.trainer.total_training_steps
    config.actor_rollout_ref.actor.optim.total_training_steps = trainer.total_training_steps


def fit(trainer: Any, agents: Any, output: Path, monkeypatch: Any) -> list[dict[str, Any]]:
    """Run verl's own loop with its own agent workers; the metrics that it logged, step by step."""
    log = output / "metrics.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(log))
    trainer.fit(agents)
    trainer.logger.finish(exit_code=0)
    return [json.loads(line)["data"] for line in log.read_text().splitlines()]


def sessions(keys: list[str]) -> dict[str, list[str]]:
    """Step and place of each prompt -> its sessions, padding left out."""
    found: dict[str, set[str]] = {}
    for key in keys:
        uid, session, _ = key.rsplit("_", 2)
        if not uid.startswith("pad"):
            found.setdefault(uid[:17], set()).add(session)
    return {uid: sorted(found[uid], key=int) for uid in sorted(found)}


def queue_is_empty() -> bool:
    """Whether no row is left in the queue of training."""
    return not (tq.kv_list("train") or {}).get("train")


def empty_queue() -> None:
    """Wait for rollouts under way, as an asynchronous run leaves them, and clear them all."""
    last = time.monotonic() + 20
    while rows := (tq.kv_list("train") or {}).get("train"):
        under_way = any(tag.get("status") in ("pending", "running") for tag in rows.values())
        if not under_way or time.monotonic() > last:
            tq.kv_clear(keys=list(rows), partition_id="train")
        time.sleep(0.05)


def _field(batch: KVBatchMeta, name: str) -> list[torch.Tensor]:
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[name])
    return list(data[name].unbind())
