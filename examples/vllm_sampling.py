"""Sampling with vLLM in the training process, where n is large and there is a GPU.

python examples/vllm_sampling.py [--dry-run]      needs pip install vllm; writes runs/vllm
"""

import sys

from datasets import Dataset
from own_reward import closeness

from podsrl import PODSConfig, PODSTrainer

MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
dry = "--dry-run" in sys.argv
chat = [[{"role": "user", "content": f"what is {i} + 7?"}] for i in range(64)]
questions = Dataset.from_dict({"prompt": chat, "total": [i + 7 for i in range(64)]})
settings = PODSConfig(
    "runs/vllm",
    num_rollouts=64,  # vLLM is at its best with many at once
    num_generations=16,
    per_device_train_batch_size=16,
    gradient_accumulation_steps=4,  # 64 kept rollouts: 4 prompts a step
    max_completion_length=256,
    max_steps=20,
    logging_steps=1,
    use_vllm=True,
    vllm_mode="colocate",  # in this process; "server" talks to `trl vllm-serve` elsewhere
    vllm_gpu_memory_utilization=0.3,  # the rest is for the update
    bf16=not dry,
    use_cpu=dry,
)
prompts = settings.generation_batch_size // settings.num_generations
print(f"{prompts} prompts x {settings.num_rollouts} rollouts by vLLM, 16 of each kept")
if not dry:
    PODSTrainer(MODEL, closeness, settings, train_dataset=questions).train()
