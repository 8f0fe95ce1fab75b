"""Several models on the same questions: the next one is asked where one does not agree with itself.

ModelSwitch (arXiv 2504.00762). Works on drawn answers: all models answer all questions, so that
what switching would have saved and won stands beside each model and beside all of them, of the same
draws.

Shape letters: P problems, K samples of one model, N samples of all models, model by model.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from podsrl.core.votes import NO_VOTE, consistency, largest_share, majority, numbered
from podsrl.intervals import mean_interval, share_interval

T = TypeVar("T")


def switched(
    answers: Sequence[Sequence[Sequence[str | None]]],
    right: Sequence[Sequence[Sequence[bool]]],
    *,
    threshold: float,
) -> dict[str, Any]:
    """Return the figures of asking models in turn until one agrees with itself.

    A problem is settled by the first model of which a share of at least `threshold` of its K
    samples, those without an answer included, gave one and the same answer; where none does, all
    are asked. The samples of the models that were asked then vote, each with its model's
    `podsrl.core.votes.consistency` on the problem; of answers with equal weight the one that was
    sampled first, by the earlier model, wins. A problem on which nobody votes is wrong.

    Args:
        answers: final answers by model, problem and sample, equal text being the same answer; None
            for none. In the order in which models are asked.
        right: whether each is right, likewise.
        threshold: 1 asks the next model unless all K agree; above 1 all are always asked, 0 asks
            the first alone.

    Returns:
        - `switch`: accuracy of the vote
        - `mean_samples`: samples per problem, out of `most_samples`, K times the number of models
        - `settled_by`: shares of the problems that each model settled; the rest was settled by none
        - `majority`: accuracy of each model's own plain vote, which is maj@K
        - `all`, `all_weighted`: of a plain and of a weighted vote of all samples of all models
        - `minus_majority`, `minus_all_weighted`: `switch` minus these, paired by problem

        Each figure but the shares has a 95 % interval over problems (`podsrl.intervals`).

    Raises:
        ValueError: no model, problem or sample, or models with different numbers of them.

    Example: one problem, K = 2, threshold 1; model A says "3", "4" and model B "4", "4" (right).
    A is not settled; weights 1/2 and 1 give "3" 0.5 and "4" 2.5: right, after 4 of 4 samples.
    """
    num_samples = _check(answers)
    votes_PN = numbered(_side_by_side(answers))
    right_PN = torch.tensor(_side_by_side(right))
    parts = votes_PN.split(num_samples, dim=1)
    settled_PJ = torch.stack([largest_share(part) >= threshold for part in parts], dim=1)
    num_asked_P = _num_asked(settled_PJ)
    weights_PJ = torch.stack([consistency(part) for part in parts], dim=1)
    weights_PN = weights_PJ.repeat_interleave(num_samples, dim=1)
    asked_PN = torch.arange(votes_PN.shape[1]) < num_asked_P[:, None] * num_samples
    switch = _right(votes_PN.masked_fill(~asked_PN, NO_VOTE), weights_PN, right_PN)
    everything = _right(votes_PN, weights_PN, right_PN)
    plain = [
        _right(part, None, right)
        for part, right in zip(parts, right_PN.split(num_samples, dim=1), strict=True)
    ]
    own_PJ = settled_PJ & (settled_PJ.cumsum(dim=1) == 1)
    return {
        "num_problems": len(votes_PN),
        "switch": share_interval(switch),
        "mean_samples": mean_interval((num_asked_P.double() * num_samples).tolist()),
        "most_samples": votes_PN.shape[1],
        "settled_by": own_PJ.double().mean(dim=0).tolist(),
        "majority": [share_interval(each) for each in plain],
        "all": share_interval(_right(votes_PN, None, right_PN)),
        "all_weighted": share_interval(everything),
        "minus_majority": [_difference(switch, each) for each in plain],
        "minus_all_weighted": _difference(switch, everything),
    }


def _side_by_side(of_models: Sequence[Sequence[Sequence[T]]]) -> list[list[T]]:
    """By problem the samples of all models, one model after the other."""
    return [
        [each for samples in of_problem for each in samples]
        for of_problem in zip(*of_models, strict=True)
    ]


def _num_asked(settled_PJ: Tensor) -> Tensor:
    """Models asked on each problem: up to the first that settles it, or all."""
    none_before_PJ = settled_PJ.cumsum(dim=1) - settled_PJ.long() == 0
    return none_before_PJ.sum(dim=1)


def _right(votes_PN: Tensor, weights_PN: Tensor | None, right_PN: Tensor) -> list[float]:
    """1.0 where the vote is right, 0.0 where it is wrong or nobody voted."""
    place_P = majority(votes_PN, weights_PN)
    is_right_P = right_PN.gather(1, place_P.clamp(min=0)[:, None])[:, 0] & (place_P >= 0)
    return is_right_P.double().tolist()


def _difference(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    return dict(mean_interval([a - b for a, b in zip(one, other, strict=True)]))


def _check(answers: Sequence[Sequence[Sequence[str | None]]]) -> int:
    """The number of samples, the same for every model and problem."""
    sizes = {len(samples) for of_model in answers for samples in of_model}
    problems = {len(of_model) for of_model in answers}
    if len(sizes) != 1 or len(problems) != 1 or 0 in sizes:
        raise ValueError(
            f"models have {sorted(problems)} problems and {sorted(sizes)} samples of each; pass "
            "the same number of both, at least one."
        )
    return sizes.pop()
