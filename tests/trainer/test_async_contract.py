"""What podsrl.async_grpo relies on in TRL's asynchronous trainer, and the choice in one group."""

import asyncio
import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trl.experimental.async_grpo import AsyncGRPOTrainer, async_grpo_trainer, async_rollout_worker
from trl.experimental.async_grpo.async_rollout_worker import (
    AsyncRolloutWorker,
    RolloutGroup,
    _AsyncRolloutLoop,
    _child_main,
)

from helpers.async_groups import make_group, make_loop, rollouts_of, score
from podsrl.async_grpo import (
    AsyncPODSConfig,
    AsyncPODSTrainer,
    PodsRolloutLoop,
    PodsRolloutWorker,
)
from podsrl.core.rules import RULES
from podsrl.core.selection import Selector
from podsrl.trl import async_trainer
from podsrl.trl.async_loop import among, keep

NAN = float("nan")

# What TRL must go on doing -----------------------------------------------------------------------


def test_the_worker_names_the_class_of_its_loop_and_the_child_builds_it() -> None:
    assert AsyncRolloutWorker._loop_cls is _AsyncRolloutLoop
    assert PodsRolloutWorker._loop_cls is PodsRolloutLoop
    assert next(iter(inspect.signature(_child_main).parameters)) == "loop_cls"
    assert "self._loop_cls" in inspect.getsource(AsyncRolloutWorker.start)
    assert "loop_cls(" in inspect.getsource(_child_main)


def test_a_group_is_scored_by_one_method_whose_rows_go_to_the_queue() -> None:
    assert list(inspect.signature(_AsyncRolloutLoop._score_group).parameters) == ["self", "group"]
    source = inspect.getsource(_AsyncRolloutLoop._score_loop)
    assert source.index("await self._score_group(group)") < source.index("for sample in samples")
    names = {"dataset_start_index", "num_generations", "dataset", "reward_funcs"}
    assert names <= inspect.signature(_AsyncRolloutLoop.__init__).parameters.keys()


def test_fields_of_group_and_row() -> None:
    group = {field.name for field in dataclasses.fields(RolloutGroup)}
    assert {"completions_sequences", "completions_ids", "group_id"} <= group
    row = {field.name for field in dataclasses.fields(async_rollout_worker.RolloutSample)}
    assert {"advantage", "metrics", "group_id"} <= row


def test_the_trainer_builds_its_worker_by_a_name_that_can_be_exchanged() -> None:
    source = inspect.getsource(AsyncGRPOTrainer.__init__)
    assert source.count("AsyncRolloutWorker(") == 1
    assert "num_generations=self.args.num_generations" in source
    assert async_grpo_trainer.AsyncRolloutWorker is AsyncRolloutWorker
    # Elsewhere it asks whether the worker is its own kind, which ours is.
    assert issubclass(PodsRolloutWorker, AsyncRolloutWorker)
    readers = re.findall(r"args\.num_generations", inspect.getsource(async_grpo_trainer))
    assert len(readers) == 2  # the worker, and the most steps that an epoch may take


def test_metrics_of_rows_are_averaged_under_their_names_and_logged_by_log() -> None:
    assert 'example["metrics"]' in inspect.getsource(async_grpo_trainer)
    assert "self._metrics[mode].items()" in inspect.getsource(AsyncGRPOTrainer.log)


# The choice in a group ---------------------------------------------------------------------------


def test_of_eight_four_are_kept_with_the_largest_variance() -> None:
    rewards = [0.3, 0.9, 0.1, 0.5, 0.95, 0.2, 0.4, 0.6]
    best = max(itertools.combinations(range(8), 4), key=lambda s: np.var([rewards[i] for i in s]))
    samples = score(make_loop(4), make_group(rewards))
    assert tuple(rollouts_of(samples)) == best == (1, 2, 4, 5)
    # 0.9, 0.1, 0.95, 0.2: mean 0.5375, squares .1314 + .1914 + .1702 + .1139, over 4 is .1517.
    assert [sample.advantage for sample in samples] == pytest.approx(
        [0.9307, -1.1232, 1.0590, -0.8665], abs=1e-4
    )
    metrics = samples[0].metrics
    assert metrics["pods/all/reward"] == pytest.approx(sum(rewards) / 8)
    assert metrics["pods/all/rewards/said"] == pytest.approx(sum(rewards) / 8)
    assert metrics["reward"] == 0.9 and metrics["pods/frac_best_variance"] == 1.0
    assert metrics["pods/kept_reward_variance"] == pytest.approx(0.1517, abs=1e-4)


def test_advantages_are_those_that_trl_gives_a_group_of_the_kept_alone() -> None:
    rewards = [0.0, 1.0, 0.25, 0.75, NAN, 1.0]
    samples = score(make_loop(3), make_group(rewards))
    alone = make_group([rewards[i] for i in rollouts_of(samples)])
    theirs = asyncio.run(_AsyncRolloutLoop._score_group(make_loop(3), alone))
    assert [s.advantage for s in samples] == [s.advantage for s in theirs]


def test_with_n_equal_to_m_rows_and_advantages_are_trls() -> None:
    group = make_group([0.0, 1.0, NAN, 1.0])
    ours = score(make_loop(4), group)
    theirs = asyncio.run(_AsyncRolloutLoop._score_group(make_loop(4), group))
    assert rollouts_of(ours) == rollouts_of(theirs) == [0, 1, 2, 3]
    assert [s.advantage for s in ours] == [s.advantage for s in theirs]


def test_rows_of_a_rollout_stay_together_and_one_without_rows_is_not_kept() -> None:
    group = make_group([0.0, 1.0, 5.0, 0.0], rows=[1, 3, 0, 1])
    samples = score(make_loop(2), group)
    assert rollouts_of(samples) in ([0, 1, 1, 1], [1, 1, 1, 3])
    advantages = {
        rollout: s.advantage for rollout, s in zip(rollouts_of(samples), samples, strict=True)
    }
    assert advantages[1] == pytest.approx(1.0) and len({s.advantage for s in samples}) == 2


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_m_and_no_nan(rule: str) -> None:
    rewards = [NAN, 0.5, 1.0, 0.0, NAN, 1.0, 0.25, 0.0]
    kept = rollouts_of(score(make_loop(4, rule), make_group(rewards)))
    assert len(kept) == 4 and not {0, 4} & set(kept)


def test_rules_see_lengths() -> None:
    group = make_group([1.0] * 4, lengths=[9, 2, 5, 3])
    assert rollouts_of(score(make_loop(2, "shortest"), group)) == [1, 3]


def test_fewer_scored_than_m_are_filled_with_rollouts_of_advantage_0() -> None:
    samples = score(make_loop(3), make_group([NAN, 1.0, NAN, 0.0, NAN]))
    assert {1, 3} < set(rollouts_of(samples)) and len(samples) == 3
    assert sum(sample.advantage == 0.0 for sample in samples) == 1


def test_a_group_without_any_reward_teaches_nothing_and_says_so() -> None:
    samples = score(make_loop(2), make_group([NAN] * 4))
    assert [sample.advantage for sample in samples] == [0.0, 0.0]
    assert samples[0].metrics["pods/frac_no_reward"] == 1.0


def test_ties_follow_seed_and_prompt_also_after_a_resume() -> None:
    def kept(seed: int, first_prompt: int, group_id: int) -> list[int]:
        loop, group = make_loop(2, seed=seed), make_group([0.0, 1.0] * 16)
        loop.first_prompt, group.group_id = first_prompt, group_id
        return rollouts_of(score(loop, group))

    assert kept(1, 0, 7) == kept(1, 5, 2)
    assert len({tuple(kept(seed, 0, 7)) for seed in range(8)}) > 4
    assert len({tuple(kept(1, 0, group_id)) for group_id in range(8)}) > 4


def test_no_rows_are_handed_on_as_none() -> None:
    group = make_group([0.0, 1.0], rows=[0, 0])
    assert keep([], group, Selector(num_kept=2), seed=0) == []


def test_advantages_by_hand() -> None:
    # Mean 1/4, deviation sqrt(3)/4; the NaN counts in neither.
    expected = [-0.5774, -0.5774, -0.5774, 1.7321, 0.0]
    assert among(np.array([0, 0, 0, 1, NAN])).tolist() == pytest.approx(expected, abs=1e-4)


# Settings and trainer ----------------------------------------------------------------------------


def make_args(tmp_path: Path, **options: Any) -> AsyncPODSConfig:
    return AsyncPODSConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_defaults(tmp_path: Path) -> None:
    args = make_args(tmp_path, num_generations=4)
    assert (args.num_rollouts, args.selection_rule) == (8, "max_variance")
    assert async_trainer.selector_of(args) == Selector(num_kept=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 8, "num_rollouts": 4}, r"\(kept\) is 8 and num_rollouts .* is 4"),
        ({"num_generations": 1}, "2 <= kept <= sampled"),
        ({"selection_rule": "best"}, "selection_rule is 'best'; choose one of max_variance"),
    ],
    ids=["n below m", "m of one", "rule"],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_args(tmp_path, **options)


def test_as_many_rollouts_are_under_way_as_the_kept_need(tmp_path: Path) -> None:
    args = make_args(
        tmp_path,
        num_generations=4,
        num_rollouts=16,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_staleness=3,
    )
    # 3 steps of 16 kept rows, for each of which 4 are sampled.
    assert async_trainer._rollouts_in_flight(args) == 3 * 16 * 4


def test_other_settings_and_other_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args is a NoneType; pass args=AsyncPODSConfig"):
        AsyncPODSTrainer("model")
    with pytest.raises(TypeError, match="rollout_worker is a object, which keeps all it samples"):
        AsyncPODSTrainer("model", args=make_args(tmp_path), rollout_worker=object())


def test_the_name_is_exchanged_for_the_time_only(tmp_path: Path) -> None:
    theirs = async_grpo_trainer.AsyncRolloutWorker
    with pytest.raises(KeyError), async_trainer._worker_that_selects(make_args(tmp_path)):
        assert async_grpo_trainer.AsyncRolloutWorker is not theirs
        raise KeyError
    assert async_grpo_trainer.AsyncRolloutWorker is theirs
