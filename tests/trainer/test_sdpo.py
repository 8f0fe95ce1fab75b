"""`sdpo` through the real trainer: continuations from the midst of a rollout."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.commands import launch
from helpers.harness import logged, spy
from helpers.turns import Counter, Steady, build_turns, look, roll_out, save_caller
from podsrl import PODSConfig, PODSTrainer
from podsrl.core.selection import Selector
from podsrl.trl import branches
from podsrl.trl.batch import Rollouts
from podsrl.trl.branch_pairs import Pair, best_of, mean_reward, segments_of
from podsrl.trl.branches import Branching
from podsrl.trl.dialogue import Rewarded
from podsrl.trl.refusals import refuse_arguments, refuse_trainer

NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_caller(tmp_path_factory.mktemp("caller"))


def build_segments(folder: str, output: Path, turns: dict[str, Any], **options: Any) -> PODSTrainer:
    settings = {"objective": "sdpo", "max_completion_length": 64, "max_steps": 2, **options}
    return build_turns(folder, output, "", turns=turns, **settings)


@pytest.mark.parametrize(
    "turns",
    [{"environment_factory": Steady}, {"tools": [look], "environment_factory": Steady}],
    ids=["environment", "with a tool"],
)
def test_winners_go_on_from_the_turn_that_went_wrong(
    folder: str, tmp_path: Path, turns: dict[str, Any]
) -> None:
    """Shared up to there token by token; own words and own reward from there; equal turns."""
    trainer = build_segments(folder, tmp_path, turns, sdpo_branches=3)
    found: list[list[Pair]] = []
    branch = trainer.branching._find_winners

    def watched(pairs: list[Pair]) -> None:
        branch(pairs)
        found.append(pairs)

    trainer.branching._find_winners = watched
    kept = spy(trainer, "_generate")
    batches = spy(trainer.objective_step, "_kept_batch")
    trainer.train()
    assert len(found) == len(kept) == len(batches) == 2
    won = [pair for pairs in found for pair in pairs if pair.best]
    assert won and any(pair.num for pair in won)
    for pair in won:
        best, loser = pair.best, pair.dialogue
        start = loser.starts[pair.first]
        assert best.completion_ids[:start] == loser.completion_ids[:start]
        assert (
            best.tool_mask[:start] == loser.tool_mask[:start] and best.starts[pair.first] == start
        )
        assert best.prompt == loser.prompt and best.reward > loser.reward
        assert len(best.completion_ids) == len(best.tool_mask) <= 64
        assert 1 <= pair.num <= min(best.num_turns, loser.num_turns) - pair.first
        # The environment was there with it: it has counted the calls of the whole rollout.
        calls = sum(message["role"] == "tool" for message in best.messages)
        column = trainer.reward_func_names.index("Steady")
        assert best.rewards_F[column] == -calls
    for pairs, (_, ids, masks, completions, *_), (batch, _) in zip(
        found, kept, batches, strict=True
    ):
        for pair in pairs:
            if pair.best:
                place = ids.index(pair.best.completion_ids)
                assert completions[place] == pair.best.messages
                assert masks[place] == pair.best.tool_mask
        assert sorted(batch.rewards_B.tolist()) == pytest.approx(
            sorted(trainer_rewards(trainer, completions))
        )
        rows = batch.extras["segment_num"] > 0
        assert rows.sum() == 2 * sum(pair.num > 0 for pair in pairs)
    assert all(num > 0 for num in logged(trainer, "objective/num_branches"))
    assert sum(logged(trainer, "objective/num_pairs")) > 0


def trainer_rewards(trainer: PODSTrainer, completions: list[Any]) -> list[float]:
    """What the rewards of the harness are of these messages: digits, and calls."""
    calls = [sum(message["role"] == "tool" for message in each) for each in completions]
    digits = trainer.reward_funcs[0](completions=completions)
    return [a - b for a, b in zip(digits, calls, strict=True)]


def test_only_the_segment_has_a_gradient_and_the_policys_rewards_are_its_own(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build_segments(folder, tmp_path, {"environment_factory": Steady}, max_steps=1)
    log_probs, seen = trainer._get_per_token_logps_and_entropies, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = log_probs(*args, **kwargs)
        if found[0].requires_grad:
            found[0].retain_grad()
            seen.append((found[0], dict(trainer._loss_inputs)))
        return found

    trainer._get_per_token_logps_and_entropies = watched
    rewards, with_winners = [], branches.with_winners

    def before(host: Any, rollouts: Rollouts, *chosen: Any) -> Any:
        rewards.append(rollouts.rewards_per_func.clone())
        return with_winners(host, rollouts, *chosen)

    monkeypatch.setattr(branches, "with_winners", before)
    trainer.train()
    ((values, inputs),) = seen
    for row, (first, num) in enumerate(
        zip(inputs["segment_first"].tolist(), inputs["segment_num"].tolist(), strict=True)
    ):
        mask = inputs["tool_mask"][row] * inputs["completion_mask"][row]
        turn = torch.diff(mask, prepend=mask.new_zeros(1)).eq(1).cumsum(0) - 1
        inside = (mask == 1) & (turn >= first) & (turn < first + num)
        assert (values.grad[row][~inside] == 0).all()
        assert bool((values.grad[row][inside] != 0).all())
    assert (values.grad != 0).any()
    # Mean over the n sampled, though winners stand among those that were chosen from.
    expected = rewards[0].double().sum(1).mean().item()
    assert logged(trainer, "reward") == [pytest.approx(expected)]


def test_a_resumed_run_goes_on_as_the_whole_one(folder: str, tmp_path: Path) -> None:
    weights = {}
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "sdpo_branches": 1}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "whole/checkpoint-1"))):
        trainer = build_segments(folder, tmp_path / name, {"tools": [look]}, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        weights[name] = [p.detach().clone() for p in trainer.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*weights.values(), strict=True))


def test_the_same_turns_of_every_pair(folder: str, tmp_path: Path) -> None:
    """The environment may do what it likes, and rollouts may be a function's own."""
    fixed = {"sdpo_segment": "fixed", "sdpo_num_turns": 1, "max_steps": 1}
    for turns in ({"environment_factory": Counter}, {"rollout_func": roll_out}):
        trainer = build_segments(folder, tmp_path, turns, **fixed)
        trainer.train()
        assert logged(trainer, "objective/num_pairs")[0] > 0


class Restless(Steady):
    """Each of its resets says another number."""

    def reset(self, **row: Any) -> str:
        self.num_resets += 1
        return f"{super().reset(**row)}{self.num_resets}"


class Forgetful(Steady):
    """Its answers count all calls that were ever made."""

    def look(self, text: str) -> str:
        """Count a text.

        Args:
            text: the text.
        """
        self.num_resets += 1
        return f"{super().look(text)}{self.num_resets}"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (Restless, "Restless back there: its reset adds other words"),
        (Forgetful, "Forgetful back there: it answers"),
    ],
)
def test_an_environment_that_cannot_be_brought_back_is_refused(
    environment: type, words: str, folder: str, tmp_path: Path
) -> None:
    trainer = build_segments(folder, tmp_path, {"environment_factory": environment})
    with pytest.raises(ValueError, match=words):
        trainer.train()


def dialogue(reward: float, num_turns: int) -> Rewarded:
    mask = [1, 0] * num_turns
    return Rewarded({}, "", [5], [7] * len(mask), mask, [], None, torch.tensor([reward]), reward)


def test_turn_winner_and_segment_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt, rewards 1, 0, 0 and 1 of 1, 4, 2 and 3 turns; two continuations of each state.

    Rollout 1 loses against 3: 1/2 before turn 0 (of all n), then 1, 1/2 and 0, and 0 in the end.
    Of falls -1/2, 1/2, 1/2 and 0 the first largest is turn 1's. The winner from there, of 3 turns,
    has 1/2 after turn 1, which is below 1; turn 2 is its last: two turns. Rollout 2 loses against
    0: 1/2, then 0, and 0: turn 0, over which 0 itself is the winner, with its one turn.
    """
    values = {(4, 1): (1.0, 1.0), (4, 2): (0.0, 1.0), (4, 3): (0.0, 0.0), (2, 1): (0.0, 0.0)}
    values[3, 2] = (1.0, 0.0)
    asked = []

    def continued(self: Branching, dialogues: list[Rewarded], turn: int) -> list[list[Rewarded]]:
        asked.append((turn, [each.num_turns for each in dialogues]))
        return [[dialogue(r, 3) for r in values[each.num_turns, turn]] for each in dialogues]

    monkeypatch.setattr(Branching, "_continue", continued)
    host = SimpleNamespace(
        _metrics={"train": {}},
        _pending_metrics={},
        _pending_extra_logs={"column": [*"abcd"]},
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
    )
    sampled = [dialogue(r, num) for r, num in ((1.0, 1), (0.0, 4), (0.0, 2), (1.0, 3))]
    rewards_BF = torch.tensor([[each.reward] for each in sampled])
    columns = ("prompt_ids", "completion_ids", "tool_mask", "messages")
    generated = [[getattr(each, name) for each in sampled] for name in columns]
    rollouts = Rollouts(
        [{}] * 4, (*generated, None, {}, None, None), {}, rewards_BF, prompts=[""] * 4
    )
    selection = Selector(num_kept=4)(rewards_BF.view(1, 4, 1))
    batch = SimpleNamespace(metrics={}, first_rewards_PNF=None)
    new, chosen = Branching(host)(batch, rollouts, selection)
    assert asked == [(1, [4, 2]), (2, [4]), (3, [4]), (2, [3])]
    assert {name: values.tolist() for name, values in batch.segments.items()} == {
        "segment_pair": [2, 1, 2, 1],
        "segment_first": [0, 1, 0, 1],
        "segment_num": [1, 2, 1, 2],
    }
    assert [len(ids) for ids in new.generated[1]] == [2, 8, 4, 6]
    assert new.generated[1][3] is not rollouts.generated[1][3] and chosen.rewards_PN[0, 3] == 1
    assert host._pending_extra_logs["column"] == ["a", "b", "c", None]
    assert batch.first_rewards_PNF is selection.rewards_per_func_PNF
    told = {name: value.item() for name, value in batch.metrics.items()}
    assert told == {
        "objective/num_branches": 0,  # counted where they are sampled
        "objective/frac_no_segment": 0,
        "objective/segment_first_turn": 0.5,
        "objective/segment_num_turns": 1.5,
    }


def test_means_and_bests_of_continuations() -> None:
    rewards = [dialogue(reward, 2) for reward in (0.5, NAN, 1.0, 1.0)]
    assert mean_reward(rewards) == pytest.approx(2.5 / 3)
    assert mean_reward(rewards[1:2]) != mean_reward(rewards[1:2])
    assert best_of(rewards, above=0.5) is rewards[2]
    assert best_of(rewards, above=1.0) is None and best_of(rewards[1:2], above=-1.0) is None


def test_rows_without_a_segment_are_alone() -> None:
    """Kept are rows 3, 5 and 8; 8 wins over 3 from turn 1 on for two turns."""
    said = {"winning": dialogue(1.0, 3), "dialogue": dialogue(0.0, 3)}
    pair = Pair(winner=8, loser=3, **said, values={}, first=1, num=2)
    found = segments_of([pair], [3, 5, 8])
    assert {name: values.tolist() for name, values in found.items()} == {
        "segment_pair": [3, 5, 3],
        "segment_first": [1, 0, 1],
        "segment_num": [2, 0, 2],
    }


def config(**options: Any) -> PODSConfig:
    plain = {"num_generations": 4, "use_cpu": True, "bf16": False, "objective": "sdpo"}
    return PODSConfig("unused", **{**plain, **options})


def test_without_turns_it_is_refused_before_the_model_loads() -> None:
    words = "'sdpo' compares turns, and without tools, .* 'dpo': pass one"
    with pytest.raises(NotImplementedError, match=words):
        PODSTrainer("no/such-model", len, config())
    refuse_arguments({"args": config(), "tools": [look]})


def test_a_function_that_samples_whole_rollouts_has_fixed_segments() -> None:
    with pytest.raises(NotImplementedError, match="rollout_func from the prompt"):
        refuse_arguments({"args": config(), "rollout_func": roll_out})
    refuse_arguments({"args": config(sdpo_segment="fixed"), "rollout_func": roll_out})


def test_a_function_must_say_what_is_the_models(folder: str, tmp_path: Path) -> None:
    def without_mask(prompts: list, trainer: Any) -> dict[str, Any]:
        output = roll_out(prompts, trainer)
        del output["env_mask"]
        return output

    turns = {"rollout_func": without_mask}
    trainer = build_segments(folder, tmp_path, turns, sdpo_segment="fixed")
    with pytest.raises(ValueError, match="returns no env_mask"):
        trainer.train()


def test_images_are_refused(folder: str, tmp_path: Path) -> None:
    trainer = build_segments(folder, tmp_path, {"tools": [look]})
    trainer._is_vlm = True
    with pytest.raises(NotImplementedError, match="does not serve models that read images"):
        refuse_trainer(trainer)


def test_two_processes_share_the_continuations_of_all_pairs(folder: str, tmp_path: Path) -> None:
    """Both know the pairs of both, and come to the same weights in as many calls of equal size.

    A dialogue of either is continued on either, with an environment that was never the first's.
    Every winner stands in its row on the process that trains on it, with the reward of its calls.
    """
    launch("sdpo_processes.py", folder, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"] and first["pairs"] == second["pairs"]
    won = [pair for pairs in first["pairs"] for pair in pairs if pair["best"]]
    assert won
    for pair in won:
        assert pair["best"][: pair["start"]] == pair["loser"][: pair["start"]]
        assert pair["reward"] > pair["loser_reward"] and pair["rewards"][1] == -pair["num_calls"]
    # Of 32 rollouts each process samples 16, of two prompts.
    rows = [place for pairs in first["pairs"] for pair in pairs for place in pair["rows"]]
    assert {place < 16 for place in rows} == {True, False}
    for step, pairs in enumerate(first["pairs"]):
        for pair in pairs:
            trained = (first if pair["rows"][0] < 16 else second)["kept"][step]
            assert not (pair["best"] and pair["num"]) or pair["best"] in trained
    assert first["continued"] == second["continued"] and sum(first["continued"]) > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sdpo_segment": "best"}, "sdpo_segment is 'best'; choose one of value_drop, fixed"),
        ({"sdpo_branches": 0}, "sdpo_branches is 0: choose at least 1"),
        ({"sdpo_segment": "fixed", "sdpo_branches": 2}, "sdpo_branches is 2, which has no effect"),
        ({"sdpo_first_turn": 0}, "sdpo_first_turn is 0, but sdpo_segment='value_drop' needs"),
        ({"sdpo_num_turns": 1}, "sdpo_num_turns is 1, but sdpo_segment='value_drop'"),
        ({"pair_mode": "all"}, "pair_mode is 'all', but sdpo_segment='value_drop'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "is 'normalize_then_sum', but sdpo",
        ),
        ({"objective": "dpo", "sdpo_branches": 2}, "sdpo_branches is 2, which has no effect"),
        ({"objective": "dpo", "sdpo_segment": "fixed"}, "sdpo_segment is 'fixed', which has no"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**options)


def test_the_objectives_own_values() -> None:
    assert (config().sdpo_segment, config().sdpo_branches) == ("value_drop", 4)
    assert config(sdpo_segment="fixed").sdpo_branches is None
