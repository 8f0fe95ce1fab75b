"""Rollouts that begin in the places of ended ones draw what they would have drawn among all."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import make_model
from podsrl.sampling import sample as sampling
from podsrl.sampling.early_stop import EarlyStop
from podsrl.sampling.sample import SampledRollouts, sample
from podsrl.sampling.settings import SamplingSettings

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 4, 4, 9, 30, 4]]
SETTINGS: dict[str, Any] = {
    "max_new_tokens": 16,
    "eos_token_ids": (1, 7, 11, 20),
    "pad_token_id": 1,
}


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "sharing_pays", lambda *_, **__: True)


def run(model: Any, max_rows: int, prompts: Any = PROMPTS, **options: Any) -> SampledRollouts:
    settings = SamplingSettings(**{**SETTINGS, **options.pop("settings", {})})
    generator = torch.Generator().manual_seed(7)
    return sample(
        model,
        prompts,
        9,
        settings=settings,
        generator=generator,
        max_rows=max_rows,
        return_log_probs=True,
        **options,
    )


def flat(rollouts: SampledRollouts) -> Tensor:
    assert rollouts.log_probs is not None
    return torch.tensor([x for row in rollouts.log_probs for x in row])


@pytest.mark.parametrize(
    "settings",
    [{}, {"repetition_penalty": 1.3, "top_p": 0.9}, {"eos_token_ids": ()}, {"max_new_tokens": 1}],
    ids=["rows end", "cut and penalised", "at the limit", "one token"],
)
@pytest.mark.parametrize("max_rows", [3, 10, 26])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rollouts_are_those_decoded_all_at_once(
    family: str, max_rows: int, settings: dict[str, Any]
) -> None:
    """Gemma's window of 8 lies in the prompt for some rows and in their own tokens for others."""
    model = make_model(family).eval()
    whole = run(model, 27, settings=settings)
    refilled = run(model, max_rows, settings=settings)
    assert refilled.completion_ids == whole.completion_ids
    torch.testing.assert_close(flat(refilled), flat(whole), atol=2e-5, rtol=0)


def test_fewer_places_than_prompts_refill_prompt_by_prompt() -> None:
    model = make_model().eval()
    assert run(model, 2).completion_ids == run(model, 27).completion_ids


def test_freed_places_are_filled_at_once() -> None:
    """Every forward pass but the last few is full, and each token but the first is read once."""
    model, num_rows = make_model().eval(), []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: num_rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rollouts = run(model, 6).completion_ids
    hook.remove()
    lengths = [len(row) for row in rollouts]
    assert num_rows[0] == 3 and max(num_rows[1:]) <= 6
    assert sum(num_rows[1:]) == sum(lengths) - 27
    # One after another, parts of 6, 6, ... rows would take as many steps as their longest rows.
    parts = [max(lengths[i : i + 6]) - 1 for i in range(0, 27, 6)]
    assert len(num_rows) - 1 < sum(parts)


def test_checks_every_eight_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: ended rows go on until the check, but no row past its limit."""
    model = make_model("gemma3").eval()
    expected = run(model, 27).completion_ids
    original = sampling.decode_refilling

    def seldom(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs | {"steps_between_checks": 8})

    monkeypatch.setattr(sampling, "decode_refilling", seldom)
    for settings in ({}, {"max_new_tokens": 13}):
        expected = run(model, 27, settings=settings).completion_ids
        assert run(model, 5, settings=settings).completion_ids == expected


def test_stopping_early_leaves_the_others_as_they_were() -> None:
    model = make_model().eval()
    whole = run(model, 27).completion_ids

    def even(rows: list[int], tokens: list[list[int]]) -> Tensor:
        return torch.tensor([[float(len(each) % 2 == 0)] for each in tokens])

    with EarlyStop(
        even, torch.ones(1), num_groups=3, num_rollouts=9, num_kept=4, bounds=(0.0, 1.0)
    ) as monitor:
        stopped = run(model, 7, monitor=monitor).completion_ids
        rewards_BF = monitor.finish()
    has_ended = monitor.has_ended_B.tolist()
    assert not all(has_ended)
    for tokens, before, ended in zip(stopped, whole, has_ended, strict=True):
        assert tokens == (before if ended else before[: len(tokens)]) and tokens
    for group in rewards_BF.view(3, 9):
        # Stopped once two rewards of each kind were in, or sampled to the end.
        stopped_any = group.isnan().any()
        assert not stopped_any or ((group == 0).sum() >= 2 and (group == 1).sum() >= 2)


def test_the_memory_plan_keeps_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_shared_prompt: 256 bytes a token, 12 tokens a prompt, 16 new, 896 for a draw.

    Three prompts 3 * 12 * 256 = 9,216; a row 16 * 256 + 896 = 4,992. Half of 2 * (9,216 + 20,000)
    holds the prompts and 4 rows.
    """
    seen: list[int] = []
    original = sampling.decode_refilling

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["max_rows"])
        return original(*args, **kwargs)

    monkeypatch.setattr(sampling, "decode_refilling", spy)
    monkeypatch.setattr(sampling, "free_bytes", lambda device: 2 * (9_216 + 20_000))
    sample(make_model(), PROMPTS, 4, settings=SamplingSettings(16, (), 0))
    assert seen == [4]
