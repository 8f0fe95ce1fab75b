"""Votes: which answer most rollouts of a prompt agree on, and how far they agree.

Answers are numbers here, equal numbers being equal answers, and a rollout without an answer has
`NO_VOTE`: it elects nobody and agrees with nobody, others without an answer included.

Shape letters: P prompts, N rollouts of each.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

NO_VOTE = -1

# Sums of the same weights in another order differ by less than this share of the largest.
_EQUAL = 1e-9


def numbered(answers_PN: Sequence[Sequence[Hashable | None]]) -> Tensor:
    """Numbers in place of answers, int64 (P, N): equal within a prompt where the answers are.

    A prompt's answers are numbered in the order in which they come first; None is `NO_VOTE`. Raises
    `ValueError` where prompts have different numbers of answers.

    Example: (("18", "7", None, "18"),) gives ((0, 1, -1, 0),).
    """
    if len({len(answers_N) for answers_N in answers_PN}) > 1:
        raise ValueError("prompts have different numbers of answers; pass (P, N) of them.")
    rows = []
    for answers_N in answers_PN:
        known: dict[Hashable, int] = {}
        rows.append(
            [NO_VOTE if each is None else known.setdefault(each, len(known)) for each in answers_N]
        )
    return torch.tensor(rows, dtype=torch.int64)


def agreement(votes_PN: Tensor) -> Tensor:
    """How many rollouts of the prompt have the same answer, itself included, int64 (P, N).

    0 for a rollout without an answer.

    Example: votes (0, 1, -1, 0) give (2, 1, 0, 2).
    """
    return _same(votes_PN).sum(dim=2)


def largest_share(votes_PN: Tensor) -> Tensor:
    """Share of a prompt's rollouts that gave its commonest answer, float64 (P,).

    Of all N, those without an answer included; 0 where nobody has one.

    Example: votes (0, 1, -1, 0) give 1/2, (-1, -1, -1, -1) give 0.
    """
    return agreement(votes_PN).amax(dim=1).double() / votes_PN.shape[1]


def majority_rewards(votes_PN: Tensor, *, gate: float) -> Tensor:
    """1 for rollouts with their prompt's commonest answer and 0 for the others, float64 (P, N).

    NaN for all rollouts of a prompt of which fewer than the share `gate` of all N give that answer,
    and where nobody has one. The labels of RLP's selective pseudo-preferences (arXiv 2403.19279) as
    rewards.

    gate: 0 gives every prompt its rewards in which anybody has an answer, above 1 none.

    Edge cases: answers that are equally common are all rewarded, so that no order of the rollouts
    decides; unanimous rollouts all have 1, and all with different answers, too.

    Example: votes (0, 0, 1, -1) give (1, 1, 0, 0) at a gate of 1/2 and NaN at 3/4; (0, 0, 1, 1)
    give (1, 1, 1, 1).
    """
    agree_PN = agreement(votes_PN)
    rewards_PN = (agree_PN == agree_PN.amax(dim=1, keepdim=True)).double()
    share_P = largest_share(votes_PN)
    has_majority_P = (share_P > 0) & (share_P >= gate)
    return rewards_PN.masked_fill(~has_majority_P[:, None], torch.nan)


def majority(votes_PN: Tensor, weights_PN: Tensor | None = None) -> Tensor:
    """Place of the first rollout with the answer that the most weight is on, int64 (P,).

    Of answers with equal weight the one that comes first wins. -1 where nobody has an answer.

    Args:
        votes_PN: int64, `NO_VOTE` for none.
        weights_PN: of each vote, at least 0; None counts all alike.

    Raises `ValueError` for weights of another shape.

    Example: votes (0, 1, 1, 2) elect place 1; with weights (3, 1, 1, 1) place 0; (0, 1, 1, 0) are a
    tie, and place 0 came first.
    """
    if weights_PN is None:
        weights_PN = torch.ones_like(votes_PN)
    if weights_PN.shape != votes_PN.shape:
        raise ValueError(
            f"votes have shape {tuple(votes_PN.shape)} and weights {tuple(weights_PN.shape)}; pass "
            "(P, N) twice."
        )
    total_PN = (_same(votes_PN) * weights_PN.double()[:, None, :]).sum(dim=2)
    has_vote_PN = votes_PN != NO_VOTE
    total_PN = total_PN.masked_fill(~has_vote_PN, -torch.inf)
    most_P1 = total_PN.amax(dim=1, keepdim=True)
    wins_PN = has_vote_PN & (total_PN >= most_P1 - _EQUAL * most_P1.abs())
    # argmax of equal values is any of them; counted down, the first is the largest.
    place_N = torch.arange(votes_PN.shape[1], 0, -1, device=votes_PN.device)
    first_P = (wins_PN * place_N).argmax(dim=1)
    return first_P.masked_fill(~has_vote_PN.any(dim=1), NO_VOTE)


def consistency(votes_PN: Tensor) -> Tensor:
    """How much one prompt's N rollouts agree, between 1/N and 1, float64 (P,).

    1/N + (1 - 1/N) (1 - H / log D), H the entropy of the shares of the D different answers, a
    missing one being different from all; 1 where D is 1 (ModelSwitch, arXiv 2504.00762, the weight
    of a model's votes). Answers that are equally common give 1/N, however few they are.

    Example: votes (0, 0, 0, 0) give 1, (0, 1, 2, 3) and (0, 0, 1, 1) give 1/4; (0, 0, 0, 1):
    H = 0.8113 bits of log 2 = 1, so 1/4 + 3/4 x 0.1887 = 0.3915.
    """
    num = votes_PN.shape[1]
    count_PN = agreement(votes_PN).clamp(min=1).double()
    # A sum over rollouts of f(count) / count is one over the different answers of f(count).
    num_different_P = (1 / count_PN).sum(dim=1)
    entropy_P = -(count_PN / num).log().sum(dim=1) / num
    spread_P = entropy_P / num_different_P.clamp(min=1.5).log()  # 0 / log 1 is 0 here
    return 1 / num + (1 - 1 / num) * (1 - spread_P)


def _same(votes_PN: Tensor) -> Tensor:
    """Whether two rollouts of a prompt gave the same answer, bool (P, N, N)."""
    has_vote_PN = votes_PN != NO_VOTE
    return (votes_PN[:, :, None] == votes_PN[:, None, :]) & has_vote_PN[:, :, None]
