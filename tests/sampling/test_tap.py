"""Hidden states taken while sampling are those of a fresh forward pass, at no pass of their own."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.tiny import FAMILIES, make_model
from podsrl.sampling import sample as sampling
from podsrl.sampling.sample import SampledRollouts, sample
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.tap import decoder_layers, states_at, taking

# 3, 12 and 7 tokens: padded differently, and the second is longer than Gemma's window of 8.
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 4, 4, 9, 30, 4]]
# Rollouts end after 1 to 12 tokens, so that rows leave and begin all the time.
SETTINGS = SamplingSettings(max_new_tokens=12, eos_token_ids=tuple(range(1, 48, 6)), pad_token_id=0)
NUM_EACH = 12


def sampled(model: Any, **options: Any) -> SampledRollouts:
    generator = torch.Generator().manual_seed(3)
    return sample(model, PROMPTS, NUM_EACH, settings=SETTINGS, generator=generator, **options)


def check_states(model: Any, rollouts: SampledRollouts, layers: list[int]) -> None:
    """Against passes over each prompt alone, and each prompt and rollout without its last token."""
    assert rollouts.states is not None
    prompt_PDH = states_at(model, PROMPTS, layers=layers)
    texts = [
        PROMPTS[i // NUM_EACH] + tokens[:-1] for i, tokens in enumerate(rollouts.completion_ids)
    ]
    last_BDH = states_at(model, texts, layers=layers, batch_size=4)
    torch.testing.assert_close(rollouts.states.prompt_PDH, prompt_PDH, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rollouts.states.last_BDH, last_BDH, atol=1e-4, rtol=1e-4)
    assert last_BDH.std() > 0.1  # and these are no zeros


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_a_fresh_forward_pass(family: str) -> None:
    model = make_model(family).eval()
    rollouts = sampled(model, tap_layers=[2, 1])
    lengths = {len(tokens) for tokens in rollouts.completion_ids}
    assert min(lengths) == 1 and len(lengths) > 3
    check_states(model, rollouts, [2, 1])


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("max_rows", [5, 14, 30])
def test_states_of_rows_that_begin_late_and_of_parts(
    share: bool, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("gemma3").eval()
    monkeypatch.setattr(sampling, "sharing_pays", lambda *_, **__: share)
    check_states(model, sampled(model, tap_layers=[1, 2], max_rows=max_rows), [1, 2])


def test_rows_that_end_between_two_looks_keep_the_state_of_their_own_last_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model().eval()
    monkeypatch.setattr(sampling, "retire", lambda rows, token_B: token_B)  # as before a look
    check_states(model, sampled(model, tap_layers=[2]), [2])


class StopSecond:
    """Stops rollout 1 after three tokens."""

    def ended(self, row: int, tokens: list[int]) -> None: ...

    def rows_to_stop(self, step: int) -> list[int]:
        return [1] if step == 2 else []


def test_a_stopped_rollout_has_the_state_that_drew_its_last_token() -> None:
    model = make_model(seed=1).eval()
    settings = SamplingSettings(max_new_tokens=8, eos_token_ids=(), pad_token_id=0)
    found = sample(model, PROMPTS[:1], 2, settings=settings, monitor=StopSecond(), tap_layers=[1])
    assert [len(tokens) for tokens in found.completion_ids] == [8, 3]
    texts = [PROMPTS[0] + tokens[:-1] for tokens in found.completion_ids]
    assert found.states is not None
    expected = states_at(model, texts, layers=[1])
    torch.testing.assert_close(found.states.last_BDH, expected, atol=1e-4, rtol=1e-4)


def test_tapping_changes_no_bit_and_costs_no_pass() -> None:
    model = make_model("qwen3").eval()
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    plain = sampled(model, return_log_probs=True)
    num_plain = len(passes)
    tapped = sampled(model, return_log_probs=True, tap_layers=[1, 2])
    assert plain.states is None and len(passes) == 2 * num_plain
    assert tapped.completion_ids == plain.completion_ids and tapped.log_probs == plain.log_probs
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_states_are_the_residual_stream_behind_a_layer() -> None:
    model = make_model("llama", num_hidden_layers=3).eval()
    with torch.no_grad():
        hidden = model(torch.tensor([PROMPTS[1]]), output_hidden_states=True).hidden_states
    found_KDH = states_at(model, [PROMPTS[1]], [[0, 4, -1]], layers=[2, 1])
    for place, column in enumerate((0, 4, 11)):
        for i, layer in enumerate((2, 1)):  # hidden_states[0] is before the first layer
            torch.testing.assert_close(found_KDH[place, i], hidden[layer][0, column])
    # The last layer's are not normed yet, which the model's own are.
    normed = model.model.norm(states_at(model, [PROMPTS[1]], layers=[3])[0, 0])
    torch.testing.assert_close(normed, hidden[3][0, -1], atol=1e-5, rtol=1e-5)


def test_a_model_with_adapters_and_the_modes_are_put_back() -> None:
    model = make_model("qwen3")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.train()
    check_states(adapted, sampled(adapted, tap_layers=[2]), [2])
    assert all(module.training for module in adapted.modules())


def test_batches_change_nothing_but_rounding_and_are_reported() -> None:
    model, done = make_model().eval(), []
    places = [[0, -1], [3], [1, 2, -1]]
    one = states_at(model, PROMPTS, places, layers=[1], batch_size=1, report=done.append)
    all_ = states_at(model, PROMPTS, places, layers=[1])
    assert one.shape == (6, 1, 32) and done == [1, 1, 1]
    torch.testing.assert_close(one, all_, atol=1e-5, rtol=1e-5)


def test_what_is_not_there_is_refused() -> None:
    model = make_model()
    for layers in ([], [0], [3], [1, -1]):
        with pytest.raises(ValueError, match="from 1 to 2, the number of the model's decoder"):
            states_at(model, PROMPTS, layers=layers)
    with pytest.raises(ValueError, match="without tokens"):
        states_at(model, [[1], []], layers=[1])
    with pytest.raises(IndexError):
        states_at(model, [[1, 2]], [[2]], layers=[1])
    with pytest.raises(ValueError, match="from 1 to 2"):
        sampled(model, tap_layers=[7])
    model.get_decoder().layers = None
    with (
        pytest.raises(ValueError, match="no list of decoder layers"),
        taking(model, [1], lambda states: states),
    ):
        pass
