"""A colocated vLLM that takes all sampled rollouts at once."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import grpo_trainer


@contextmanager
def engine_for_all_rollouts(config: Any) -> Iterator[None]:
    """An engine that TRL builds in the enclosed block has room for n rollouts where TRL counts m.

    TRL bounds the rows that vLLM decodes at once (`max_num_seqs`) by the rows that a process trains
    on, which are the kept ones: n rollouts would go through it in n / m waves. It has no setting
    for the bound and builds the engine in the middle of `GRPOTrainer.__init__`, so that the name by
    which it does so is exchanged for the time.

    config: the PODSConfig.

    Example: 16 kept rows a process, n = 64, m = 16: 64 instead of 16.
    """
    build = grpo_trainer.VLLMGeneration

    def build_wider(*args: Any, max_num_seqs: int, **options: Any) -> Any:
        wider = math.ceil(max_num_seqs * config.num_rollouts / config.num_generations)
        return build(*args, max_num_seqs=wider, **options)

    grpo_trainer.VLLMGeneration = build_wider
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = build
