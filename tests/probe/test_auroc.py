"""Areas under the ROC curve by hand and by counting pairs, and intervals over prompts."""

import itertools

import numpy as np
import pytest

from podsrl.probe.auroc import Items, auroc, auroc_within, draws, interval


def by_pairs(items: Items, scores_K: np.ndarray, *, within: bool = False) -> float:
    """The definition: over all pairs of a right and a wrong rollout."""
    above = total = 0.0
    for i, j in itertools.product(range(len(scores_K)), repeat=2):
        if within and (items.prompt_K[i] != items.prompt_K[j]):
            continue
        weight = items.right_K[i] * items.wrong_K[j]
        total += weight
        above += weight * ((scores_K[i] > scores_K[j]) + (scores_K[i] == scores_K[j]) / 2)
    return above / total if total else 0.5


def test_four_rollouts_by_hand() -> None:
    items = Items.of_rollouts([0, 1, 2, 3], [False, True, False, True])
    # Pairs (right, wrong): (2, 1), (2, 2), (3, 1), (3, 2): 1 + 1/2 + 1 + 1 of 4.
    assert auroc(items, np.array([1.0, 2.0, 2.0, 3.0])).tolist() == [0.875]
    assert auroc(items, np.array([3.0, 2.0, 2.0, 1.0])).tolist() == [0.125]
    assert auroc(items, np.zeros(4)).tolist() == [0.5]


def test_prompts_with_rates_are_their_rollouts() -> None:
    # Prompt 0: 1 of 4 right, prompt 1: 2 of 4. Over all pairs of rollouts of equal score halves.
    prompts = Items.of_prompts([0.25, 0.5])
    rollouts = Items.of_rollouts(
        [0] * 4 + [1] * 4, [True] + [False] * 3 + [True, True] + [False] * 2
    )
    scores_P = np.array([0.3, 0.9])
    # Right (1 at .3, 2 at .9), wrong (3 at .3, 2 at .9): 3/2 + 2 x 3 + 4/2 = 9.5 of 15.
    assert auroc(prompts, scores_P)[0] == pytest.approx(9.5 / 15)
    assert auroc(rollouts, scores_P[rollouts.prompt_K])[0] == pytest.approx(9.5 / 15)


def test_every_prompt_weighs_the_same() -> None:
    # Prompt 0 with 2 rollouts, prompt 1 with 4, which weigh a half and a quarter each.
    items = Items.of_rollouts([5, 5, 9, 9, 9, 9], [True, False, True, True, False, False])
    assert items.right_K.tolist() == [0.5, 0, 0.25, 0.25, 0, 0] and items.num_prompts == 2
    assert (items.right_K + items.wrong_K).sum() == 2


@pytest.mark.parametrize("seed", range(5))
def test_against_counting_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prompt_K = generator.integers(0, 6, size=40)
    items = Items.of_rollouts(prompt_K.tolist(), (generator.random(40) < 0.4).tolist())
    scores_K = generator.integers(0, 5, size=40) / 4  # many ties
    assert auroc(items, scores_K)[0] == pytest.approx(by_pairs(items, scores_K))
    assert auroc_within(items, scores_K)[0] == pytest.approx(by_pairs(items, scores_K, within=True))
    # A draw that takes prompt 0 twice and leaves 1 out is those items twice and not at all.
    weights_P = np.array([2.0, 0, 1, 1, 1, 1])
    drawn = Items(
        items.prompt_K,
        items.right_K * weights_P[items.prompt_K],
        items.wrong_K * weights_P[items.prompt_K],
    )
    assert auroc(items, scores_K, weights_P[None])[0] == pytest.approx(by_pairs(drawn, scores_K))
    # Scores count by their order alone.
    assert auroc(items, np.exp(scores_K)) == pytest.approx(auroc(items, scores_K))


def test_within_a_prompt_its_level_does_not_count() -> None:
    # Prompt 1 scores 10 higher and is mostly right: over all pairs that is a good score, within
    # prompts the wrong one stands above the right one in both.
    items = Items.of_rollouts([0, 0, 1, 1], [False, True, True, False])
    scores_K = np.array([1.0, 0.0, 10.0, 11.0])
    assert auroc(items, scores_K)[0] == 0.5 * 0.5  # (0, 1), (0, 11), (10, 1), (10, 11): 1 of 4
    assert auroc_within(items, scores_K)[0] == 0.0
    assert auroc_within(items, np.array([0.0, 1.0, 11.0, 10.0]))[0] == 1.0
    # One rollout a prompt has no pair, a prompt's share of right ones neither: chance.
    assert auroc_within(Items.of_prompts([0.5, 0.2]), np.array([1.0, 0.0]))[0] == 0.5


def test_a_draw_without_both_kinds_is_chance() -> None:
    items = Items.of_prompts([1.0, 0.0, 0.0])
    scores_K = np.array([2.0, 1.0, 0.0])
    found = auroc(items, scores_K, np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1]]))
    assert found.tolist() == [1.0, 0.5, 0.5]


def test_draws_and_their_interval() -> None:
    drawn_DP = draws(7, seed=3, num_draws=50)
    assert drawn_DP.shape == (50, 7) and (drawn_DP.sum(1) == 7).all()
    assert (drawn_DP == draws(7, seed=3, num_draws=50)).all()
    # 0, 1, ..., 40: the 2.5 % quantile is 1, the 97.5 % quantile 39.
    assert interval(20.0, np.arange(41.0)) == {"value": 20.0, "low": 1.0, "high": 39.0}
