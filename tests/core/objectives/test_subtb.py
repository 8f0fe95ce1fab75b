"""Sub-trajectory balance on trees that are small enough to be listed."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from podsrl.core.objectives.balance import subtb
from podsrl.core.objectives.batch import KeptBatch
from podsrl.core.objectives.regression import vargrad

V, BETA = 3, 0.5
# Every answer of at most two of three tokens: 1 + 3 + 9.
ANSWERS = [each for size in range(3) for each in itertools.product(range(V), repeat=size)]


def drawn(number: int, seed: int) -> list[float]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(number, generator=random, dtype=torch.float64).tolist()


class Policy:
    """A policy over the answers, from the weight of each: q(next | s) = flow(s next) / flow(s)."""

    def __init__(self, log_weights: Tensor) -> None:
        self.log_weight = dict(zip(ANSWERS, log_weights, strict=True))
        self.flow = {
            answer: torch.stack(
                [self.log_weight[each] for each in ANSWERS if each[: len(answer)] == answer]
            ).logsumexp(0)
            for answer in ANSWERS
        }

    def rows(self) -> tuple[Tensor, Tensor]:
        """Log-probs of each answer's tokens, its end last, and of an end in their place."""
        tokens, ends = [], []
        for answer in ANSWERS:
            prefixes = [answer[:t] for t in range(len(answer) + 1)]
            steps = [self.flow[b] - self.flow[a] for a, b in itertools.pairwise(prefixes)]
            end = [self.log_weight[each] - self.flow[each] for each in prefixes]
            padding = [torch.zeros((), dtype=torch.float64)] * (3 - len(prefixes))
            tokens.append(torch.stack([*steps, end[-1], *padding]))
            ends.append(torch.stack([*end, *padding]))
        return torch.stack(tokens), torch.stack(ends)


def batch_of(policy: Policy, reference: Policy, rewards: dict[Any, float]) -> KeptBatch:
    """One row for each answer."""
    (log_probs_BT, ends_BT), (reference_BT, reference_ends_BT) = policy.rows(), reference.rows()
    prefix_rewards_BT = torch.tensor(
        [
            [rewards[answer[:t]] if t <= len(answer) else math.nan for t in range(3)]
            for answer in ANSWERS
        ],
        dtype=torch.float64,
    )
    return KeptBatch(
        log_probs_BT=log_probs_BT,
        old_log_probs_BT=log_probs_BT.detach(),
        mask_BT=torch.tensor([[int(t <= len(answer)) for t in range(3)] for answer in ANSWERS]),
        rewards_B=torch.tensor([rewards[answer] for answer in ANSWERS], dtype=torch.float64),
        advantages_B=torch.zeros(len(ANSWERS), dtype=torch.float64),
        group_B=torch.zeros(len(ANSWERS), dtype=torch.long),
        reference_log_probs_BT=reference_BT.detach(),
        extras={
            "end_log_probs": ends_BT,
            "reference_end_log_probs": reference_ends_BT.detach(),
            "prefix_rewards": prefix_rewards_BT,
        },
    )


def loss_of(batch: KeptBatch, subtb_lambda: float = 1.0) -> Tensor:
    return subtb(batch, beta=BETA, subtb_lambda=subtb_lambda)[0]


REFERENCE = Policy(torch.tensor(drawn(len(ANSWERS), 1), dtype=torch.float64))
REWARDS = dict(zip(ANSWERS, drawn(len(ANSWERS), 2), strict=True))
# log R = log pi_ref + r / beta; the flow of the empty answer is log Z.
LOG_R = torch.stack(
    [REFERENCE.log_weight[each] - REFERENCE.flow[()] + REWARDS[each] / BETA for each in ANSWERS]
)


@pytest.mark.parametrize("subtb_lambda", [0.5, 1.0, 3.0])
def test_zero_at_a_policy_proportional_to_r_and_there_alone(subtb_lambda: float) -> None:
    right = batch_of(Policy(LOG_R), REFERENCE, REWARDS)
    assert loss_of(right, subtb_lambda).item() < 1e-28
    for place in range(len(ANSWERS)):
        other = LOG_R.clone()
        other[place] += 0.1
        assert loss_of(batch_of(Policy(other), REFERENCE, REWARDS), subtb_lambda).item() > 1e-5


def test_descent_finds_that_policy() -> None:
    log_weights = torch.zeros(len(ANSWERS), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_weights], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(batch_of(Policy(log_weights), REFERENCE, REWARDS)).backward()
        optimizer.step()
    found, expected = log_weights.detach().softmax(0), LOG_R.softmax(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_zero_at_the_reference_without_rewards() -> None:
    none = dict.fromkeys(ANSWERS, 0.0)
    assert loss_of(batch_of(REFERENCE, REFERENCE, none)).item() < 1e-28
    assert loss_of(batch_of(REFERENCE, REFERENCE, REWARDS)).item() > 0.1


def test_the_longest_span_alone_is_trajectory_balance_with_a_known_z() -> None:
    """(log Z + lr - r / beta)^2 with log Z = -c_0; vargrad has the group's mean in its place."""
    policy = Policy(torch.tensor(drawn(len(ANSWERS), 3), dtype=torch.float64))
    batch = batch_of(policy, REFERENCE, REWARDS)
    log_z = REWARDS[()] / BETA - (
        policy.log_weight[()] - policy.flow[()] - REFERENCE.log_weight[()] + REFERENCE.flow[()]
    )
    u_B = batch.rewards_B / BETA - batch.log_ratio_B()
    expected = (log_z - u_B).square().mean()
    torch.testing.assert_close(loss_of(batch, 1e9), expected, rtol=1e-6, atol=0)
    # With the group's own mean for log Z, and 12 for 13 rows, it would be vargrad's.
    variance = (u_B.mean() - u_B).square().sum() / (len(ANSWERS) - 1)
    torch.testing.assert_close(vargrad(batch, beta=BETA)[0], variance)


def by_hand(c: list[float], rewards: list[float] | None = None) -> dict[str, Any]:
    """A row whose prefixes have this c at beta 1: their end tokens carry it."""
    zero_BT = torch.zeros(1, len(c), dtype=torch.float64)
    return {
        "log_probs_BT": zero_BT.clone().requires_grad_(),
        "old_log_probs_BT": zero_BT,
        "mask_BT": torch.ones(1, len(c), dtype=torch.long),
        "rewards_B": torch.ones(1, dtype=torch.float64),
        "advantages_B": torch.zeros(1, dtype=torch.float64),
        "group_B": torch.zeros(1, dtype=torch.long),
        "reference_log_probs_BT": zero_BT,
        "extras": {
            "end_log_probs": torch.tensor([c], dtype=torch.float64),
            "reference_end_log_probs": zero_BT,
            "prefix_rewards": torch.tensor([rewards or [0.0] * len(c)], dtype=torch.float64),
        },
    }


@pytest.mark.parametrize(
    ("c", "rewards", "subtb_lambda", "expected"),
    [
        ([0.0, 1.0, 3.0], None, 1.0, 14 / 3),
        ([0.0, 1.0, 3.0], None, 0.5, 3.8),
        ([0.0, 1.0, 3.0], [0.0, 1.0, 1.0], 1.0, 8 / 3),  # c is (0, 0, 2): 0, 4, 4
        ([0.0, 7.0, 3.0], [0.0, math.nan, 0.0], 1.0, 9.0),  # one pair is left
        ([5.0], None, 1.0, 0.0),
        ([5.0, 1.0], [math.nan, 0.0], 1.0, 0.0),
    ],
)
def test_by_hand(
    c: list[float], rewards: list[float] | None, subtb_lambda: float, expected: float
) -> None:
    batch = KeptBatch(**by_hand(c, rewards))
    loss, _ = subtb(batch, beta=1.0, subtb_lambda=subtb_lambda)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert batch.log_probs_BT.grad is not None and batch.log_probs_BT.grad.isfinite().all()


def test_padding_and_a_row_without_reward_add_nothing() -> None:
    one, two = by_hand([0.0, 1.0, 3.0]), by_hand([9.0, 9.0, 9.0])
    both: dict[str, Any] = {
        name: {key: torch.cat([each, two["extras"][key]]) for key, each in value.items()}
        if name == "extras"
        else torch.cat([value, two[name]])
        for name, value in one.items()
    }
    both["mask_BT"][0, 2] = 0  # c = (0, 1) is left
    both["rewards_B"][1] = math.nan
    loss, metrics = subtb(KeptBatch(**both, num_rows=1), beta=1.0, subtb_lambda=1.0)
    assert loss.item() == pytest.approx(1.0)
    assert metrics["prefix_variance"].item() == pytest.approx(0.5)
