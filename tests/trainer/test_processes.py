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


CASES = {
    "8:8": "whole groups on each process",
    "2:8": "one group over two processes",
    "6:6": "three groups over two processes",
}


def launch(folder: str, output: Path) -> list[dict]:
    """What run_processes.py wrote on each of two gloo processes, for all cases in one launch.

    torchrun, because `accelerate launch --cpu --num_processes 2` starts a single process where
    no MPI is installed (accelerate 1.15).
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(HERE / "run_processes.py"), folder, str(output)]
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *CASES], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((output / f"records-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_keep_what_one_would(tiny_folder: str, tmp_path: Path) -> None:
    records = launch(tiny_folder, tmp_path)
    for case, what in CASES.items():
        print(what)  # pytest shows it where an assertion below fails
        check(case, *(record[case] for record in records))


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


def test_a_fraction_of_a_rollout_per_process_is_refused(tmp_path: Path) -> None:
    """Half a group a process: n = 6, m = 4 would need 2 x 6 / 4 = 3 rollouts, n = 5 needs 2.5."""
    options = {"num_generations": 4, "use_cpu": True, "bf16": False}
    config = PODSConfig(str(tmp_path), per_device_train_batch_size=4, num_rollouts=5, **options)
    config.per_device_train_batch_size = 2  # half a group per process, as with two processes
    with pytest.raises(ValueError, match=r"2 x 5 / 4 .* multiple of num_generations .*8"):
        config._check_rows_per_process()
