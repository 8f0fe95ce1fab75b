"""One Ray for all tests, on loopback, and verl's platform for machines without an accelerator."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(
    PODSRL_SKIPS="",  # nothing here may be skipped
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_raylet_start_wait_time_s="300",  # a loaded machine needs more than the default
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # loopback alone
    VERL_LOGGING_LEVEL="WARNING",
    VERL_PLATFORM="cpu",
    VERL_ENGINE_DEVICE="cuda",  # the FSDP engine that is registered for it
    VERL_USE_EXTERNAL_MODULES="cpu_platform",
    VERL_USE_EXTERNAL_PLUGINS="podsrl",
    # Ray's workers import from here what the tests hand them.
    PYTHONPATH=os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    ),
)

import pytest
import ray
import transfer_queue as tq
from harness import empty_queue, make_config, queue_is_empty
from verl.trainer.ppo.v1 import AgentLoopManagerTQ

from helpers.skips import (  # noqa: F401
    pytest_configure,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)
from helpers.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny Llama with its tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def cluster(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local Ray with verl's queue, and verl's own agent workers with the scripted agent.

    Ray is told of two accelerators, because verl counts its workers by them. The queue has one
    storage unit: each takes one of Ray's CPUs, verl asks for eight and waits for them without a
    word. The agents' configuration says m = 4; what they sample is what each prompt asks for.
    """
    ray.init(
        num_cpus=16,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300_000_000,
    )
    tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
    config = make_config(
        tiny_folder, tmp_path_factory.mktemp("agents"), "actor_rollout_ref.rollout.n=4"
    )
    manager = AgentLoopManagerTQ.create(
        config=config, llm_client=None, teacher_client=None, reward_loop_worker_handles=None
    )
    yield manager
    tq.close()
    ray.shutdown()


@pytest.fixture
def agents(cluster: Any) -> Iterator[Any]:
    """The agent workers, with an empty queue behind them."""
    assert queue_is_empty()
    yield cluster
    empty_queue()
