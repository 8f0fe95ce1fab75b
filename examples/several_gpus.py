"""One process per GPU: each samples and updates for its own prompts, gradients are averaged.

accelerate launch --num_processes 2 examples/several_gpus.py [MODEL]          writes runs/several
torchrun --standalone --nproc_per_node 2 examples/several_gpus.py [MODEL]      to try it on CPUs
"""

import sys

import torch
from datasets import Dataset
from own_reward import closeness

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import resolve_model

chat = [[{"role": "user", "content": f"what is {i} + 7?"}] for i in range(64)]
questions = Dataset.from_dict({"prompt": chat, "total": [i + 7 for i in range(64)]})
settings = PODSConfig(
    "runs/several",
    num_rollouts=16,
    num_generations=4,
    per_device_train_batch_size=8,  # of each process: two processes train on 4 prompts
    max_completion_length=16,
    max_steps=2,
    logging_steps=1,
    bf16=torch.cuda.is_available(),
    use_cpu=not torch.cuda.is_available(),
)
model = resolve_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m")
trainer = PODSTrainer(model, closeness, settings, train_dataset=questions)
trainer.train()
if trainer.accelerator.is_main_process:
    print(f"trained by {trainer.accelerator.num_processes} processes")
