"""Fitting and measuring a head: closed cases, no leak between prompts, refusals."""

import numpy as np
import pytest

from podsrl.probe import fit as fit_module
from podsrl.probe.auroc import Items
from podsrl.probe.fit import Fitted, choose, fit, log_loss, of
from podsrl.probe.measure import measure
from podsrl.probe.trivial import trivial_features


def test_a_constant_feature_gives_the_mean() -> None:
    items = Items.of_prompts([1.0, 0.5, 0.5, 1.0])  # 3 of 4 right
    fitted = fit(np.full((4, 1), 7.0), items, 1.0)
    assert fitted.weight_H.tolist() == [0.0] and fitted.bias == pytest.approx(np.log(3), abs=2e-3)
    # Its log-loss is the entropy of 3/4: .5623.
    assert log_loss(fitted, np.full((4, 1), 7.0), items) == pytest.approx(0.5623, abs=1e-4)


def test_a_weak_penalty_finds_the_log_odds_of_two_groups() -> None:
    features_K1 = np.repeat([[0.0], [2.0]], 500, axis=0)
    items = Items.of_prompts([0.25] * 500 + [0.5] * 500)
    fitted = fit(features_K1, items, 1.0)
    # -log 3 at 0 and 0 at 2: bias -1.0986, weight .5493; the penalty takes some thousandths.
    assert fitted.bias == pytest.approx(-np.log(3), abs=0.01)
    assert fitted.weight_H[0] == pytest.approx(np.log(3) / 2, abs=0.01)


def test_scale_and_shift_of_features_change_no_prediction() -> None:
    generator = np.random.default_rng(0)
    features_KH = generator.normal(size=(60, 3))
    items = Items.of_prompts(generator.random(60).tolist())
    other_KH = features_KH * [100, 1e-3, 1] + [5, -7, 1000]
    one, other = fit(features_KH, items, 0.1), fit(other_KH, items, 0.1)
    assert one.log_odds(features_KH) == pytest.approx(other.log_odds(other_KH), abs=1e-3)


def test_rollouts_and_their_share_fit_alike() -> None:
    generator = np.random.default_rng(1)
    features_P1 = generator.normal(size=(12, 1))
    rights = generator.integers(0, 5, size=12)
    prompts = Items.of_prompts((rights / 4).tolist())
    rollouts = Items.of_rollouts(
        np.repeat(np.arange(12), 4).tolist(), [i < right for right in rights for i in range(4)]
    )
    one, other = fit(features_P1, prompts, 1.0), fit(np.repeat(features_P1, 4, 0), rollouts, 1.0)
    assert one.weight_H == pytest.approx(other.weight_H, abs=1e-4)
    assert one.bias == pytest.approx(other.bias, abs=1e-4)


def known(num_prompts: int, *, seed: int, signal: float = 3.0) -> tuple[np.ndarray, Items]:
    """Two layers of four features; the second layer's first says how likely success is."""
    generator = np.random.default_rng(seed)
    features_KDH = generator.normal(size=(num_prompts, 2, 4))
    rates = 1 / (1 + np.exp(-signal * features_KDH[:, 1, 0]))
    return features_KDH, Items.of_prompts((generator.binomial(8, rates) / 8).tolist())


def test_the_layer_that_knows_is_chosen() -> None:
    features_KDH, items = known(80, seed=2)
    choice = choose(features_KDH, items, seed=0)
    assert choice.places == [1] and choice.losses_D[1] < choice.losses_D[0] - 0.1
    assert isinstance(choice.fitted, Fitted)
    direction_H = choice.fitted.weight_H / np.abs(choice.fitted.weight_H).max()
    assert direction_H[0] == 1 and np.abs(direction_H[1:]).max() < 0.3


def trivial_of(features_KDH: np.ndarray) -> list[dict[str, float]]:
    """A feature that knows nothing, its opposite, and a constant one."""
    values = features_KDH[:, 0, 0].tolist()
    return [{"noise": x, "minus": -x, "constant": 3.0} for x in values]


def test_a_signal_is_found_and_stands_above_what_is_trivial() -> None:
    features_KDH, items = known(120, seed=4)
    found = measure(features_KDH, items, trivial_of(features_KDH), seed=1)
    figures = found.figures
    assert (figures["num_prompts_fitted"], figures["num_prompts_held_out"]) == (80, 40)
    assert figures["low"] > 0.6 and figures["auroc"] > 0.75 and "within" not in figures
    assert figures["log_loss"] < figures["log_loss_constant"] - 0.1
    assert set(figures["trivial"]) == {"noise", "minus"}
    # With the sign that the other prompts give, a feature and its opposite say the same.
    noise, minus = figures["trivial"]["noise"], figures["trivial"]["minus"]
    assert noise["value"] == minus["value"] and noise["sign"] == -minus["sign"]
    difference = figures["auroc"] - figures["together"]["value"]
    assert figures["minus_together"]["value"] == pytest.approx(difference, abs=2e-4)
    assert figures["minus_together"]["low"] > 0


def test_what_cannot_be_predicted_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-two splits of pure noise: few intervals lie above chance, and none by a leak."""
    monkeypatch.setattr(fit_module, "STRENGTHS", (1e-2,))  # one, to be quick
    above, values = 0, []
    for seed in range(22):
        generator = np.random.default_rng(seed)
        # Three rollouts of a prompt have one and the same state, and labels of their own.
        features_KDH = np.repeat(generator.normal(size=(90, 1, 30)), 3, axis=0)
        labels = np.repeat(generator.random(90) < 0.4, 3)
        items = Items.of_rollouts(np.repeat(np.arange(90), 3).tolist(), labels.tolist())
        found = measure(features_KDH, items, [{"none": 0.0}] * 270, seed=seed).figures
        above += found["low"] > 0.5
        values.append(found["auroc"])
    # A leak of rollouts into their own prompts' fit would give nearly 1 each time. By chance 2.5 %
    # of the intervals lie above .5: 4 or more of 22 has a chance of .2 %.
    assert above <= 3 and abs(np.mean(values) - 0.5) < 0.05


def test_too_little_is_refused() -> None:
    features_KDH, _ = known(100, seed=0)
    nothing = [{"none": 0.0}] * 100
    with pytest.raises(ValueError, match="only 4 of the 100 prompts have a right rollout"):
        measure(features_KDH, Items.of_prompts([1.0] * 4 + [0.0] * 96), nothing, seed=0)
    with pytest.raises(ValueError, match="only 0 of the 100 prompts have a wrong rollout"):
        measure(features_KDH, Items.of_prompts([1.0] * 100), nothing, seed=0)
    with pytest.raises(ValueError, match=r"0\.1 of 100 prompts are 10 held out.*takes 20"):
        measure(features_KDH, Items.of_prompts([0.5] * 100), nothing, seed=0, frac_held_out=0.1)


def test_chosen_items_are_numbered_anew() -> None:
    items = Items.of_rollouts([0, 0, 1, 2], [True, False, True, False])
    chosen = of(items, np.array([True, True, False, True]))
    assert chosen.prompt_K.tolist() == [0, 0, 1] and chosen.wrong_K.tolist() == [0, 0.5, 1]


def test_trivial_features_by_hand() -> None:
    found = trivial_features("What is 3 + 41?", num_tokens=9)
    assert found == {
        "prompt tokens": 9,
        "characters": 15,
        "words": 5,
        "digits": 3,
        "operators": 1,
        "numbers": 2,
        "mean of the numbers": 22,
        "largest number": 41,
        "first number": 3,
        "last number": 41,
    }
    assert trivial_features("Why?", num_tokens=2)["largest number"] == 0
