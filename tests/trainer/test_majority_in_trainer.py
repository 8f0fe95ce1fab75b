"""The reward `majority` through PODSTrainer: who votes, what is trained, logged and refused."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.harness import build, logged, recorded
from helpers.tiny import text_of
from podsrl import PODSConfig
from podsrl.tasks.majority import majority_reward
from podsrl.trl import reward_checks
from podsrl.trl.reward_checks import refuse_group_rewards, refuse_parts_of_groups


def kind(text: str) -> str | None:
    """One of three answers or none, which random texts give in unequal numbers."""
    return {0: "a", 1: "a", 2: "b", 3: None}[sum(map(ord, text)) % 4]


def votes(gate: float = 0.5) -> Any:
    return majority_reward(kind, lambda texts, rows: [1.0] * len(texts), gate=gate)


def by_counting(texts: list[str], gate: float) -> list[float] | None:
    answers = [kind(text) for text in texts]
    counts = Counter(answer for answer in answers if answer is not None)
    most = max(counts.values(), default=0)
    if most == 0 or most < gate * len(texts):
        return None
    return [float(answer is not None and counts[answer] == most) for answer in answers]


def test_all_rollouts_of_a_prompt_vote_and_who_has_no_majority_teaches_nothing(
    tiny_folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[votes(0.6)])
    recorder = recorded(trainer)
    trainer.train()
    shares, has_reward = [], []
    for batch in recorder.batches:
        texts = [text_of(completion) for completion in batch.completions]
        expected = [by_counting(texts[i : i + 8], 0.6) for i in (0, 8)]
        nobody = [float("nan")] * 8
        found_PN, expected_PN = (
            batch.selection.rewards_PN.double(),
            torch.tensor([each or nobody for each in expected]).double(),
        )
        torch.testing.assert_close(found_PN, expected_PN, rtol=0, atol=0, equal_nan=True)
        advantages = batch.advantages
        for place, advantage in advantages.items():
            if expected[place // 8] is None:
                assert advantage == 0.0
        has_reward += [each is not None for each in expected]
        shares.append(sum(each is None for each in expected) / 2)
    assert len(set(has_reward)) == 2  # else nothing was decided
    assert logged(trainer, "pods/frac_no_reward") == shares
    assert logged(trainer, "majority/frac_right") == [1.0] * 3
    assert "All reward functions returned None" not in caplog.text


def test_refilled_prompts_vote_too(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[votes()], refill_constant_groups=2)
    recorder = recorded(trainer)
    trainer.train()
    assert sum(logged(trainer, "pods/frac_groups_refilled")) > 0
    for batch in recorder.batches:
        texts = [text_of(completion) for completion in batch.completions]
        for i, rewards_N in enumerate(batch.selection.rewards_PN):
            expected = by_counting(texts[8 * i : 8 * i + 8], 0.5) or [float("nan")] * 8
            torch.testing.assert_close(
                rewards_N.double(), torch.tensor(expected).double(), equal_nan=True
            )


def test_without_any_majority_no_weight_moves(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, rewards=[votes(1.0)], max_steps=1)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert logged(trainer, "pods/frac_no_reward") == [1.0]
    after = trainer.model.parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def config(**changes: Any) -> PODSConfig:
    fields = {"output_dir": "x", "num_generations": 4, "per_device_train_batch_size": 8}
    options = {"bf16": False, "use_cpu": True, "num_rollouts": 16}
    return PODSConfig(**{**fields, **options, **changes})


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"early_stop": True, "reward_bounds": [0.0, 1.0]}, 1, "needs early_stop=False"),
        ({"sampling_rounds": 4}, 1, "needs sampling_rounds=0"),
        ({"objective": "sdpo"}, 1, "needs sdpo_segment='fixed'"),
        ({"objective": "bmc", "bmc_bridges": 2}, 1, "needs bmc_bridges=0"),
        ({"objective": "qrpo"}, 1, "another objective than 'qrpo'"),
        ({"per_device_train_batch_size": 6}, 2, "= 6 must be a multiple of num_generations = 4"),
        ({"refill_constant_groups": 1}, 2, "refill_constant_groups=0 with several processes"),
    ],
)
def test_what_would_split_the_vote_is_refused(
    changes: dict[str, Any], processes: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(num_processes=processes)
    monkeypatch.setattr(reward_checks, "PartialState", lambda: state)
    rows = changes.pop("per_device_train_batch_size", 8)
    settings = config(**changes)
    settings.per_device_train_batch_size = rows  # TRL's own check knows one process here
    with pytest.raises(ValueError, match=words) as raised:
        refuse_parts_of_groups(settings, [kind, votes()])
    assert "the reward majority reads all n rollouts" in str(raised.value)
    refuse_parts_of_groups(settings, [kind])  # no reward of groups
    refuse_parts_of_groups(config(), [votes()])


def test_environments_are_refused() -> None:
    host = SimpleNamespace(args=config(), reward_funcs=[votes()], environment_factories={"a": 1})
    with pytest.raises(NotImplementedError, match="leave environment_factory out, or majority"):
        refuse_group_rewards(host)


def test_the_trainer_refuses_it_as_well(tiny_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs sampling_rounds=0"):
        build(tiny_folder, tmp_path, rewards=[votes()], num_rollouts=16, sampling_rounds=4)
