"""PODS in TRL's asynchronous trainer: its real trainer, child process and scoring on a CPU.

Stand-ins: a server on loopback for vLLM, attention by torch for the FA3 kernel, and no transfer of
weights.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from trl.experimental.async_grpo import async_grpo_trainer, async_rollout_worker, packing

from helpers.completions_server import completions_server
from helpers.harness import dataset
from helpers.tiny import even_reward
from podsrl.async_grpo import AsyncPODSConfig, AsyncPODSTrainer, PodsRolloutWorker

N, M, STEPS = 16, 4, 3

PLAIN_TEXT = {
    "defaults": {"role": "assistant"},
    "start_anchor": "a ",
    "fields": {"content": {"close_pattern": r"<eos>|$", "content": "text"}},
}
"""How answers of the tiny tokenizer are read, whose chat template TRL does not know."""


class TorchAttention:
    """What the trainer asks of FlashAttention 3: rows of different lengths in one, causal."""

    @staticmethod
    def flash_attn_varlen_func(
        q: Any, k: Any, v: Any, ends_q: Any, ends_k: Any, *_: Any, softmax_scale: float, **__: Any
    ) -> torch.Tensor:
        result, groups = torch.empty_like(q), q.shape[1] // k.shape[1]
        starts = zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)
        for first_q, last_q, first_k, last_k in [map(int, ends) for ends in starts]:
            own_q = q[first_q:last_q].transpose(0, 1)
            own_k, own_v = (x[first_k:last_k].transpose(0, 1) for x in (k, v))
            size_q, size_k = own_q.shape[1], own_k.shape[1]
            result[first_q:last_q] = torch.nn.functional.scaled_dot_product_attention(
                own_q,
                own_k.repeat_interleave(groups, 0),
                own_v.repeat_interleave(groups, 0),
                attn_mask=torch.ones(size_q, size_k, dtype=torch.bool).tril(size_k - size_q),
                scale=softmax_scale,
            ).transpose(0, 1)
        return result


class NoTransfer:
    """Weights stay where they are: the server samples at random."""

    def send_weights(self, weights: Any) -> None:
        for _ in weights:
            pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_flash_attn", lambda: TorchAttention)
    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", lambda *_: 1e12)
    monkeypatch.setattr(async_rollout_worker, "is_vllm_available", lambda: True)


def no_judge(completions: list[Any], **_: Any) -> list[float]:
    raise ValueError("the judge is down")


def killed(completions: list[Any], **_: Any) -> list[float]:
    """Ends its process as the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def build(
    folder: str, output: Path, address: str, *, reward: Any = even_reward, **options: Any
) -> AsyncPODSTrainer:
    args = AsyncPODSConfig(
        output_dir=str(output),
        num_generations=M,
        num_rollouts=N,
        per_device_train_batch_size=8,
        token_budget=-1,
        max_steps=STEPS,
        max_completion_length=12,
        max_staleness=1000,
        max_inflight_tasks=2 * N,
        queue_maxsize=64,
        vllm_server_base_url=address,
        use_cpu=True,
        bf16=False,
        dtype="float32",
        learning_rate=1e-3,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = PLAIN_TEXT
    return AsyncPODSTrainer(
        model=folder,
        processing_class=tokenizer,
        reward_funcs=[reward],
        args=args,
        train_dataset=dataset(),
        weight_transfer=NoTransfer(),
    )


@pytest.mark.usefixtures("on_a_cpu")
def test_the_child_process_samples_16_and_hands_on_4(tiny_folder: str, tmp_path: Path) -> None:
    with completions_server() as (address, asked):
        trainer = build(tiny_folder, tmp_path, address)
        worker = trainer.rollout_worker
        assert type(worker) is PodsRolloutWorker
        taken: list[Any] = []
        get = worker.rollout_buffer.get

        def remember(*arguments: Any, **options: Any) -> Any:
            taken.append(get(*arguments, **options))
            return taken[-1]

        worker.rollout_buffer.get = remember
        before = [weights.detach().clone() for weights in trainer.model.parameters()]
        trainer.train()
        after = list(trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    groups: dict[int, list[Any]] = {}
    for sample in taken:
        groups.setdefault(sample.group_id, []).append(sample)
    whole = [group for group in groups.values() if len(group) == M]
    assert len(whole) >= len(groups) - 1 >= STEPS  # the last may have been under way
    assert len(asked) >= N * len(whole)
    for group in whole:
        rewards = sorted(sample.metrics["reward"] for sample in group)
        share = group[0].metrics["pods/all/reward"]
        num_right = round(share * N)
        # The best variance of four 0/1 rewards of which at most two must be right, or wrong.
        right = min(max(2, M - (N - num_right)), num_right)
        assert rewards == [0.0] * (M - right) + [1.0] * right
        advantages = torch.tensor([sample.advantage for sample in group])
        assert abs(float(advantages.sum())) < 1e-5
        if 0 < right < M:
            assert float((advantages**2).mean()) == pytest.approx(1.0, abs=1e-4)
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == STEPS
    for entry in logs:
        assert 0.1 < entry["reward"] < 0.9 and "pods/all/reward" not in entry
        assert entry["rewards/even_reward"] == entry["reward"]
        assert entry["pods/kept_reward_mean"] == pytest.approx(0.5)
        assert entry["pods/frac_best_variance"] == 1.0


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(
    ("reward", "told", "cause"),
    [
        (no_judge, "child has failed", "the judge is down"),
        (killed, r"ended by itself \(exit code -9;.*out of memory", "None"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_child_that_fails_ends_the_training(
    reward: Any, told: str, cause: str, tiny_folder: str, tmp_path: Path
) -> None:
    """TRL alone waits for ever: for the child to hear that it is to stop."""
    with completions_server() as (address, _):
        trainer = build(
            tiny_folder, tmp_path, address, reward=reward, heartbeat_stale_after_s=100_000
        )
        with pytest.raises(RuntimeError, match=told) as raised:
            trainer.train()
    assert cause in str(raised.value.__cause__)
    assert trainer.rollout_worker._process is None
