"""Groups stop being sampled when their choice is final, the others do not notice, and what that
saved is counted: by hand and against lengths that are known.
"""

import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import make_model
from podsrl import select
from podsrl.core.statistics import group_variance
from podsrl.sampling.early_stop import (
    EarlyStop,
    early_stop_metrics,
    steps_between_decisions,
    tokens_to_come,
)
from podsrl.sampling.sample import SampledRollouts, sample
from podsrl.sampling.settings import SamplingSettings

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 4, 4, 9, 30, 4]]
SETTINGS = SamplingSettings(24, eos_token_ids=(1, 7, 11, 20), pad_token_id=1)
NUM_ROLLOUTS, NUM_KEPT = 12, 4


def run(monitor: Any = None, seed: int = 0, **options: Any) -> SampledRollouts:
    generator = torch.Generator().manual_seed(seed)
    return sample(
        MODEL, PROMPTS, NUM_ROLLOUTS, settings=SETTINGS, generator=generator, monitor=monitor,
        **options,
    )  # fmt: skip


MODEL = make_model().eval()


def even_length(rows: list[int], tokens: list[list[int]]) -> Tensor:
    """1 for rollouts with an even number of tokens, else 0; no reward for those of 9."""
    lengths = torch.tensor([[len(each)] for each in tokens])
    return (lengths % 2 == 0).float().masked_fill(lengths == 9, torch.nan)


def early_stop(score: Any = even_length, **changes: Any) -> EarlyStop:
    options = {"num_groups": 3, "num_rollouts": NUM_ROLLOUTS, "num_kept": NUM_KEPT}
    return EarlyStop(score, torch.ones(1), bounds=(0.0, 1.0), **{**options, **changes})


class Listener:
    """Stops nothing, or these rows from this step on; remembers what it was told."""

    def __init__(self, stop: set[int] = frozenset(), from_step: int = 0) -> None:
        self.stop, self.from_step = stop, from_step
        self.heard: dict[int, list[int]] = {}

    def ended(self, row: int, tokens: list[int]) -> None:
        assert row not in self.heard
        self.heard[row] = tokens

    def rows_to_stop(self, step: int) -> set[int]:
        return self.stop if step >= self.from_step else set()


@pytest.mark.parametrize("max_rows", [24, 7])
def test_a_monitor_hears_every_rollout_once_and_changes_none(max_rows: int) -> None:
    """Two prompts at a time, and a prompt in three parts."""
    listener = Listener()
    heard = run(listener, max_rows=max_rows).completion_ids
    assert heard == run(max_rows=max_rows).completion_ids
    assert [listener.heard[row] for row in range(36)] == heard
    assert any(len(tokens) == 24 for tokens in heard)  # ended by the limit
    assert any(len(tokens) < 6 for tokens in heard)


@pytest.mark.parametrize("max_rows", [36, 9])
def test_stopped_rollouts_are_cut_and_the_others_go_on_as_they_would(max_rows: int) -> None:
    free = run(max_rows=max_rows)
    listener = Listener(set(range(12, 24)), from_step=3)
    stopped = run(listener, max_rows=max_rows, return_log_probs=True)
    assert stopped.completion_ids[:12] == free.completion_ids[:12]
    assert stopped.completion_ids[24:] == free.completion_ids[24:]
    for row in range(12, 24):
        whole, cut = free.completion_ids[row], stopped.completion_ids[row]
        # After step 3 four tokens are drawn.
        assert cut == whole[:4] and (row in listener.heard) == (len(whole) <= 4)
    assert [len(each) for each in stopped.log_probs] == [len(e) for e in stopped.completion_ids]


def test_rollouts_that_are_not_needed_get_one_token_and_no_forward_pass() -> None:
    """The first token comes with the reading of the prompt."""
    rows: list[int] = []
    hook = MODEL.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    stopped = run(Listener(set(range(36))))
    hook.remove()
    assert rows == [3]
    assert [len(tokens) for tokens in stopped.completion_ids] == [1] * 36


def kept_variance(rewards_PN: Tensor) -> Tensor:
    return group_variance(rewards_PN.gather(1, select(rewards_PN, NUM_KEPT)))


@pytest.mark.parametrize(("max_rows", "steps"), [(36, 1), (24, 4), (7, 2)])
def test_kept_variance_is_that_without_stopping_and_tokens_are_saved(
    max_rows: int, steps: int
) -> None:
    saved = 0
    for seed in range(2):
        free = run(seed=seed, max_rows=max_rows).completion_ids
        with early_stop(steps_between_decisions=steps) as monitor:
            stopped = run(monitor, seed=seed, max_rows=max_rows).completion_ids
            rewards_B1 = monitor.finish()
        for row, (whole, cut) in enumerate(zip(free, stopped, strict=True)):
            assert cut == whole[: len(cut)]
            if monitor.has_ended_B[row]:
                assert cut == whole
            else:
                assert len(cut) < len(whole) and rewards_B1[row].isnan()
            saved += len(whole) - len(cut)
        all_rewards_B1 = even_length([], free)
        seen_B1 = all_rewards_B1.masked_fill(~monitor.has_ended_B[:, None], torch.nan)
        torch.testing.assert_close(rewards_B1, seen_B1, equal_nan=True)
        torch.testing.assert_close(
            kept_variance(rewards_B1.view(3, 12)), kept_variance(all_rewards_B1.view(3, 12))
        )
    assert saved > 30  # of 2 x 36 rollouts; every group has even and odd ones


def test_what_is_stopped_does_not_depend_on_how_long_rewards_take() -> None:
    def results(seconds: float) -> list[list[int]]:
        def slow(rows: list[int], tokens: list[list[int]]) -> Tensor:
            time.sleep(random.random() * seconds)
            return even_length(rows, tokens)

        with early_stop(slow, steps_between_decisions=2) as monitor:
            return run(monitor, max_rows=12).completion_ids

    assert results(0.0) == results(0.02) != run(max_rows=12).completion_ids


def test_rewards_are_computed_once_per_rollout_and_while_tokens_are_drawn() -> None:
    calls: list[list[int]] = []

    def record(rows: list[int], tokens: list[list[int]]) -> Tensor:
        calls.append(rows)
        return even_length(rows, tokens)

    with early_stop(record) as monitor:
        run(monitor)
        before_the_end = len(calls)
        monitor.finish()
    rows = [row for call in calls for row in call]
    assert sorted(rows) == monitor.has_ended_B.nonzero().flatten().tolist()
    assert before_the_end > 3


def test_groups_with_graded_rewards_inside_the_bounds_are_never_stopped() -> None:
    with early_stop(lambda rows, tokens: even_length(rows, tokens) * 0.9) as monitor:
        assert run(monitor).completion_ids == run().completion_ids
        monitor.finish()
    assert bool(monitor.has_ended_B.all())


def test_several_functions_count_by_their_weights() -> None:
    """Weighted 1 and 0.1 in single precision: the bound 1.1 is met by 1 + 0.1."""

    def two(rows: list[int], tokens: list[list[int]]) -> Tensor:
        return even_length(rows, tokens).expand(-1, 2)

    with EarlyStop(
        two, torch.tensor([1.0, 0.1]), num_groups=3, num_rollouts=12, num_kept=4, bounds=(0, 1.1)
    ) as monitor:
        run(monitor)
        assert monitor.finish().shape == (36, 2)
    assert not bool(monitor.has_ended_B.all())


def test_a_reward_outside_the_bounds_is_an_error() -> None:
    def doubled(rows: list[int], tokens: list[list[int]]) -> Tensor:
        return 2 * even_length(rows, tokens)

    with (
        early_stop(doubled) as monitor,
        pytest.raises(ValueError, match=r"is 2.0, outside reward_bounds \(0.0, 1.0\)"),
    ):
        run(monitor)
    with early_stop(lambda rows, tokens: even_length(rows, tokens) * 1.0000001) as monitor:
        run(monitor)  # rounding


def test_an_error_in_a_reward_function_ends_sampling() -> None:
    def broken(rows: list[int], tokens: list[list[int]]) -> Tensor:
        raise KeyError("answer")

    with early_stop(broken) as monitor, pytest.raises(KeyError, match="answer"):
        run(monitor)


def test_steps_between_decisions_follow_the_length_limit() -> None:
    limits = [1, 24, 63, 64, 128, 255, 256, 4096]
    assert [steps_between_decisions(limit) for limit in limits] == [1, 1, 1, 2, 4, 4, 8, 8]


def test_metrics_by_hand() -> None:
    """Lengths 2, 4, 3 stopped, 3; at most 8 tokens; the last one's grading failed."""
    metrics = early_stop_metrics(
        torch.tensor([[0.0, 1.0, torch.nan, torch.nan]]),
        torch.tensor([[0, 1]]),
        has_ended_PN=torch.tensor([[True, True, False, True]]),
        length_PN=torch.tensor([[2.0, 4.0, 3.0, 3.0]]),
        max_length=8,
    )
    assert {name: float(value) for name, value in metrics.items()} == {
        "pods/frac_rollouts_stopped": 0.25,
        "pods/frac_tokens_saved": pytest.approx(1 / 13),  # all with more than 3 ended with 4
        "pods/frac_tokens_saved_at_most": pytest.approx(5 / 17),
        "pods/finished_mean_length": 3.0,  # 2, 4, 3
        "pods/kept_mean_length": 3.0,  # 2, 4
        "pods/frac_no_reward": pytest.approx(1 / 3),
    }


def test_tokens_to_come_by_hand() -> None:
    """Ended with 1, 3, 5; stopped after 2 and after 4, in groups of any shape.

    Had s or more: 5, 4, 3, 2, 1 for s = 1..5. S(1) = 4/5, S(2) = 4/5, S(3) = 4/5 x 2/3 = S(4),
    S(5) = 0. After 2: 1 + 2/3 + 2/3; after 4: 1.
    """
    length_PN = torch.tensor([[1, 3, 5, 2, 4]])
    has_ended_PN = torch.tensor([[True, True, True, False, False]])
    to_come = tokens_to_come(length_PN, has_ended_PN, max_length=9)
    torch.testing.assert_close(to_come, torch.tensor([[0.0, 0.0, 0.0, 7 / 3, 1.0]]).double())
    # With the limit at 4 no rollout of 5 is possible, and the last one would not have gone on.
    to_come = tokens_to_come(length_PN.clamp(max=4), has_ended_PN, max_length=4)
    torch.testing.assert_close(to_come[0, 3], torch.tensor(5 / 3).double())


def test_nothing_known_about_longer_rollouts_counts_up_to_the_limit() -> None:
    to_come = tokens_to_come(torch.tensor([[2, 6]]), torch.tensor([[True, False]]), max_length=10)
    assert to_come.tolist() == [[0.0, 4.0]]
    nobody = tokens_to_come(torch.tensor([[3, 3]]), torch.zeros(1, 2).bool(), max_length=10)
    assert nobody.tolist() == [[7.0, 7.0]]


def test_estimate_meets_the_truth_when_stopping_has_nothing_to_do_with_length() -> None:
    generator = torch.Generator().manual_seed(0)
    whole_PN = (30 * torch.rand(500, 16, generator=generator) + 1).floor()
    stop_PN = (40 * torch.rand(500, 16, generator=generator) + 1).floor()
    has_ended_PN = whole_PN <= stop_PN
    drawn_PN = torch.minimum(whole_PN, stop_PN)
    to_come = tokens_to_come(drawn_PN, has_ended_PN, max_length=30)
    assert float(to_come.sum() / (whole_PN - drawn_PN).sum()) == pytest.approx(1, abs=0.02)
