"""Verdicts as literal numbers: which check a rollout fails first, and who is chosen by it."""

import torch

from podsrl.core.selection import Selector
from podsrl.core.verdicts import PASSED, failed_check, verdicts

NAN = float("nan")
# right, consistent, various
ROLLOUTS = [
    ([1.0, 1.0, 0.9], PASSED, 1.0),
    ([0.0, 1.0, 0.9], 0, 0.0),  # wrong
    ([1.0, 0.0, 0.9], 1, 0.0),  # inconsistent
    ([1.0, 1.0, 0.4], 2, 0.0),  # repetitive
    ([0.9, 1.0, 0.9], 0, 0.0),  # nearly right is not right
    ([1.0, 0.5, 0.5], PASSED, 1.0),  # half is enough
    ([0.0, 0.0, 0.0], 0, 0.0),  # of several the first
    ([1.0, 0.0, 0.0], 1, 0.0),
    ([1.0, NAN, 0.9], PASSED, 1.0),  # what does not apply is not failed
    ([NAN, 1.0, 0.9], PASSED, NAN),  # not graded: no verdict
    ([NAN, NAN, NAN], PASSED, NAN),
]


def test_each_check_flips_its_kind_alone() -> None:
    rewards_PNF = torch.tensor([[values for values, _, _ in ROLLOUTS]])
    assert failed_check(rewards_PNF, [0, 1, 2])[0].tolist() == [kind for _, kind, _ in ROLLOUTS]
    expected = torch.tensor([[passed for _, _, passed in ROLLOUTS]])
    found = verdicts(rewards_PNF, [0, 1, 2])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    # The order of checks is that of `checks`, whatever the order of the functions is.
    assert failed_check(rewards_PNF[0, 6:8][None], [2, 1])[0].tolist() == [0, 0]
    only_right = failed_check(rewards_PNF, [0])[0]
    assert only_right.tolist() == [0 if kind == 0 else PASSED for _, kind, _ in ROLLOUTS]


def test_pairs_are_mined_from_all_rollouts() -> None:
    """By rewards all eight are alike; by verdicts the two that repeat themselves are kept."""
    rewards_PNF = torch.ones(1, 8, 2)
    rewards_PNF[0, [2, 5], 1] = 0.0
    choose = Selector(num_kept=4, weights_F=torch.tensor([1.0, 0.0]))
    assert choose(rewards_PNF).numbers()["frac_kept_zero_variance"] == 1.0
    chosen = choose(rewards_PNF, ranked_PN=verdicts(rewards_PNF, [0, 1]))
    assert chosen.kept_PN[0, [2, 5]].all()
    assert chosen.rewards_PN[chosen.kept_PN].sum() == 2.0  # two of each kind
    # All right and consistent: nothing to choose between.
    every = torch.ones(1, 8, 2)
    same = choose(every, ranked_PN=verdicts(every, [0, 1]))
    assert same.numbers()["frac_kept_zero_variance"] == 1.0
