"""An agent of verl whose rollouts are written down in the data: no model, no server.

A prompt's column `script` lists its sessions; a session is the list of its outputs, each a reward,
a number of tokens and, if not that of the session, the number that the tokens follow from. No
output is a rollout that came to nothing, None one that failed.
"""

from typing import Any

from verl.experimental.agent_loop import AgentLoopBase, AgentLoopOutput

PROMPT_TOKENS = 3


class ScriptedAgent(AgentLoopBase):
    async def run(
        self, sampling_params: dict[str, Any], *, script: Any, session_id: int, **_: Any
    ) -> list[AgentLoopOutput]:
        outputs = script[session_id]
        if outputs is None:
            raise RuntimeError("this rollout fails, as its script says")
        return [
            self._output(reward, length, *(others or [session_id]))
            for reward, length, *others in outputs
        ]

    def _output(self, reward: float, length: int, number: int) -> AgentLoopOutput:
        return AgentLoopOutput(
            prompt_ids=[5] * PROMPT_TOKENS,
            response_ids=[7 + (number + place) % 30 for place in range(length)],
            response_mask=[1] * length,
            response_logprobs=[-3.0] * length,
            reward_score=reward,
            num_turns=2,
            metrics={},
            extra_fields={
                "reward_extra_info": {},
                "min_global_steps": 0,
                "max_global_steps": 0,
            },
        )
