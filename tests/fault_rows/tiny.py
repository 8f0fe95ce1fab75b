"""A tiny random model, its questions, and the words of a run of a second on them."""

import json
from pathlib import Path
from typing import Any

SPECIAL = ["<pad>", "<eos>", "<bos>"]
CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyz."
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }} {{ message['content'] }}."
    "{% endfor %}{% if add_generation_prompt %}a {% endif %}"
)
MAX_STEPS = 4


def save_model(folder: Path) -> None:
    """Write a random Llama of one layer and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def save_questions(path: Path) -> None:
    """Write a hundred questions whose answers are digits, which a random model says at times."""
    rows = [{"question": f"digit of {i}?", "answer": i % 10} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(scratch: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The settings of a run of `MAX_STEPS` steps that saves a checkpoint after each of them."""
    return {
        "task": f"jsonl:{scratch / 'questions.jsonl'}",
        "task_arguments": '{"answer_format": "number"}',
        "model": str(scratch / "model"),
        "output_dir": str(output),
        "num_rollouts": 64,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "max_steps": MAX_STEPS,
        "learning_rate": 0.003,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 1,
        "evaluate_limit": 4,
        "gradient_checkpointing": "false",
        "use_cpu": "true",
        "bf16": "false",
        **changes,
    }


def words(scratch: Path, output: Path, **changes: Any) -> list[str]:
    """`podsrl train` with these settings; a change to None leaves the setting out."""
    pairs = settings(scratch, output, **changes).items()
    return ["train", *(w for k, v in pairs if v is not None for w in (f"--{k}", str(v)))]
