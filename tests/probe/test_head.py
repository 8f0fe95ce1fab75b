"""A head's file, its scores, and what is refused: another model, no better than chance, no head."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.heads import about
from helpers.tiny import make_model, save_tiny
from podsrl.probe.head import FORMAT, Head, load_head, model_digest, save_head
from podsrl.probe.reward import probe_reward
from podsrl.sampling.tap import states_at


def test_scores_by_hand_for_any_shape_and_precision() -> None:
    head = Head(torch.tensor([1.0, -1.0]), 0.5, about())
    states = torch.tensor([[[2.0, 2.0], [3.0, 1.0]]])
    # sigmoid(.5) = .6225, sigmoid(2.5) = .9241
    expected = torch.tensor([[0.6225, 0.9241]])
    torch.testing.assert_close(head.score(states), expected, atol=1e-4, rtol=0)
    assert head.score(states.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(head.score(states.bfloat16()), expected, atol=1e-4, rtol=0)
    assert head.score(states[0, 0]).shape == () and head.to("cpu").about == head.about
    with pytest.raises(ValueError, match="states have 3 numbers, but the head reads 2"):
        head.score(torch.zeros(4, 3))


def test_a_head_comes_back_as_it_was_written(tmp_path: Path) -> None:
    head = Head(torch.randn(32, generator=torch.Generator().manual_seed(0)), -1.25, about())
    save_head(tmp_path / "new" / "head.safetensors", head)
    found = load_head(tmp_path / "new" / "head.safetensors")
    assert torch.equal(found.weight, head.weight) and found.bias == head.bias
    assert found.about == head.about


@pytest.mark.parametrize("low", [0.5, 0.2, float("nan")])
def test_no_better_than_chance_is_neither_written_nor_read(tmp_path: Path, low: float) -> None:
    path, chance = tmp_path / "head.safetensors", about(auroc_low=low, auroc=0.6)
    with pytest.raises(ValueError, match=r"not written: .*0\.60.*not above chance"):
        save_head(path, Head(torch.ones(2), 0.0, chance))
    assert not path.exists()
    metadata = {"format": FORMAT, "about": json.dumps(dataclasses.asdict(chance))}
    save_file({"weight": torch.ones(2), "bias": torch.tensor(0.0)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"head.safetensors is refused: .* 40 held-out prompts"):
        load_head(path)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(ValueError, match=r"there is no head .*podsrl probe RUN_FOLDER"):
        load_head(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is no head"):
        load_head(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=f"is no head: its metadata do not say '{FORMAT}'"):
        load_head(path)


def test_a_model_is_known_by_its_weights_in_any_precision() -> None:
    model = make_model()
    digest = model_digest(model)
    head = Head(torch.ones(32), 0.0, about(model_digest=digest))
    head.check(make_model())
    assert model_digest(make_model().bfloat16()) == digest
    other = make_model(seed=1)
    assert model_digest(other) != digest
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.02)  # one tensor of many, by 2 %
    for changed in (model, other):
        with pytest.raises(ValueError, match="this model is another"):
            head.check(changed)


PROMPTS = [[{"role": "user", "content": "3+4"}], [{"role": "user", "content": "9-1-1"}]]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "model")


def written(tmp_path: Path, model: str, **changes: Any) -> str:
    path = tmp_path / "head.safetensors"
    weight_H = torch.randn(32, generator=torch.Generator().manual_seed(1)) / 8
    told = {"model": model, "model_digest": model_digest(make_model()), **changes}
    save_head(path, Head(weight_H, 0.25, about(**told)))
    return str(path)


def test_the_reward_is_the_score_of_the_last_token(tmp_path: Path, tiny: str) -> None:
    path = written(tmp_path, tiny)
    reward = probe_reward(path)
    assert reward.__name__ == "probe"  # its name in metrics
    texts = ["7", "so 7.", ""]
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    given = reward(
        prompts=prompts, completions=[[{"role": "assistant", "content": each}] for each in texts]
    )
    from podsrl.models import load_model, load_tokenizer

    tokenizer, head = load_tokenizer(tiny), load_head(path)
    ids = [
        tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True)[
            "input_ids"
        ]
        + tokenizer(text, add_special_tokens=False)["input_ids"]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    expected = head.score(states_at(load_model(tiny), ids, layers=[2])[:, 0])
    torch.testing.assert_close(torch.tensor(given), expected)
    assert len(set(given)) == 3 and all(0 < each < 1 for each in given)
    # Plain texts are prompts, too.
    assert reward(prompts=["u 3+4.a "], completions=["7"]) == pytest.approx(given[:1], abs=1e-6)


def test_a_reward_that_says_nothing_of_a_rollout_is_refused(tmp_path: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"fitted at the prompt .* --at last"):
        probe_reward(written(tmp_path, tiny, at="prompt", within_low=None))
    with pytest.raises(ValueError, match="not right from wrong among the rollouts of one prompt"):
        probe_reward(written(tmp_path, tiny, within_low=0.48))
    with pytest.raises(ValueError, match="no head"):
        probe_reward(str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match="does not exist"):
        probe_reward(written(tmp_path, f"{tiny}-gone"))


def test_a_model_that_has_changed_since_is_refused(tmp_path: Path, tiny: str) -> None:
    reward = probe_reward(written(tmp_path, tiny))
    weights = load_file(Path(tiny) / "model.safetensors")
    save_file(
        {k: v * 1.1 for k, v in weights.items()}, Path(tiny) / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="this model is another"):
        reward(prompts=PROMPTS[:1], completions=["7"])
