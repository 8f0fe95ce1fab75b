"""A real vLLM server on loopback, with a tiny model, for all tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    PODSRL_SKIPS="",  # nothing here may be skipped
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import pytest
import requests

from helpers.skips import (  # noqa: F401
    pytest_configure,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from helpers.tiny import save_tiny

SECONDS_TO_START = 600


def command(folder: str, port: int) -> list[str]:
    """What `trl vllm-serve` runs, but for the transfer of weights by NCCL, which needs a GPU."""
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    words += ["--max-model-len", "128", "--max-num-seqs", "32", "--enforce-eager"]
    words += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs"]
    return [*words, "--max-logprobs", "-1"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with heads of 32 numbers, the fewest that vLLM's attention on a CPU takes."""
    return save_tiny(tmp_path_factory.mktemp("served"), head_dim=32)


@pytest.fixture(scope="session")
def address(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    # The endpoint that reloads weights is one for development; one GiB holds keys and values.
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as told:
        server = subprocess.Popen(
            command(model_folder, port),
            env=os.environ | environment,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(server, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return when the server answers."""
    end = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < end:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)
    pytest.fail(f"no server after {SECONDS_TO_START} s, or it ended:\n{log.read_text()[-5000:]}")
