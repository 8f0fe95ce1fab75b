"""LoRA: adapters are trained, the model stays; what is saved is the adapter alone.

python examples/lora.py [MODEL]      needs pip install 'podsrl[lora]'; writes runs/lora
"""

import sys

import torch
from datasets import Dataset
from own_reward import closeness
from peft import LoraConfig

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import resolve_model

chat = [[{"role": "user", "content": f"what is {i} + 7?"}] for i in range(64)]
questions = Dataset.from_dict({"prompt": chat, "total": [i + 7 for i in range(64)]})
settings = PODSConfig(
    "runs/lora",
    num_rollouts=16,
    num_generations=4,
    per_device_train_batch_size=8,
    max_completion_length=16,
    max_steps=4,
    logging_steps=1,
    learning_rate=1e-4,  # adapters take more than a whole model
    bf16=torch.cuda.is_available(),
)
trainer = PODSTrainer(
    resolve_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"),
    closeness,
    settings,
    train_dataset=questions,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model("runs/lora/adapter")
