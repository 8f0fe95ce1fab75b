"""A reward of your own: how near the last number of an answer comes to the right one.

python examples/own_reward.py [MODEL]      default: the packaged small model; writes runs/own-reward
"""

import re
import sys

import torch
from datasets import Dataset

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import resolve_model


def closeness(completions, total, **columns):
    """1 for the right number, 1 / (1 + d) at a distance of d, 0 where there is no number."""
    rewards = []
    for messages, right in zip(completions, total, strict=True):
        numbers = re.findall(r"-?\d{1,9}", messages[0]["content"])
        rewards.append(1 / (1 + abs(int(numbers[-1]) - right)) if numbers else 0.0)
    return rewards


if __name__ == "__main__":
    chat = [[{"role": "user", "content": f"what is {i} + 7?"}] for i in range(64)]
    questions = Dataset.from_dict({"prompt": chat, "total": [i + 7 for i in range(64)]})
    settings = PODSConfig(
        "runs/own-reward",
        num_rollouts=16,  # n, sampled per prompt
        num_generations=4,  # m, kept per prompt
        per_device_train_batch_size=8,  # kept rollouts: 2 prompts
        max_completion_length=16,
        max_steps=4,
        logging_steps=1,
        bf16=torch.cuda.is_available(),
    )
    model = resolve_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
    PODSTrainer(model, closeness, settings, train_dataset=questions).train()
