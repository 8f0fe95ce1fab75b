"""PODSTrainer samples from a real vLLM server, and trains on the log-probs that it sends.

TRL sends new weights to the server by NCCL, which needs a GPU; here they go through the file from
which the server has read its model, and which it is told to read again. All else is TRL's and
vLLM's.
"""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from trl.generation.vllm_client import VLLMClient

from helpers.harness import build, logged

N, M, STEPS = 8, 4, 3
SAME, OTHER = 1e-4, 0.05
"""Nats: what rounding moves a log-prob, and less than what a step of these moves it."""


class Syncs:
    """Stands for the transfer by NCCL; `num_left` weights are sent, and no more."""

    def __init__(self, num_left: int) -> None:
        self.num_left = num_left

    def update(self, client: VLLMClient, _: Any, named_params: Any) -> None:
        if self.num_left == 0:
            return
        self.num_left -= 1
        weights = {name: tensor.detach().clone() for name, tensor in named_params}
        save_file(weights, Path(client.model, "model.safetensors"))
        client._post(f"{client.base_url}/collective_rpc", json={"method": "reload_weights"})


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs = Syncs(STEPS)
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda *_, **__: None)
    monkeypatch.setattr(VLLMClient, "update_named_params", lambda *given: syncs.update(*given))
    return syncs


def trained(folder: str, output: Path, address: str, *, reverse: bool = False) -> Any:
    """A trainer after its steps, and what it sampled and handed on in each.

    reverse: the kept rollouts are given each other's log-probs.
    """
    trainer = build(
        folder,
        output,
        num_generations=M,
        num_rollouts=N,
        max_steps=STEPS,
        learning_rate=1e-2,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=address,
    )
    steps: list[dict[str, Any]] = []
    generate = trainer._generate

    def spy(prompts: list) -> tuple:
        handed_on = generate(prompts)
        batch = trainer.batch
        steps.append({"sampled": batch.rollouts.generated, "rows": batch.rows, "kept": handed_on})
        if reverse:
            handed_on = (*handed_on[:4], handed_on[4][::-1], *handed_on[5:])
        return handed_on

    trainer._generate = spy
    trainer.train()
    return trainer, steps


def differences(trainer: Any, how: str = "max") -> list[float]:
    """Between the server's log-probs and the trainer's own, of kept tokens, step by step."""
    found = logged(trainer, f"sampling/sampling_logp_difference/{how}")
    print(how, found)
    assert len(found) == STEPS
    return found


@pytest.mark.usefixtures("syncs")
def test_the_kept_have_the_log_probs_with_which_they_were_sampled(
    model_folder: str, tmp_path: Path, address: str
) -> None:
    trainer, steps = trained(model_folder, tmp_path, address)
    assert max(differences(trainer)) < SAME
    for step in steps:
        _, ids, _, _, log_probs, *_ = step["sampled"]
        assert len(ids) == 2 * N and len({tuple(row) for row in ids}) > M
        assert [len(row) for row in log_probs] == [len(row) for row in ids]
        _, kept_ids, _, _, kept_log_probs, *_ = step["kept"]
        assert len(step["rows"]) == 2 * M
        assert kept_ids == [ids[row] for row in step["rows"]]
        assert kept_log_probs == [log_probs[row] for row in step["rows"]]


def test_weights_that_are_not_sent_show(
    model_folder: str, tmp_path: Path, address: str, syncs: Syncs
) -> None:
    syncs.num_left = 1
    trainer, _ = trained(model_folder, tmp_path, address)
    first, *later = differences(trainer)
    assert first < SAME and min(later) > OTHER
    assert (
        differences(trainer, "mean")[0] < SAME < OTHER / 10 < min(differences(trainer, "mean")[1:])
    )


@pytest.mark.usefixtures("syncs")
def test_log_probs_of_another_rollout_show(model_folder: str, tmp_path: Path, address: str) -> None:
    trainer, _ = trained(model_folder, tmp_path, address, reverse=True)
    assert min(differences(trainer)) > OTHER
