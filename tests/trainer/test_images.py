"""Models that see, under PODS: TRL's with n = m; m of n images through the encoder otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from helpers.harness import logged, numbers, recorded, spy
from helpers.images import (
    IMAGE_TOKENS,
    build_seeing,
    encoder_of,
    picture,
    questions_with_images,
    save_seeing,
)
from helpers.tiny import even_reward
from podsrl import PODSTrainer
from podsrl.runs.rollout_log import FILE_NAME, attach_log, read_rollouts
from podsrl.trl.reference import row_key


@pytest.fixture(scope="module", params=IMAGE_TOKENS)
def seeing(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The kind of model, and the folder that holds it."""
    return request.param, save_seeing(tmp_path_factory.mktemp(request.param), request.param)


def number_in(trainer: GRPOTrainer, prompt_ids: torch.Tensor) -> int:
    """Which of the six questions it is."""
    text = trainer.processing_class.tokenizer.decode(prompt_ids, skip_special_tokens=True)
    return int(text.split("what is ")[1][0])


def test_images_with_n_equal_to_m_are_stock_bit_for_bit(
    seeing: tuple[str, str], tmp_path: Path
) -> None:
    kind, folder = seeing
    stock = build_seeing(folder, tmp_path / "1", kind, trainer_class=GRPOTrainer)
    stock.train()
    ours = build_seeing(folder, tmp_path / "2", kind, num_rollouts=4)
    ours.train()
    assert numbers(ours) == numbers(stock) and any(logged(stock, "loss"))
    pairs = zip(ours.model.parameters(), stock.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_each_kept_rollout_goes_with_its_own_image_and_the_dropped_are_not_seen(
    seeing: tuple[str, str], tmp_path: Path
) -> None:
    """n = 16: 32 images a step while sampling, 8 in the update, dealt out in two micro-batches.

    The pixels of each row are those of the question that it asks.
    """
    kind, folder = seeing
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 2}
    trainer = build_seeing(folder, tmp_path, kind, num_rollouts=16, **options)
    processor = trainer.processing_class.image_processor
    expected = {
        i: processor(images=[picture(i)], return_tensors="pt")["pixel_values"] for i in range(6)
    }
    recorder, kept = recorded(trainer), spy(trainer, "_generate")
    num_seen, in_update = {True: 0, False: 0}, [False]

    def compare(_: Any, args: tuple, kwargs: dict) -> None:
        in_update[0] = "labels" in kwargs
        if in_update[0]:
            numbers_B = [number_in(trainer, ids) for ids in kwargs["input_ids"]]
            wanted = torch.cat([expected[number] for number in numbers_B])
            assert torch.equal(kwargs["pixel_values"], wanted) and len(numbers_B) == 4

    def count(_: Any, args: tuple, kwargs: dict) -> None:
        grid = kwargs.get("grid_thw")
        pixels = kwargs["pixel_values"] if grid is None and not args else args and args[0]
        num_seen[in_update[0]] += len(pixels if grid is None else grid)

    trainer.model.register_forward_pre_hook(compare, with_kwargs=True)
    trainer.model.register_forward_hook(lambda *_: in_update.__setitem__(0, False))
    encoder_of(trainer.model).register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    assert num_seen == {True: 2 * 8, False: 2 * 32}
    assert [len(batch.completions) for batch in recorder.batches] == [32, 32]
    assert all(len(found[6]) == 8 for found in kept)


OPTIONS: dict[str, dict[str, Any]] = {
    "old log-probs": {"num_iterations": 2, "beta": 0.1},
    "own objective": {
        "objective": "agro",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "refilled in rounds": {
        "num_rollouts": 16,
        "sampling_rounds": 4,
        "refill_constant_groups": 1,
    },
    "growing": {"num_generations_start": 2},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_images_go_with(seeing: tuple[str, str], tmp_path: Path, case: str) -> None:
    kind, folder = seeing
    trainer = build_seeing(folder, tmp_path, kind, **{"max_steps": 2, **OPTIONS[case]})
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_the_rollout_log_has_the_words(seeing: tuple[str, str], tmp_path: Path) -> None:
    kind, folder = seeing
    trainer = build_seeing(folder, tmp_path, kind, max_steps=1)
    attach_log(trainer, tmp_path)
    trainer.train()
    records = list(read_rollouts(tmp_path / FILE_NAME)[1])
    assert len(records) == 2 and all("what is" in record["question"] for record in records)


def test_a_divergence_over_the_vocabulary_is_refused(
    seeing: tuple[str, str], tmp_path: Path
) -> None:
    kind, folder = seeing
    with pytest.raises(NotImplementedError, match="hidden states of text, not of images"):
        build_seeing(folder, tmp_path, kind, objective="tdpo2")


def test_rows_that_teach_nothing_are_not_seen(seeing: tuple[str, str], tmp_path: Path) -> None:
    """All answers to questions of an even number get 1: their images stay out of the update."""
    kind, folder = seeing

    def uneven(prompts: list, completions: list, **_: Any) -> list[float]:
        even = [int(str(prompt).split("what is ")[1][0]) % 2 == 0 for prompt in prompts]
        return [1.0 if e else r for e, r in zip(even, even_reward(completions), strict=True)]

    weights: dict[bool, list[torch.Tensor]] = {}
    seen: dict[bool, int] = {}
    for skips in (True, False):
        options = {"max_steps": 3, "skip_dead_rows": skips, "gradient_accumulation_steps": 2}
        options |= {"per_device_train_batch_size": 4, "num_iterations": 2}
        trainer = build_seeing(folder, tmp_path, kind, rewards=[uneven], **options)
        images: list[int] = []

        def count(_: Any, args: tuple, kwargs: dict, found: list[int] = images) -> None:
            if "labels" in kwargs:
                found.append(len(kwargs["input_ids"]))
                grid = kwargs.get("image_grid_thw")
                pixels = kwargs["pixel_values"] if grid is None else grid
                assert len(pixels) == len(kwargs["input_ids"])

        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        trainer.train()
        weights[skips], seen[skips] = list(trainer.model.parameters()), sum(images)
        dead = logged(trainer, "pods/frac_kept_zero_advantage")
        assert any(0 < share < 1 for share in dead)
    for one, other in zip(*weights.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert seen[True] < 0.9 * seen[False]


def test_rows_with_and_without_images_are_refused_together(
    seeing: tuple[str, str], tmp_path: Path
) -> None:
    """TRL's own trainer fails in the processor, after sampling; one prompt a batch works."""
    kind, folder = seeing
    for trainer_class, error, words in (
        (GRPOTrainer, TypeError, "NoneType"),
        (PODSTrainer, ValueError, "8 of 16 rollouts of this batch are of prompts with images"),
    ):
        trainer = build_seeing(folder, tmp_path, kind, trainer_class=trainer_class)
        trainer.train_dataset = mixed()
        sampled = spy(trainer, "_generate_single_turn")
        with pytest.raises(error, match=words):
            trainer.train()
        assert bool(sampled) == (trainer_class is GRPOTrainer)
    sizes = {"per_device_train_batch_size": 4, "max_steps": 2}
    trainer = build_seeing(folder, tmp_path, kind, **sizes)
    trainer.train_dataset = mixed()
    trainer.train()
    assert trainer.state.global_step == 2


def mixed() -> Dataset:
    """Two questions, of which the second has no image."""
    rows = questions_with_images().select(range(2))
    return Dataset.from_dict({"prompt": list(rows["prompt"]), "images": [rows[0]["images"], []]})


def test_a_row_is_known_by_the_pixels_of_its_image() -> None:
    rows = [{"prompt": "what?", "images": [picture(number)]} for number in (1, 1, 2)]
    first, again, other = map(row_key, rows)
    assert first == again != other
