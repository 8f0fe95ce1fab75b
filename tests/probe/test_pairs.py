"""Heads fitted on pairs: closed cases, the logistic regression they are, the gate, refusals."""

import numpy as np
import pytest
import torch

from helpers.heads import about
from podsrl.probe.auroc import Items, auroc_within
from podsrl.probe.fit import Scorer
from podsrl.probe.head import Head, load_head, save_head
from podsrl.probe.measure import measure
from podsrl.probe.pairs import Gated, fit_gated, fit_pairs, head_of, pair_loss, pairs_of


def test_pairs_by_hand() -> None:
    items = Items.of_rollouts([0, 0, 0, 1, 2, 2], [True, False, False, True, False, True])
    pairs = pairs_of(items)
    assert pairs.right_C.tolist() == [0, 0, 5] and pairs.wrong_C.tolist() == [1, 2, 4]
    assert pairs.weight_C.tolist() == [0.5, 0.5, 1.0]


def two_of_three(num: int = 600) -> tuple[np.ndarray, Items]:
    """The right one of two rollouts has the larger feature in two of three prompts."""
    prompts = np.repeat(np.arange(num), 2)
    higher_first = np.arange(num) % 3 > 0
    features_K1 = np.stack([higher_first, ~higher_first], 1).reshape(-1, 1).astype(float)
    return features_K1, Items.of_rollouts(prompts.tolist(), [True, False] * num)


def test_the_weight_is_the_log_odds_of_winning() -> None:
    features_K1, items = two_of_three()
    fitted = fit_pairs(features_K1, items, 1.0)
    # The feature is 1 higher in the right one of two in three pairs: log(2/3 / 1/3) = log 2.
    assert fitted.weight_H[0] == pytest.approx(np.log(2), abs=0.01)
    # 2/3 log(3/2) + 1/3 log 3 = .6365.
    assert pair_loss(fitted, features_K1, items) == pytest.approx(0.6365, abs=1e-4)
    assert np.mean(fitted.log_odds(features_K1)) == pytest.approx(0, abs=1e-9)
    constant = fit_pairs(np.ones((1200, 1)), items, 1.0)
    assert constant.weight_H.tolist() == [0]
    assert pair_loss(constant, np.ones((1200, 1)), items) == pytest.approx(np.log(2))


def some_pairs(num_prompts: int = 30, *, seed: int = 0) -> tuple[np.ndarray, Items]:
    generator = np.random.default_rng(seed)
    features_KH = generator.normal(size=(num_prompts * 4, 3))
    is_right_K = features_KH[:, 0] + generator.normal(size=num_prompts * 4) > 0
    prompts_K = np.repeat(np.arange(num_prompts), 4)
    return features_KH, Items.of_rollouts(prompts_K.tolist(), is_right_K.tolist())


def test_it_is_logistic_regression_on_differences() -> None:
    from sklearn.linear_model import LogisticRegression

    features_KH, items = some_pairs()
    pairs, std_H = pairs_of(items), features_KH.std(0)
    differences_CH = (features_KH[pairs.right_C] - features_KH[pairs.wrong_C]) / std_H
    # Each pair once, every second turned round: which row comes first is of no effect.
    sign_C = np.where(np.arange(len(differences_CH)) % 2, 1, -1)
    model = LogisticRegression(C=0.1, fit_intercept=False, tol=1e-8, max_iter=1000)
    model.fit(differences_CH * sign_C[:, None], sign_C, sample_weight=pairs.weight_C)
    fitted = fit_pairs(features_KH, items, 0.1)
    assert fitted.weight_H == pytest.approx(model.coef_[0] / std_H, abs=1e-3)


def test_the_order_of_rollouts_and_what_all_of_a_prompt_share_change_nothing() -> None:
    features_KH, items = some_pairs()
    order_K = np.random.default_rng(1).permutation(len(features_KH))
    turned = Items(items.prompt_K[order_K], items.right_K[order_K], items.wrong_K[order_K])
    one, other = (
        fit_pairs(features_KH, items, 0.1),
        fit_pairs(features_KH[order_K], turned, 0.1),
    )
    assert one.weight_H == pytest.approx(other.weight_H, abs=1e-3)
    # Right and wrong exchanged is the opposite head.
    opposite = fit_pairs(features_KH, Items(items.prompt_K, items.wrong_K, items.right_K), 0.1)
    assert opposite.weight_H == pytest.approx(-one.weight_H, abs=1e-3)
    # How hard a question is, a feature that is the same for all its rollouts, has weight 0.
    level_K1 = np.random.default_rng(2).normal(size=30)[items.prompt_K][:, None]
    with_level = fit_pairs(np.concatenate([features_KH, level_K1], 1), items, 0.1)
    assert with_level.weight_H == pytest.approx([*one.weight_H, 0], abs=1e-3)


def layered(*, seed: int = 0, num_prompts: int = 120) -> tuple[np.ndarray, Items]:
    """Three layers of four features; the second's first says which of four rollouts are right."""
    generator = np.random.default_rng(seed)
    features_KDH = generator.normal(size=(num_prompts * 4, 3, 4))
    odds_K = 3 * features_KDH[:, 1, 0]
    is_right_K = generator.random(num_prompts * 4) < 1 / (1 + np.exp(-odds_K))
    prompts_K = np.repeat(np.arange(num_prompts), 4)
    return features_KDH, Items.of_rollouts(prompts_K.tolist(), is_right_K.tolist())


def test_the_gate_finds_the_layer_that_knows() -> None:
    features_KDH, items = layered()
    fitted = fit_gated(features_KDH, items, 0.1)
    norm_D = np.linalg.norm(fitted.weight_DH, axis=1)
    assert norm_D[1] > 3 * max(norm_D[0], norm_D[2])
    fresh_KDH, fresh = layered(seed=1)
    gated = float(auroc_within(fresh, fitted.log_odds(fresh_KDH))[0])
    others = [fit_pairs(features_KDH[:, i], items, 0.1) for i in range(3)]
    alone = [
        float(auroc_within(fresh, each.log_odds(fresh_KDH[:, i]))[0])
        for i, each in enumerate(others)
    ]
    # Nearly as good as a head of that layer alone, which need not be told from the others.
    assert gated > alone[1] - 0.05 > max(alone[0], alone[2]) + 0.2
    assert float(np.abs(fitted.gate_DD).max()) > 0.01
    again = fit_gated(features_KDH, items, 0.1)
    assert np.array_equal(again.weight_DH, fitted.weight_DH)


def test_a_gate_of_zero_is_half_the_sum_of_the_layers() -> None:
    weight_DH = np.array([[1.0, 0.0], [0.0, 2.0]])
    gated = Gated(weight_DH, np.array([0.5, -1.0]), np.zeros((2, 2)))
    features_KDH = np.array([[[1.0, 9.0], [9.0, 3.0]]])
    # s = (1 + .5, 6 - 1) = (1.5, 5): half of 6.5.
    assert gated.log_odds(features_KDH).tolist() == [3.25]
    open_one = Gated(weight_DH, np.array([0.5, -1.0]), np.array([[100.0, 0.0], [-100.0, 0.0]]))
    assert open_one.log_odds(features_KDH) == pytest.approx([1.5])  # gates 1 and 0


def test_a_fitted_gate_is_the_head_that_is_written_and_read(tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    features_KDH, items = layered(num_prompts=40)
    fitted: Scorer = fit_gated(features_KDH, items, 0.1)
    head = head_of(fitted, about(kind="gated", layers=[1, 2, 4]))
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_head(path, head)
    found = load_head(path)
    states = torch.from_numpy(features_KDH).float()
    expected = torch.from_numpy(fitted.log_odds(features_KDH)).float()
    torch.testing.assert_close(found.log_odds(states), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.score(states[:2]), expected[:2].sigmoid(), atol=1e-4, rtol=0)
    assert found.of_layers(states) is states and found.about.layers == [1, 2, 4]
    with pytest.raises(ValueError, match=r"states have 1 x 4 numbers.* reads 3 x 4: .* 1, 2, 4 of"):
        found.log_odds(states[:, :1])
    assert isinstance(head, Head) and head.to("cpu").score(states).shape == (160,)


@pytest.mark.parametrize("kind", ["bradley_terry", "gated"])
def test_a_kind_of_pairs_is_held_to_pairs_of_one_prompt(kind: str) -> None:
    features_KDH, items = layered(num_prompts=60)
    easy_K = np.random.default_rng(3).normal(size=60)[items.prompt_K]
    told = [{"level": level, "noise": float(i % 7)} for i, level in enumerate(easy_K)]
    figures = measure(features_KDH[:, :2], items, told, seed=0, kind=kind).figures
    assert figures["within"] == {k: figures[k] for k in ("low", "high")} | {
        "value": figures["auroc"]
    }
    assert figures["low"] > 0.6 and figures["log_loss"] < figures["log_loss_constant"] == 0.6931
    assert set(figures["trivial"]) == {"noise"}
    noise = measure(
        np.random.default_rng(1).normal(size=(240, 2, 4)), items, told, seed=0, kind=kind
    )
    assert noise.figures["low"] <= 0.5  # and is so refused wherever heads are written or read


def test_too_few_prompts_with_both_are_told() -> None:
    items = Items.of_rollouts(
        np.repeat(np.arange(60), 2).tolist(), [True, True] * 28 + [True, False] * 4 + [False] * 56
    )
    with pytest.raises(
        ValueError, match=r"only \d of the \d+ prompts have both a right and a wrong"
    ):
        measure(np.zeros((120, 1, 2)), items, [{"none": 0.0}] * 120, seed=0, kind="bradley_terry")
