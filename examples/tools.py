"""A tool: the model may look prices up before it answers; the reward is of its last answer alone.

python examples/tools.py [MODEL]      default: Qwen/Qwen3-0.6B; writes runs/tools
"""

import sys

import torch
from datasets import Dataset

from podsrl import PODSConfig, PODSTrainer

PRICES = {"apples": 3, "pears": 5, "plums": 2, "cherries": 8}


def price(item: str) -> str:
    """Look up what one piece costs.

    Args:
        item: such as apples.
    """
    return str(PRICES.get(item.strip().lower(), "not sold here"))


def correct(completions, total, **columns):
    last = [messages[-1].get("content") or "" for messages in completions]
    return [float(t.endswith(str(right))) for t, right in zip(last, total, strict=True)]


asked = [(number, item) for item in PRICES for number in range(2, 12)]
chat = [[{"role": "user", "content": f"What do {n} {item} cost?"}] for n, item in asked]
questions = Dataset.from_dict({"prompt": chat, "total": [n * PRICES[item] for n, item in asked]})
options = {"per_device_train_batch_size": 8, "max_completion_length": 128, "max_steps": 4}
settings = PODSConfig(
    "runs/tools",
    num_rollouts=16,  # n: each makes its own calls
    num_generations=4,  # m: what the tool wrote is read by the update, never trained on
    max_tool_calling_iterations=2,
    bf16=torch.cuda.is_available(),
    logging_steps=1,
    **options,
)
model = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen3-0.6B"
PODSTrainer(model, correct, settings, train_dataset=questions, tools=[price]).train()
