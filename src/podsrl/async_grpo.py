"""PODS in TRL's asynchronous trainer, which samples on a vLLM server while it trains.

    from podsrl.async_grpo import AsyncPODSConfig, AsyncPODSTrainer

docs/async.md has the rest.
"""

from podsrl.trl.async_loop import PodsRolloutLoop, PodsRolloutWorker
from podsrl.trl.async_trainer import AsyncPODSConfig, AsyncPODSTrainer

__all__ = ["AsyncPODSConfig", "AsyncPODSTrainer", "PodsRolloutLoop", "PodsRolloutWorker"]
