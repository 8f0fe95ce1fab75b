"""`bmc` with rejected rollouts written anew, through the real trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.harness import build, logged, spy
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.objectives.bridging import bridge_starts, num_differing
from podsrl.core.selection import Selector
from podsrl.trl.batch import COMPLETION_IDS, COMPLETIONS, Rollouts
from podsrl.trl.bridges import Bridging, nearest
from podsrl.trl.dialogue import Rewarded
from podsrl.trl.refusals import refuse_arguments, refuse_trainer
from podsrl.trl.twins import twin_of
from podsrl.trl.winners import kept_pairs, pair_of_rows

NAN = float("nan")
BRIDGED = {"objective": "bmc", "bmc_bridges": 4, "max_steps": 2}


def weights(trainer: PODSTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def test_winners_begin_as_their_losers_do_and_differ_less(tiny_folder: str, tmp_path: Path) -> None:
    trainer = build(tiny_folder, tmp_path, **BRIDGED)
    asked: list[tuple[Any, ...]] = []
    bridge = trainer.bridging

    def watched(batch: Any, rollouts: Any, selection: Any) -> Any:
        found = bridge(batch, rollouts, selection)
        asked.append((batch, rollouts, selection, *found))
        return found

    trainer.bridging = watched
    kept_batches = spy(trainer.objective_step, "_kept_batch")
    trainer.train()
    num_bridged = 0
    for (batch, rollouts, selection, new, chosen), (kept, _) in zip(
        asked, kept_batches, strict=True
    ):
        old_ids, new_ids = (each.generated[COMPLETION_IDS] for each in (rollouts, new))
        pairs, tokens = kept_pairs(selection), {"before": 0.0, "after": 0.0}
        for winner, loser in pairs:
            tokens["before"] += num_differing(old_ids[winner], old_ids[loser])
            tokens["after"] += num_differing(new_ids[winner], old_ids[loser])
            assert new_ids[loser] == old_ids[loser]
            if new_ids[winner] == old_ids[winner]:
                continue
            num_bridged += 1
            starts = bridge_starts(old_ids[winner], old_ids[loser], num=4)
            assert any(new_ids[winner][:start] == old_ids[loser][:start] for start in starts)
            assert len(new_ids[winner]) <= 12
            rewards = [each.rewards_PN.flatten()[winner] for each in (selection, chosen)]
            assert rewards[1] >= rewards[0]
            # Scored as it stands there: as TRL scores the whole completion.
            text = new.generated[COMPLETIONS][winner]
            own = [function(completions=[text])[0] for function in trainer.reward_funcs]
            assert rewards[1] == pytest.approx(sum(own))
        for name, total in tokens.items():
            told = batch.metrics[f"objective/bridge_tokens_{name}"].item()
            assert told == pytest.approx(total / len(pairs))
        assert tokens["after"] <= tokens["before"]
        # In the loss each pair is of the rows that it was of before.
        rewards_B = chosen.rewards_PN.flatten()[chosen.kept_rows_B]
        assert kept.rewards_B.sort().values.tolist() == pytest.approx(rewards_B.sort().values)
        numbers = kept.extras["segment_pair"].tolist()
        assert sorted(numbers.count(number) for number in set(numbers)) == [2] * len(pairs)
    assert num_bridged > 0
    assert min(logged(trainer, "objective/num_bridges")) >= 4
    # Mean over the n sampled, though winners stand among those that were chosen from.
    policy = [selection.rewards_PN.mean().item() for _, _, selection, *_ in asked]
    assert logged(trainer, "reward") == pytest.approx(policy)


def test_off_trains_as_without_and_on_resumes(tiny_folder: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "none": {"objective": "bmc", "max_steps": 1},
        "off": {"objective": "bmc", "max_steps": 1, "bmc_bridges": 0},
        "on": {**BRIDGED, "save_strategy": "steps", "save_steps": 1},
    }
    found = {}
    for name, each in options.items():
        trainer = build(tiny_folder, tmp_path / name, **each)
        trainer.train()
        found[name] = weights(trainer)
    assert torch.equal(found["none"], found["off"])
    again = build(tiny_folder, tmp_path / "again", **options["on"])
    again.train(resume_from_checkpoint=str(tmp_path / "on/checkpoint-1"))
    assert torch.equal(weights(again), found["on"])


def dialogue(ids: list[int], reward: float) -> Rewarded:
    rewards_F = torch.tensor([reward])
    return Rewarded({}, "", [9], ids, [1] * len(ids), [], None, rewards_F, reward)


def test_one_group_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 1, 0, 0 and 1: rollout 0 wins over 2, and 3 over 1.

    0 is (1, 2, 3, 4), 2 is (1, 5, 3, 6): stretches from 1 and 3, four tokens differ. Of what is
    written anew (1, 2, 3, 7) has no reward, (1, 5, 8, 9) has 4 differing tokens, no fewer, and
    (1, 5, 3, 8) 2. 3 is (1, 2), 1 is (4, 2): from place 0; nothing of it is right.
    """
    ids = [[1, 2, 3, 4], [4, 2], [1, 5, 3, 6], [1, 2]]
    tails = {(0, 0): [], (2, 1): [dialogue([1, 2, 3, 7], NAN), dialogue([1, 5, 8, 9], 1.0)]}
    tails |= {(2, 3): [dialogue([1, 5, 3, 8], 1.0)], (1, 0): [dialogue([1, 2], 0.0)] * 3}
    asked = []

    def written(self: Bridging, cuts: list[tuple[int, int]], rollouts: Rollouts) -> list[Rewarded]:
        asked.append(list(cuts))
        return [tails[cut].pop(0) for cut in cuts]

    monkeypatch.setattr(Bridging, "_written", written)
    rewards_BF = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    generated = ([[9]] * 4, ids, None, [*"abcd"], None, {}, None, None)
    rollouts = Rollouts([{}] * 4, generated, {}, rewards_BF, prompts=[""] * 4)
    selection = Selector(num_kept=4)(rewards_BF.view(1, 4, 1))
    host = SimpleNamespace(
        args=SimpleNamespace(bmc_bridges=3),
        accelerator=SimpleNamespace(device="cpu", process_index=0),
        _pending_extra_logs={"column": [*"abcd"]},
    )
    batch = SimpleNamespace(metrics={}, first_rewards_PNF=None)
    new, chosen = Bridging(host)(batch, rollouts, selection)
    # i-th highest with i-th lowest: stable order 1, 2, 0, 3 pairs 1 with 3 and 2 with 0.
    assert [sorted(cuts) for cuts in asked] == [[(1, 0)] * 3 + [(2, 1), (2, 1), (2, 3)]]
    assert new.generated[COMPLETION_IDS] == [[1, 5, 3, 8], *ids[1:]]
    assert chosen.rewards_PN.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    assert batch.segments["segment_pair"].tolist() == [2, 1, 2, 1]
    assert host._pending_extra_logs["column"] == [None, *"bcd"]
    assert {name: value.item() for name, value in batch.metrics.items()} == {
        "objective/num_bridges": 6,
        "objective/frac_bridged": 0.5,
        "objective/bridge_tokens_before": (4 + 2) / 2,
        "objective/bridge_tokens_after": (2 + 2) / 2,
    }


def test_the_nearest_and_its_ties() -> None:
    loser = [1, 2, 3]
    one, same = dialogue([1, 2, 4], 1.0), dialogue([1, 2, 5], 2.0)
    assert nearest([one, same], loser, least=1.0, below=3) is one
    assert nearest([one, same], loser, least=2.0, below=3) is same
    assert nearest([one, same], loser, least=1.0, below=2) is None  # both differ in 2
    assert nearest([one], loser, least=1.5, below=9) is None
    assert nearest([], loser, least=0.0, below=9) is None
    assert pair_of_rows([(8, 3)], [3, 5, 8]).tolist() == [3, 5, 3]


def config(**options: Any) -> PODSConfig:
    plain = {"num_generations": 4, "use_cpu": True, "bf16": False}
    return PODSConfig("unused", **{**plain, "objective": "bmc", "bmc_bridges": 2, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bmc_bridges": -1}, "bmc_bridges is -1: choose at least 0"),
        ({"objective": "dpo"}, "bmc_bridges is 2, which has no effect with objective='dpo'"),
        ({"pair_mode": "all"}, "bmc_bridges needs pair_mode='extremes'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "bmc_bridges needs multi_objective_aggregation='sum_then_normalize'",
        ),
        ({"early_stop": True}, "bmc_bridges needs early_stop=False"),
        ({"behaviours": [{"temperature": 1, "share": 1}]}, "bmc_bridges needs behaviours left out"),
        ({"use_vllm": True}, "bmc_bridges needs use_vllm=False"),
        (
            {"use_transformers_continuous_batching": True},
            "bmc_bridges needs use_transformers_continuous_batching=False",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**options)


def test_what_is_sampled_otherwise_is_refused(tiny_folder: str, tmp_path: Path) -> None:
    for name in ("tools", "environment_factory", "rollout_func"):
        with pytest.raises(NotImplementedError, match=f"bmc_bridges goes on .* but {name} samples"):
            refuse_arguments({"args": config(), name: [len]})
    trainer = build(tiny_folder, tmp_path, **BRIDGED)
    trainer.accelerator = SimpleNamespace(num_processes=2, is_main_process=True)
    with pytest.raises(NotImplementedError, match=r"bmc_bridges .* not serve several processes"):
        refuse_trainer(trainer)
    trainer.accelerator.num_processes, trainer._is_vlm = 1, True
    with pytest.raises(NotImplementedError, match=r"bmc_bridges .* models that read images"):
        refuse_trainer(trainer)


def test_bridged_it_is_no_twin_of_dpo() -> None:
    assert twin_of(config(bmc_delta=0.0, bmc_bridges=0)) is not None
    assert twin_of(config(bmc_delta=0.0)) is None
