"""early_stop through PODSTrainer: the same kept variance, each reward once, honest metrics."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from helpers.harness import build, logged, recorded
from helpers.tiny import even_reward, text_of
from podsrl import PODSConfig
from podsrl.tasks.base import make_task
from podsrl.trl.early_stop import Scorer
from podsrl.trl.refusals import refuse_arguments

# End tokens that random models draw often, so that rollouts end at many lengths.
ENDS = {"generation_kwargs": {"eos_token_id": [1, 7, 11, 20, 30]}, "max_completion_length": 40}
ON: dict[str, Any] = {"early_stop": True, "reward_bounds": [0.0, 1.0]}


class Rewards:
    """even_reward that remembers what it was asked and logs as reward functions may."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, completions: list, answer: list, log_extra: Any, log_metric: Any, **columns: Any
    ) -> list[float]:
        assert "trainer_state" in columns and len(columns["completion_ids"]) == len(completions)
        self.calls.append({"texts": [text_of(c) for c in completions], "answer": answer})
        log_extra("text", [text_of(completion) for completion in completions])
        log_metric("num_scored", float(len(completions)))
        log_metric("share_even", sum(even_reward(completions)) / len(completions))
        return even_reward(completions)


def train(folder: str, output: Path, **options: Any) -> tuple[Any, Rewards, list[Any]]:
    """The trainer, its reward function and the selections of two steps."""
    rewards = Rewards()
    options = {"num_rollouts": 16, "max_steps": 2, **ENDS, **options}
    trainer = build(folder, output, rewards=[rewards], **options)
    recorder = recorded(trainer)
    trainer.train()
    return trainer, rewards, recorder.selections


def test_stopping_keeps_the_variance_and_says_what_it_saved(
    tiny_folder: str, tmp_path: Path
) -> None:
    free, all_calls, chosen = train(tiny_folder, tmp_path / "free")
    trainer, recorder, chosen_early = train(tiny_folder, tmp_path / "early", **ON)
    # The first batch is drawn from the same weights with the same numbers.
    full_PN, seen_PN = chosen[0].rewards_PN, chosen_early[0].rewards_PN
    stopped_PN = seen_PN.isnan()
    assert 0 < int(stopped_PN.sum()) < 32 and not bool(full_PN.isnan().any())
    assert torch.equal(seen_PN[~stopped_PN], full_PN[~stopped_PN])
    kept, kept_early = (
        each.rewards_PN.gather(1, each.kept_PM).var(dim=1, unbiased=False)
        for each in (chosen[0], chosen_early[0])
    )
    assert torch.equal(kept, kept_early)
    # Rewards were asked for once per finished rollout, and not for stopped ones.
    num_finished = sum(int((~each.rewards_PN.isnan()).sum()) for each in chosen_early)
    assert sum(len(call["texts"]) for call in recorder.calls) == num_finished < 64
    assert len(recorder.calls) > 2 == len(all_calls.calls)
    assert logged(trainer, "num_scored") == [
        float((~each.rewards_PN.isnan()).sum()) for each in chosen_early
    ]
    assert logged(trainer, "share_even")[0] == pytest.approx(float(seen_PN.nanmean()))
    assert logged(trainer, "pods/frac_rollouts_stopped")[0] == float(stopped_PN.double().mean())
    estimates, bounds = (
        logged(trainer, f"pods/frac_tokens_saved{suffix}") for suffix in ("", "_at_most")
    )
    assert all(0 < share <= most < 1 for share, most in zip(estimates, bounds, strict=True))
    assert logged(trainer, "pods/frac_no_reward") == [0.0, 0.0]
    assert logged(trainer, "reward")[0] == pytest.approx(float(seen_PN.nanmean()))
    assert list(trainer._logs["extra"]["text"]) == [text_of(c) for c in trainer._logs["completion"]]
    assert not logged(free, "pods/frac_tokens_saved")


def config(**changes: Any) -> PODSConfig:
    fields = {"output_dir": "x", "num_generations": 4, "per_device_train_batch_size": 8}
    return PODSConfig(**{**fields, "bf16": False, "use_cpu": True, **ON, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection_rule": "max_reward"}, "needs selection_rule='max_variance'"),
        ({"num_rollouts": 4}, "num_rollouts above num_generations"),
        ({"fast_sampling": False}, "needs fast_sampling=True"),
        ({"use_vllm": True}, "needs use_vllm=False"),
        ({"use_transformers_continuous_batching": True}, "continuous_batching=False"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"advantage_from": "all"}, "needs advantage_from='kept'"),
        ({"reward_bounds": [1.0, 0.0]}, "in this order"),
        ({"reward_bounds": [0.0]}, "in this order"),
        ({"reward_bounds": [0.0, float("inf")]}, "finite"),
    ],
)
def test_settings_that_rule_it_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_groups_that_straddle_processes_rule_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of 6 rows each: three groups of 4, one of them in both."""
    monkeypatch.setattr(PODSConfig, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match="= 6 must be a multiple of num_generations"):
        config(per_device_train_batch_size=6)
    assert not config(per_device_train_batch_size=6, early_stop=False).early_stop


async def later(completions: list, **_: Any) -> list[float]:
    return even_reward(completions)


@pytest.mark.parametrize(
    ("functions", "changes", "message"),
    [
        ([even_reward], {"reward_bounds": None}, "set reward_bounds"),
        (later, {}, "is async"),
        ([even_reward, "hub/model"], {}, "hub/model is a model"),
        ([torch.nn.Linear(1, 1)], {}, "Linear is a model"),
    ],
)
def test_arguments_that_rule_it_out(functions: Any, changes: dict, message: str) -> None:
    arguments = {"args": config(**changes), "reward_funcs": functions}
    with pytest.raises(ValueError, match=message):
        refuse_arguments(arguments)
    refuse_arguments({**arguments, "args": config(early_stop=False)})
    refuse_arguments({"args": None, "reward_funcs": functions})


def test_a_model_that_our_sampler_does_not_serve_rules_it_out(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("podsrl.trl.refusals.settings_or_why_generate", lambda host: "it is a test")
    with pytest.raises(ValueError, match="needs our own sampling, but it is a test"):
        build(tiny_folder, tmp_path, rewards=[even_reward], num_rollouts=16, **ENDS, **ON)


def test_a_function_that_gives_too_few_rewards_is_named() -> None:
    trainer = SimpleNamespace(
        state=None,
        reward_funcs=[lambda **_: [1.0]],
        reward_func_names=["short"],
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: ["text"] * len(ids)),
    )
    scorer = Scorer(trainer, [{"prompt": "a"}] * 2, ["a"] * 2)
    with pytest.raises(ValueError, match="short gave 1 rewards for 2 completions"):
        scorer([0, 1], [[3], [4]])


def test_rewards_are_asked_for_as_trl_does() -> None:
    """Names that Scorer copies from TRL's call; a new TRL that changes them fails here."""
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    for text in (
        'key not in ["prompt", "completion", "completion_ids"]',
        'reward_kwargs["trainer_state"] = self.state',
        'reward_kwargs["log_extra"] = self._log_completion_extra',
        'reward_kwargs["log_metric"] = self._log_metric',
        "prompts=prompts, completions=completions, completion_ids=completion_ids_list",
        "reward if reward is not None else torch.nan",
    ):
        assert text in source, text
    assert "batch_decode(completion_ids, skip_special_tokens=True)" in inspect.getsource(
        GRPOTrainer._generate
    )


def test_bounds_of_a_task_are_the_weighted_sums_of_those_of_its_rewards() -> None:
    tags = make_task("t", lambda split: [], answer_format="tags", max_new_tokens=8)
    number = make_task("n", lambda split: [], answer_format="number", max_new_tokens=8)
    # 1 + 0.1 + 0.1 as single-precision rewards are summed
    assert tags.bounds() == (0.0, float(torch.tensor(1.2)))
    assert tags.bounds([1.0, -0.5, 0.25]) == (-0.5, 1.25)
    assert number.bounds() == (0.0, 1.0)
    unbounded = make_task(
        "u", lambda split: [], answer_format="tags", max_new_tokens=8, score_bounds=None
    )
    with pytest.raises(ValueError, match="task u has no bounds for correctness: set reward_bounds"):
        unbounded.bounds()
