"""The Selector: choice, rows, advantages, weights and numbers, also where groups keep unequally."""

import pytest
import torch

from podsrl import RULES, select
from podsrl.core import rules
from podsrl.core.advantage import advantages, masked_advantages
from podsrl.core.selection import Selection, Selector
from podsrl.core.statistics import selection_statistics

REWARDS = torch.tensor([[0.0, 1, 0, 1], [5, 5, 5, 5], [0, 0, 0, 1]])


def selection(kept_PN: torch.Tensor) -> Selection:
    return Selection(Selector(num_kept=2), REWARDS.unsqueeze(2), REWARDS, kept_PN)


def test_rows_and_groups_go_prompt_by_prompt():
    ragged = selection(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]]).bool())
    assert ragged.kept_rows_B.tolist() == [0, 1, 3, 10, 11]
    assert ragged.group_B.tolist() == [0, 0, 0, 2, 2]
    with pytest.raises(ValueError, match=r"keep \[3, 0, 2\] rollouts"):
        _ = ragged.kept_PM


@pytest.mark.parametrize("rule", sorted(RULES))
def test_per_prompt_is_select_and_its_advantages(rule: str) -> None:
    lengths_PN = torch.arange(12).view(3, 4) + 1
    lengths = lengths_PN if rule in rules.NEEDS_LENGTHS else None
    kept_PM = select(REWARDS, 2, rule=rule, seed=4, lengths=lengths)
    chosen = Selector(num_kept=2, rule=rule)(REWARDS.unsqueeze(2), seed=4, lengths_PN=lengths)
    assert torch.equal(chosen.kept_PM, kept_PM)
    assert torch.equal(chosen.advantages_B, advantages(REWARDS, kept_PM).flatten())
    assert chosen.weights_B.tolist() == [1.0] * 6


def test_pooled_takes_from_the_constant_group():
    # v = 1/2, 2/3, 1 at 2, 3, 4 of the first group; 1/2, 2/3, 3/4 of the last. Total 6: 4 + 2.
    rewards_PNF = REWARDS.unsqueeze(2)
    chosen = Selector(num_kept=2, budget="pooled")(rewards_PNF)
    assert chosen.kept_PN.sum(1).tolist() == [4, 0, 2]
    assert chosen.kept_PN[2, 3]
    by_chance = Selector(num_kept=2, budget="pooled", rule="random")(rewards_PNF)
    assert by_chance.kept_PN.sum(1).tolist() == [4, 0, 2]
    capped = Selector(num_kept=2, budget="pooled", rule="random", budget_cap=3)(rewards_PNF)
    assert (capped.kept_PN.sum(), capped.kept_PN.sum(1).max()) == (6, 3)
    expected_PN = masked_advantages(REWARDS, chosen.kept_PN)
    assert torch.equal(chosen.advantages_B, expected_PN[chosen.kept_PN])


def test_stratified_weights_are_in_the_advantages():
    # Kept one of three failures and the success: 3/4 and 1/4 of all over 1/2 each of the kept.
    rewards_PNF = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 4, 1)
    options = {"source": "all", "weights": "stratified", "estimator": "dr_grpo"}
    chosen = Selector(num_kept=2, advantage=options)(rewards_PNF)
    assert chosen.weights_B.tolist() == [1.5, 0.5]
    assert chosen.advantages_B.tolist() == [-0.25 * 1.5, 0.75 * 0.5]
    assert chosen.numbers()["frac_unrepresented"] == 0.0


def test_the_numbers_are_those_of_a_second_run_of_the_rule():
    generator = torch.Generator().manual_seed(0)
    for rewards_PN in (REWARDS, torch.rand(5, 16, generator=generator), torch.ones(2, 4)):
        chosen = Selector(num_kept=3)(rewards_PN.unsqueeze(2), seed=1)
        expected = selection_statistics(rewards_PN, chosen.kept_PN)
        for name, number in chosen.numbers().items():
            assert number == pytest.approx(expected[name].item(), nan_ok=True), name


def test_the_rule_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(rewards_PN: torch.Tensor, num_kept: int, **options: int) -> torch.Tensor:
        calls.append(num_kept)
        return rules.max_variance(rewards_PN, num_kept, **options)

    monkeypatch.setitem(RULES, "max_variance", counted)
    Selector(num_kept=2)(REWARDS.unsqueeze(2)).numbers()
    assert calls == [2]


def test_several_functions_are_weighed_and_one_needs_an_axis():
    rewards_PNF = torch.stack([REWARDS, 10 * REWARDS.flip(1)], dim=2)
    weighed = Selector(num_kept=2, weights_F=torch.tensor([1.0, 0.0]))(rewards_PNF)
    assert torch.equal(weighed.rewards_PN, REWARDS)
    assert torch.equal(Selector(num_kept=2)(rewards_PNF).rewards_PN, rewards_PNF.sum(2))
    with pytest.raises(ValueError, match=r"shape \(3, 4\); pass \(P, N, F\)"):
        Selector(num_kept=2)(REWARDS)
    with pytest.raises(ValueError, match="budget is 'pool'; choose one of per_prompt, pooled"):
        Selector(num_kept=2, budget="pool")(rewards_PNF)


def test_parts_keep_their_own_and_compare_among_themselves() -> None:
    """Of eight rollouts the first six keep two, the last two both, whatever the others' rewards."""
    rewards_PN = torch.tensor([[0.0, 1, 1, 1, 1, 1, 0, 1], [3, 3, 3, 3, 3, 3, 5, 7]])
    chosen = Selector(num_kept=4, parts=((6, 2), (2, 2)))(rewards_PN.unsqueeze(2), seed=5)
    assert torch.equal(chosen.kept_PN[:, :6].sum(1), torch.tensor([2, 2]))
    assert bool(chosen.kept_PN[0, 0]) and bool(chosen.kept_PN[:, 6:].all())
    first, second = chosen.part(0), chosen.part(1)
    # (0 - 1/2) / sqrt(1/2) and its mirror; the second group's are equal. TRL adds 1e-4 below.
    assert first.advantages_B.tolist() == pytest.approx([-0.70701, 0.70701, 0, 0], abs=1e-5)
    # 5 and 7: -1 and 1 over sqrt(2).
    assert second.advantages_B.tolist() == pytest.approx([-0.70701, 0.70701] * 2, abs=1e-4)
    # Of all four kept of the second group: mean 4.5, deviations -1.5 twice, .5 and 2.5.
    whole = chosen.advantages_B[4:]
    assert (whole / whole[3]).tolist() == pytest.approx([-0.6, -0.6, 0.2, 1.0])
    assert chosen.numbers()["frac_best_variance"] < 1  # of the whole group it is not the best


@pytest.mark.parametrize("rule", sorted(RULES))
def test_one_part_is_no_part_and_each_part_is_a_choice_of_its_own(rule: str) -> None:
    rewards_PN = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    lengths_PN = torch.arange(24).view(3, 8) + 1
    lengths = lengths_PN if rule in rules.NEEDS_LENGTHS else None
    options = {"seed": 9, "lengths_PN": lengths}
    whole = Selector(num_kept=4, rule=rule)(rewards_PN.unsqueeze(2), **options)
    one = Selector(num_kept=4, rule=rule, parts=((8, 4),))(rewards_PN.unsqueeze(2), **options)
    assert torch.equal(one.kept_PN, whole.kept_PN)
    two = Selector(num_kept=5, rule=rule, parts=((5, 3), (3, 2)))
    kept_PN = two(rewards_PN.unsqueeze(2), **options).kept_PN
    for i, (part, keep) in enumerate(((slice(0, 5), 3), (slice(5, 8), 2))):
        of_part = None if lengths is None else lengths[:, part]
        alone_PM = select(rewards_PN[:, part], keep, rule=rule, seed=9 + i, lengths=of_part)
        assert torch.equal(kept_PN[:, part].nonzero()[:, 1].view(3, keep), alone_PM)


def test_parts_that_do_not_make_the_group_are_refused() -> None:
    with pytest.raises(ValueError, match="make 3 rollouts and 2 kept ones, but groups have 4"):
        Selector(num_kept=2, parts=((2, 1), (1, 1)))(REWARDS.unsqueeze(2))
    with pytest.raises(ValueError, match="make 4 rollouts and 3 kept ones"):
        Selector(num_kept=2, parts=((2, 1), (2, 2)))(REWARDS.unsqueeze(2))
