"""sampling_rounds through PODSTrainer: who is sampled again, what is kept, logged and refused."""

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from trl.trainer import grpo_trainer

from helpers.harness import build, logged, recorded, reward_of_hard_questions
from helpers.tiny import even_reward, text_of
from podsrl import PODSConfig
from podsrl.core.rounds import decide
from podsrl.runs.rollout_log import attach_log, read_rollouts

ON: dict[str, Any] = {"num_rollouts": 16, "sampling_rounds": 3, "max_steps": 2}


class Rewards:
    """`reward_of_hard_questions` that remembers its calls and logs as reward functions may."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(
        self, completions: list, log_extra: Any, log_metric: Any, **columns: Any
    ) -> list[float]:
        self.calls.append([text_of(completion) for completion in completions])
        log_extra("text", self.calls[-1])
        log_metric("num_scored", float(len(completions)))
        log_metric("share_even", sum(even_reward(completions)) / len(completions))
        return reward_of_hard_questions(completions=completions, **columns)


def train(folder: str, output: Path, **options: Any) -> tuple[Any, Rewards, Any]:
    rewards = Rewards()
    trainer = build(folder, output, rewards=[rewards], **{**ON, **options})
    recorder = recorded(trainer)
    trainer.train()
    return trainer, rewards, recorder


def by_the_rule(
    rewards_PN: torch.Tensor, first: int, size: int, **rule: int
) -> tuple[list[int], list[bool]]:
    """Rollouts of each group that the rule asks for, and whether it gives it up, one by one."""
    sizes, gave_up = [], []
    for rewards_N in rewards_PN.double():
        num = first
        while True:
            settled, given_up = decide(rewards_N[None, :num], 4, **rule)
            if settled or given_up or num == len(rewards_N):
                break
            num = min(num + size, len(rewards_N))
        sizes.append(num)
        gave_up.append(bool(given_up))
    return sizes, gave_up


@pytest.mark.parametrize("fast_sampling", [True, False])
def test_rounds_sample_what_the_rule_asks_for(
    tiny_folder: str, tmp_path: Path, fast_sampling: bool
) -> None:
    trainer, rewards, recorder = train(
        tiny_folder, tmp_path, fast_sampling=fast_sampling, num_generations=4, max_steps=3
    )
    assert (trainer.args.sampling_rounds_enough, trainer.args.sampling_rounds_give_up) == (1, 8)
    all_sizes: list[int] = []
    all_given_up: list[bool] = []
    for batch in recorder.batches:
        sampled_PN = torch.tensor(batch.num_tokens).view(-1, 16) > 0
        sizes = sampled_PN.sum(1).tolist()
        all_sizes += sizes
        rewards_PN = batch.selection.rewards_PN
        # Places are filled from the left; all that were sampled have a reward, and no other.
        assert torch.equal(sampled_PN, torch.arange(16) < torch.tensor(sizes)[:, None])
        assert torch.equal(sampled_PN, ~rewards_PN.isnan())
        expected, given_up = by_the_rule(rewards_PN, 6, 3, enough=1, give_up=8)
        assert sizes == expected
        all_given_up += given_up
        assert (sampled_PN & batch.selection.kept_PN).sum() == 8
        # Each reward is of its text.
        for i, completion in enumerate(batch.completions):
            assert (completion is None) == (not sampled_PN.flatten()[i])
            if completion is not None and batch.rows[i // 16]["prompt"][0]["content"] in ("9+9?",):
                assert even_reward([completion]) == [rewards_PN.flatten()[i].item()]
    assert len(set(all_sizes)) > 1  # else nothing was decided
    assert sum(map(len, rewards.calls)) == sum(all_sizes)
    assert logged(trainer, "pods/mean_num_rollouts") == [
        sum(all_sizes[i : i + 2]) / 2 for i in (0, 2, 4)
    ]
    shares = [sum(all_given_up[i : i + 2]) / 2 for i in (0, 2, 4)]
    assert logged(trainer, "pods/frac_groups_given_up") == shares and sum(shares)
    for step, batch in enumerate(recorder.batches):
        successes = (batch.selection.rewards_PN[:, :6] > 0).sum(1).tolist()
        of = {"hard": [], "middle": [], "easy": []}
        for i, right in enumerate(successes):  # of 6: below 1.5 is hard, above 4.5 easy
            name = "hard" if right < 2 else "easy" if right > 4 else "middle"
            of[name].append((all_sizes[2 * step + i], all_given_up[2 * step + i]))
        for name, groups in of.items():
            row = trainer.state.log_history[step]
            assert row[f"rounds/{name}/frac_groups"] == len(groups) / 2
            taken = sum(size for size, _ in groups) / len(groups) if groups else None
            assert row.get(f"rounds/{name}/mean_num_rollouts") == taken
            gave_up = sum(each for _, each in groups) / len(groups) if groups else None
            assert row.get(f"rounds/{name}/frac_given_up") == gave_up
    # A count is added up over the rounds, another metric is averaged over the rollouts.
    assert logged(trainer, "num_scored") == [sum(all_sizes[i : i + 2]) for i in (0, 2, 4)]
    texts = [text for call in rewards.calls for text in call]
    shares = logged(trainer, "share_even")
    first = all_sizes[0] + all_sizes[1]
    assert shares[0] == pytest.approx(sum(len(t) % 2 == 0 for t in texts[:first]) / first)
    assert list(trainer._logs["extra"]["text"]) == [text_of(c) for c in trainer._logs["completion"]]


def test_metrics_of_the_policy_are_of_the_first_round(tiny_folder: str, tmp_path: Path) -> None:
    trainer, _, recorder = train(tiny_folder, tmp_path)
    firsts = [b.selection.rewards_PN[:, :6] for b in recorder.batches]
    assert logged(trainer, "reward") == pytest.approx([float(first.mean()) for first in firsts])
    assert logged(trainer, "pods/frac_no_reward") == [0.0, 0.0]
    lengths = torch.tensor(recorder.batches[0].num_tokens).view(-1, 16)[:, :6].float()
    assert logged(trainer, "completions/mean_length")[0] == pytest.approx(float(lengths.mean()))


def weights(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_resumed_run_is_the_same_to_the_bit(tiny_folder: str, tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    through, _, _ = train(tiny_folder, tmp_path / "through", **options)
    shutil.copytree(tmp_path / "through/checkpoint-2", tmp_path / "resumed/checkpoint-2")
    again = build(tiny_folder, tmp_path / "resumed", rewards=[Rewards()], **{**ON, **options})
    again.train(resume_from_checkpoint=str(tmp_path / "resumed/checkpoint-2"))
    assert same(weights(through), weights(again))
    key = "pods/mean_num_rollouts"
    assert logged(through, key) == logged(again, key) and len(set(logged(through, key))) > 1
    fixed, _, _ = train(tiny_folder, tmp_path / "fixed", sampling_rounds=0, **options)
    assert not same(weights(through), weights(fixed))


@pytest.mark.parametrize(
    "options",
    [
        {"refill_constant_groups": 2},
        {"budget": "pooled"},
        {"num_generations_start": 2},
        {"objective": "vargrad"},
        {"steps_per_generation": 2, "per_device_train_batch_size": 4},
        {"num_generations": 4, "sampling_rounds": 8},  # a round larger than m
        {"num_rollouts": 13, "per_device_train_batch_size": 8},
    ],
    ids=str,
)
def test_it_works_beside(tiny_folder: str, tmp_path: Path, options: dict[str, Any]) -> None:
    trainer, rewards, recorder = train(tiny_folder, tmp_path, **options)
    assert len(recorder.batches) >= 1
    for batch in recorder.batches:
        # Nothing is kept that was not sampled, and every kept row has its own reward.
        selection = batch.selection
        assert not selection.rewards_PN[selection.kept_PN].isnan().any()
    taken = logged(trainer, "pods/mean_num_rollouts")
    assert all(4 <= mean <= trainer.args.num_rollouts for mean in taken)
    if "refill_constant_groups" in options:
        assert sum(logged(trainer, "pods/num_refill_rounds")) > 0
        # The quality of the policy stays that of the prompts that were drawn, refilled or not.
        first = rewards.calls[0]
        assert len(first) == 12


def test_the_log_shows_what_was_not_sampled(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[Rewards()], **ON)
    attach_log(trainer, tmp_path)
    trainer.train()
    _, records = read_rollouts(tmp_path / "rollouts.jsonl.gz")
    nothing = [
        text is None and reward is None and kept == 0
        for record in records
        for text, reward, kept in zip(
            record["texts"], record["rewards"], record["kept"], strict=True
        )
        if text is None
    ]
    assert nothing and all(nothing)


class Engine:
    """Stands for TRL's VLLMGeneration and remembers how many rows it was asked for at once."""

    waves: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, **options: Any) -> None:
        self.calls = 0

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list, images: Any, num_generations: int, profiler: Any) -> tuple:
        Engine.waves.append((len(prompts), num_generations))
        # All alike within a call; the fourth and later calls differ from those before.
        self.calls += 1
        ids = [[3, 4, 1]] if self.calls < 3 else [[3, 4, 1], [3, 4, 4, 1]]
        completions = [ids[i % len(ids)] for i in range(len(prompts))]
        return prompts, completions, [[[-1.0]] * len(c) for c in completions], None


def test_vllm_gets_whole_rounds_of_all_open_prompts(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    Engine.waves.clear()

    def by_length(completion_ids: list, **_: Any) -> list[float]:
        return [float(len(ids) == 4) for ids in completion_ids]

    options = {**ON, "max_steps": 1, "sampling_rounds_give_up": 16, "use_vllm": True}
    trainer = build(tiny_folder, tmp_path, rewards=[by_length], vllm_mode="colocate", **options)
    trainer.train()
    # Two prompts: 6 of each, 3 more as all are equal, 3 more of which some differ: settled.
    assert Engine.waves == [(12, 6), (6, 3), (6, 3)]
    assert logged(trainer, "pods/mean_num_rollouts") == [12.0]
    assert logged(trainer, "pods/frac_groups_settled") == [1.0]


def config(**changes: Any) -> PODSConfig:
    fields = {"output_dir": "x", "num_generations": 4, "per_device_train_batch_size": 8}
    options = {"bf16": False, "use_cpu": True, "num_rollouts": 16, "sampling_rounds": 4}
    return PODSConfig(**{**fields, **options, **changes})


def test_thresholds_that_are_left_out() -> None:
    for m, n, expected in ((16, 64, (4, 32)), (4, 16, (1, 8)), (6, 10, (2, 10))):
        built = config(num_generations=m, num_rollouts=n, per_device_train_batch_size=2 * m)
        got = built.sampling_rounds_enough, built.sampling_rounds_give_up
        assert got == expected
    off = config(sampling_rounds=0)
    assert off.sampling_rounds_enough is None and off.sampling_rounds_give_up is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rollouts": 4}, "num_rollouts above num_generations, or there is nothing to save"),
        ({"selection_rule": "max_reward"}, "needs selection_rule='max_variance'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"advantage_from": "all"}, "needs advantage_from='kept'"),
        ({"early_stop": True, "reward_bounds": [0.0, 1.0]}, "needs early_stop=False"),
        ({"reward_bounds": [1.0, 0.0]}, "in this order"),
        ({"sampling_rounds": 16}, "leave a second round"),
        ({"sampling_rounds": -1}, "is -1, but must be at least 1"),
        ({"sampling_rounds_enough": 3}, "is 3, but must lie between 1 and 2"),
        ({"sampling_rounds_enough": 0}, "is 0, but must lie between 1 and 2"),
        ({"sampling_rounds_give_up": 17}, "is 17, but must lie between num_generations = 4"),
        ({"sampling_rounds": 0, "sampling_rounds_enough": 1}, "without sampling_rounds"),
        ({"sampling_rounds": 0, "sampling_rounds_give_up": 8}, "without sampling_rounds"),
    ],
)
def test_settings_that_rule_it_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
