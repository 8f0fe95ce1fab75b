"""Groups of rollouts for the loop of TRL's asynchronous trainer, and what it hands on of them."""

import asyncio
from typing import Any

from accelerate.state import PartialState
from trl.experimental.async_grpo.async_rollout_worker import RolloutGroup, TrainingSequence

from podsrl.async_grpo import PodsRolloutLoop
from podsrl.core.selection import Selector


def make_loop(num_kept: int, rule: str = "max_variance", seed: int = 42) -> PodsRolloutLoop:
    """A loop that scores by the number that a completion says."""
    loop = PodsRolloutLoop.__new__(PodsRolloutLoop)
    loop.reward_funcs, loop.reward_func_names = [said], ["said"]
    loop._env_reward_types, loop.first_prompt = [], 0
    loop.selector, loop.seed = Selector(num_kept=num_kept, rule=rule), seed
    return loop


def said(completions: list[Any], **_: Any) -> list[float | None]:
    values = [float(completion[-1]["content"]) for completion in completions]
    return [None if value != value else value for value in values]


def make_group(
    rewards: list[float], *, rows: list[int] | None = None, lengths: list[int] | None = None
) -> RolloutGroup:
    """A group whose rollouts say their rewards; `rows` of each, one by default."""
    n = len(rewards)
    rows, lengths = rows or [1] * n, lengths or [3] * n

    def sequence(rollout: int) -> TrainingSequence:
        tokens = [5, 6, *[10 + rollout] * lengths[rollout]]
        mask = [0, 0, *[1] * lengths[rollout]]
        return TrainingSequence(tokens, mask, [-1.0] * len(tokens), str(rollout))

    return RolloutGroup(
        prompts=[[{"role": "user", "content": "?"}]] * n,
        reward_kwargs={},
        completions=[[{"role": "assistant", "content": str(reward)}] for reward in rewards],
        completions_ids=[[10 + rollout] * lengths[rollout] for rollout in range(n)],
        completions_sequences=[[sequence(i) for _ in range(rows[i])] for i in range(n)],
        tool_call_counts=[0] * n,
        tool_failure_counts=[0] * n,
        model_version=0,
        group_id=0,
        env_rewards=[None] * n,
        rollout_rewards=[None] * n,
    )


def score(loop: PodsRolloutLoop, group: RolloutGroup) -> list[Any]:
    """The rows that the loop hands on, its logger having what TRL's child process begins with."""
    PartialState()
    return asyncio.run(loop._score_group(group))


def rollouts_of(samples: list[Any]) -> list[int]:
    return [int(sample.input_ids[2]) - 10 for sample in samples]
