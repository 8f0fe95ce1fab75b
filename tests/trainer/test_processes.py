"""Two processes keep exactly the rollouts that one process keeps from the same rewards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from podsrl import PODSConfig, select

HERE = Path(__file__).parent


def launch(folder: str, output: Path, *arguments: str) -> list[dict]:
    """Run run_processes.py on two gloo processes and return their records."""
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", str(HERE / "run_processes.py"), folder, str(output)]
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"record-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("rows", "num_rollouts"),
    [("8", "8"), ("2", "8"), ("6", "6")],
    ids=["whole groups", "one group over two processes", "three groups over two processes"],
)
def test_two_processes_keep_what_one_would(
    tiny_folder: str, tmp_path: Path, rows: str, num_rollouts: str
) -> None:
    first, second = launch(tiny_folder, tmp_path, rows, num_rollouts)
    assert first["selections"] == second["selections"]
    assert len(first["selections"]) == 2
    for step, selection in enumerate(first["selections"]):
        rewards_PN = torch.tensor(selection["rewards"])
        assert rewards_PN.shape == (2 * int(rows) // 4, int(num_rollouts))
        alone_PM = select(rewards_PN, 4, seed=selection["seed"])
        assert selection["kept"] == alone_PM.tolist()
        kept_texts = first["kept"][step]["texts"] + second["kept"][step]["texts"]
        kept_rewards = [float(len(text) % 2 == 0) for text in kept_texts]
        assert kept_rewards == rewards_PN.gather(1, alone_PM).flatten().tolist()
        for record in (first, second):
            assert record["texts"][step] == kept_texts
            prompts, questions = record["kept"][step]["prompts"], record["questions"][step]
            assert len(prompts) == int(rows)
            assert all(q in p for p, q in zip(prompts, questions, strict=True))
    assert first["log_history"][0]["loss"] == second["log_history"][0]["loss"]


def test_a_fraction_of_a_rollout_per_process_is_refused(tmp_path: Path) -> None:
    """2 rows a process at n = 6, m = 4 would need 2 x 6 / 4 = 3 rollouts: fine; n = 5 does not."""
    options = {"num_generations": 4, "use_cpu": True, "bf16": False}
    config = PODSConfig(str(tmp_path), per_device_train_batch_size=4, num_rollouts=5, **options)
    config.per_device_train_batch_size = 2  # half a group per process, as with two processes
    with pytest.raises(ValueError, match=r"2 x 5 / 4 .* multiple of num_generations .*8"):
        config._check_rows_per_process()
