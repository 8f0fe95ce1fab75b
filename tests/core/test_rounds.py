"""When a group sampled in rounds goes on: literal groups, brute force, and what stays unbiased."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from podsrl import select
from podsrl.core.rounds import contrast, decide, first_round

NAN = torch.nan


def state(rewards: list[float], **options: float) -> str:
    """What is decided of one group of m = 4, with 2 of the rarer reward, 8 rollouts at most."""
    settings = {"enough": 2, "give_up": 8, **options}
    settled, given_up = decide(torch.tensor([rewards], dtype=torch.float64), 4, **settings)
    assert not (settled & given_up).any()
    return "settled" if settled else "given up" if given_up else "open"


def test_the_rarer_reward_is_counted() -> None:
    assert state([0, 0, 1, 1]) == "settled"
    assert state([1, 1, 1, 0]) == "open" == state([0, 0, 0, 1])
    assert state([0, 0, 0, 0]) == "open"  # 4 of 8 rollouts: not given up yet
    assert state([0] * 8) == "given up" == state([1] * 8)
    assert state([0] * 7 + [1]) == "open"
    assert state([0] * 7 + [1], enough=1) == "settled"


def test_two_rewards_of_any_size_are_two_kinds() -> None:
    """Thirds are no binary fractions, and a mean of six of them is rounded."""
    for low, high in ((1 / 3, 2 / 3), (-0.7, 1.1), (0.1 + 0.2, 1e6)):
        for num_high in range(11):
            rarer = min(num_high, 10 - num_high)
            rewards = [high] * num_high + [low] * (10 - num_high)
            expected = "settled" if rarer >= 2 else "open" if rarer else "given up"
            assert state(rewards) == expected, (low, high, num_high)


def test_a_failed_grading_is_no_reward() -> None:
    assert state([0, 1, NAN, NAN, NAN]) == "open"  # two scored: m = 4 would keep a failed one
    assert state([0, 0, 1, 1, NAN]) == "settled"
    assert state([NAN] * 8) == "open" == state([0, 0, 0, *[NAN] * 5])
    assert state([0, 0, 0, 0, *[NAN] * 4]) == "given up"


def test_graded_rewards_count_as_the_kept_variance_says() -> None:
    # Kept 0, 0, 1, 1 of these: as two kinds. Kept 0, 0.5, 0.5, 1: 2 x 1/4 = 1/2 of at most 1.
    assert state([0, 0, 0.5, 0.5, 1, 1]) == "settled"
    assert state([0, 0.5, 0.5, 1]) == "open"
    # After 8: 1/2 is less than the 3/4 of a single rollout at the other end.
    assert state([0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1]) == "given up"
    assert state([0, 0.1, 0.5, 0.5, 0.5, 0.5, 0.9, 1]) == "open"  # 0.1 and 0.9 kept, too: 0.82


def test_small_differences_do_not_pass_for_two_kinds() -> None:
    """Format 0.1, answer 1: bounds 0 and 1.1, so a range below 0.55 counts as 0.55."""
    format_only, right = [0, 0.1] * 4, [0.1, 1.1] * 4
    assert state(format_only) == "settled"
    assert state(format_only, smallest_range=0.55) == "given up"  # 4 x 0.0025 / 0.3025 = 0.033
    assert state(right, smallest_range=0.55) == "settled"
    assert state([0.1] * 8, smallest_range=0.55) == "given up"


@pytest.mark.parametrize("num_kept", [2, 3, 4, 5])
def test_contrast_is_the_best_of_all_choices(num_kept: int) -> None:
    rewards_PS = torch.tensor(
        list(itertools.combinations_with_replacement([0.0, 0.3, 0.5, 1.2], 6)), dtype=torch.float64
    )
    for rewards, found in zip(rewards_PS.tolist(), contrast(rewards_PS, num_kept), strict=True):
        spread = max(rewards) - min(rewards)
        best = max(
            sum((r - sum(kept) / num_kept) ** 2 for r in kept)
            for kept in itertools.combinations(rewards, num_kept)
        )
        assert found == pytest.approx(best / spread**2 if spread else 0.0, abs=1e-12)


def test_contrast_of_two_kinds_is_that_of_two_samples() -> None:
    for num_right in range(17):
        rewards = torch.tensor([[1.0] * num_right + [0.0] * (16 - num_right)])
        rare = min(num_right, 16 - num_right, 4)
        assert contrast(rewards, 8).item() == pytest.approx(rare * (8 - rare) / 8)


def test_order_shift_and_scale_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards_PS = torch.randint(0, 4, (200, 12), generator=generator).double()
    before = decide(rewards_PS, 6, enough=2, give_up=12)
    assert 0 < before[0].sum() < 200
    order = torch.randperm(12, generator=generator)
    for changed in (rewards_PS[:, order], rewards_PS * 8 - 3, -rewards_PS):
        after = decide(changed, 6, enough=2, give_up=12)
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


@pytest.mark.parametrize("enough", [0, 3])
def test_more_than_half_is_refused(enough: int) -> None:
    with pytest.raises(ValueError, match=f"enough is {enough}, .* between 1 and 2"):
        decide(torch.zeros(1, 4), 4, enough=enough, give_up=4)


def test_the_first_round_has_m_rollouts_or_more() -> None:
    assert [first_round(m, r) for m, r in ((16, 8), (6, 4), (4, 8), (5, 1))] == [16, 8, 8, 5]


# What stays unbiased: a policy over four texts, two right and two wrong, all sequences of draws.
N, M, ROUND = 6, 2, 2
PROBABILITIES = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64)
IS_RIGHT = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
SCORES = torch.eye(4, dtype=torch.float64) - PROBABILITIES  # grad of log p(text) by the logits


def expected_update(stops: object) -> tuple[Tensor, Tensor]:
    """E of the mean of A g over the kept, exactly: all 4^6 sequences; and E S of the counts.

    stops: of texts (sequences, S) whether sampling ends after them.
    """
    texts_QN = torch.tensor(list(itertools.product(range(4), repeat=N)))
    chance_Q = PROBABILITIES[texts_QN].prod(1)
    total, signal = torch.zeros(4, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    is_open_Q = torch.ones(len(texts_QN), dtype=torch.bool)
    for num_sampled in range(ROUND, N + 1, ROUND):
        texts_QS = texts_QN[:, :num_sampled]
        ends_Q = is_open_Q if num_sampled == N else is_open_Q & stops(texts_QS)  # type: ignore[operator]
        is_open_Q = is_open_Q & ~ends_Q
        rewards_QS = IS_RIGHT[texts_QS][ends_Q]
        kept = rewards_QS.gather(1, select(rewards_QS, M))
        # Of equal rewards all are kept equally often: a kept right one is on average the mean of
        # the right ones. Kept are one of each kind, of advantages +1/2 and -1/2, or equal ones.
        lives_Q = kept[:, 0] != kept[:, 1]
        right_Q4, wrong_Q4 = (
            (SCORES[texts_QS][ends_Q] * (rewards_QS == kind).unsqueeze(2)).sum(1)
            / (rewards_QS == kind).sum(1, keepdim=True)
            for kind in (1.0, 0.0)
        )
        update_Q4 = (right_Q4 - wrong_Q4) / 2 / M
        weight_Q = chance_Q[ends_Q] * lives_Q
        total += (weight_Q.unsqueeze(1) * update_Q4).nan_to_num(nan=0.0).sum(0)
        signal += weight_Q.sum() / 2 / M
    return total, signal


def by_rewards(texts_QS: Tensor) -> Tensor:
    settled, given_up = decide(IS_RIGHT[texts_QS], M, enough=1, give_up=4)
    return settled | given_up


def grad_logit_p() -> Tensor:
    """E[g | right] - E[g | wrong]."""
    right, wrong = (
        (PROBABILITIES * kind) @ SCORES / (PROBABILITIES * kind).sum()
        for kind in (IS_RIGHT, 1 - IS_RIGHT)
    )
    return right - wrong


def test_the_expected_update_is_along_the_gradient_of_logit_p() -> None:
    update, signal = expected_update(by_rewards)
    # p = 0.2. All 2 equal and all 4 equal is given up: alive 1 - 0.2^4 - 0.8^4 = 0.5888.
    assert signal.item() == pytest.approx((1 - 0.2**4 - 0.8**4) / 4)
    assert torch.allclose(update, signal * grad_logit_p(), atol=1e-15)
    # Its size is another than that of n at once, 1 - 0.2^6 - 0.8^6: prompts weigh otherwise.
    full, full_signal = expected_update(lambda texts: torch.zeros(len(texts), dtype=torch.bool))
    assert full_signal.item() == pytest.approx((1 - 0.2**6 - 0.8**6) / 4)
    assert torch.allclose(full, full_signal * grad_logit_p(), atol=1e-15)


def test_a_rule_that_reads_the_texts_would_turn_it() -> None:
    """The proof can fail: this one stops as soon as one particular right text is there."""
    update, _ = expected_update(lambda texts_QS: (texts_QS == 1).any(1))
    cosine = torch.nn.functional.cosine_similarity(update, grad_logit_p(), dim=0)
    assert cosine < 0.9999


def test_the_mean_reward_is_not_unbiased_but_that_of_the_first_round_is() -> None:
    texts_QN = torch.tensor(list(itertools.product(range(4), repeat=N)))
    chance_Q, rewards_QN = PROBABILITIES[texts_QN].prod(1), IS_RIGHT[texts_QN]
    after_2, after_4 = (by_rewards(texts_QN[:, :size]) for size in (2, 4))
    size_Q = torch.where(after_2, 2, torch.where(after_4, 4, 6))
    first_Q = rewards_QN[:, :2].mean(1)
    all_Q = (rewards_QN * (torch.arange(N) < size_Q.unsqueeze(1))).sum(1) / size_Q
    assert (chance_Q @ first_Q).item() == pytest.approx(0.2)
    assert not math.isclose((chance_Q @ all_Q).item(), 0.2, rel_tol=0.01)
