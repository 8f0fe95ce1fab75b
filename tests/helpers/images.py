"""Tiny random models that see, with processors made here, and questions with images."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from tokenizers import AddedToken
from torch import manual_seed
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)
from trl import GRPOTrainer

from helpers.harness import arguments
from helpers.tiny import SIZES, digit_reward, even_reward, make_tokenizer
from podsrl import PODSTrainer

IMAGE_TOKENS = {"llava": "<image>", "qwen2_vl": "<|image_pad|>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}IMAGE{% else %}{{ block['text'] }}{% endif %}{% endfor %}"
    "{% endif %}.{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


class StillProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor without the part that reads videos, which needs torchvision."""

    def check_argument_for_proper_class(self, *_: Any) -> None:
        """Without torchvision there is no class to compare with."""


def make_processor(kind: str) -> Any:
    """A processor of images of 16 x 16 pixels in patches of 8, or of any size, and characters."""
    tokenizer, token = make_tokenizer(), IMAGE_TOKENS[kind]
    tokenizer.add_tokens([AddedToken(token, special=True)])  # number 45
    template = CHAT_TEMPLATE.replace("IMAGE", token)
    if kind == "llava":
        sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
        images = CLIPImageProcessorPil(**sizes)
        return LlavaProcessor(
            images,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=1, min_pixels=64, max_pixels=1024
    )
    return StillProcessor(images, tokenizer, chat_template=template)


def make_seeing(kind: str) -> Any:
    """A random two-layer model with a random encoder of images; weights larger than usual."""
    manual_seed(0)
    if kind == "llava":
        text = LlamaConfig(**{**SIZES, "initializer_range": 0.3})
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=45,
            image_seq_length=4,
            vision_feature_select_strategy="default",
            initializer_range=0.3,
        )
        return LlavaForConditionalGeneration(config)
    text = {**SIZES, "initializer_range": 0.3, "rope_parameters": ROPE}
    vision = {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, "temporal_patch_size": 1, "spatial_merge_size": 2},
        image_token_id=45,
        video_token_id=46,
        vision_start_token_id=47,
        vision_end_token_id=44,
        initializer_range=0.3,
    )
    return Qwen2VLForConditionalGeneration(config)


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def save_seeing(folder: Path, kind: str) -> str:
    """Write a tiny model that sees and return the path."""
    make_seeing(kind).save_pretrained(folder)
    return str(folder)


def picture(number: int) -> Image.Image:
    """An image in a colour of its own, of sizes that differ."""
    return Image.new("RGB", (16, 16 + 8 * (number % 2)), (40 * number % 256, 90, 255 - 30 * number))


def questions_with_images() -> Dataset:
    """Six questions about an image each."""
    prompts = [[{"role": "user", "content": f"what is {i}?"}] for i in range(6)]
    return Dataset.from_dict({"prompt": prompts, "images": [[picture(i)] for i in range(6)]})


def encoder_of(model: Any) -> Any:
    """The part of the model that reads images."""
    inner = model.model
    return inner.vision_tower if hasattr(inner, "vision_tower") else inner.visual


def build_seeing(
    folder: str,
    output: Path,
    kind: str,
    *,
    trainer_class: type[GRPOTrainer] = PODSTrainer,
    rewards: list[Any] | None = None,
    **options: Any,
) -> GRPOTrainer:
    """As `harness.build`, on a model that sees and on questions with images."""
    settings = {
        "max_completion_length": 10,
        "generation_kwargs": {"suppress_tokens": [45, 46, 47]},  # an image is seen, not written
        **options,
    }
    return trainer_class(
        model=AutoModelForImageTextToText.from_pretrained(folder, dtype="float32"),
        reward_funcs=rewards or [digit_reward, even_reward],
        args=arguments(trainer_class, output, **settings),
        train_dataset=questions_with_images(),
        processing_class=make_processor(kind),
    )
