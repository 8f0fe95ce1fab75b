"""What podsrl.verl relies on in verl 0.9.1 and TransferQueue 0.1.11; a new release fails here."""

import inspect
import re
from importlib.metadata import entry_points, version

import pytest
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.models.transformers import monkey_patch
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.v1 import PPOTrainer, agent_loop_tq, trainer_base
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, get_trainer_cls

from podsrl.verl.settings import WHY_NOT
from podsrl.verl.trainer import PodsTrainer

SOURCE = inspect.getsource(monkey_patch.apply_monkey_patch)
MODES = ("sync", "colocate_async", "separate_async")


def test_versions_are_those_that_were_read() -> None:
    assert version("verl").startswith("0.9.") and version("TransferQueue").startswith("0.1.")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (PPOTrainer.__init__, ["self", "config"]),
        (PPOTrainer._fetch_one_gen_batch, ["self"]),
        (
            PPOTrainer._balance_batch,
            ["self", "batch", "metrics", "logging_prefix", "keep_minibatch"],
        ),
        (PPOTrainer._log_rollout_data, ["self", "batch", "timing_raw", "rollout_data_dir"]),
        (PPOTrainer._get_required_batch_multiple, ["self", "dp_size"]),
        (KVBatchMeta.select_keys, ["self", "keys_to_select"]),
        (ReplayBuffer.sample, ["self", "global_steps", "partition_id", "batch_size"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(function: object, parameters: list[str]) -> None:
    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (tq.kv_batch_get, {"keys", "partition_id", "select_fields"}),
        (tq.kv_clear, {"keys", "partition_id"}),
    ],
)
def test_queue(function: object, parameters: set[str]) -> None:
    assert parameters <= inspect.signature(function).parameters.keys()


def test_selection_stands_after_rewards_and_before_every_pass() -> None:
    source = inspect.getsource(PPOTrainer._step_once)
    order = [
        "replay_buffer.sample",
        "_compute_reward_colocate",
        "_balance_batch",
        "_compute_old_log_prob",
        "_compute_ref_log_prob",
        "_compute_advantage",
        "_update_actor",
    ]
    places = [source.index(name) for name in order]
    assert places == sorted(places)
    assert inspect.getsource(trainer_base).count("self._balance_batch(") == 1


def test_agents_read_how_many_sessions_a_prompt_asks_for() -> None:
    source = inspect.getsource(agent_loop_tq)
    assert 'prompt.pop("__rollout_n__"' in source
    assert 'f"{uid}_{session_id}_{i}"' in source
    for name in ('"response_len"', '"seq_len"'):
        assert name in source


def test_prompts_are_fetched_by_the_one_method() -> None:
    source = inspect.getsource(trainer_base)
    assert source.count("next(self.train_dataloader_it)") == 2
    assert inspect.getsource(PPOTrainer._fetch_one_gen_batch).count("next(") == 2


def test_rows_of_a_prompt_are_known_by_what_stands_before_the_first_underscore() -> None:
    """So a uid of ours must not hold one; and the queue's rows are cleared by keys alone."""
    assert 'key.split("_")[0]' in inspect.getsource(ReplayBuffer._materialize_batch)


def test_fit_clears_what_step_returns_and_nothing_else() -> None:
    assert "tq.kv_clear(keys=batch.keys" in inspect.getsource(PPOTrainer.fit)


def test_rollout_n_counts_rows_in_no_place_but_batch_arithmetic() -> None:
    """m is rollout.n: whoever reads it must mean kept rollouts."""
    readers = re.findall(r"def (\w+)|rollout\.n\b", inspect.getsource(trainer_base))
    found, current = set(), ""
    for name in readers:
        current = name or current
        if not name:
            found.add(current)
    assert found == {
        "_get_required_batch_multiple",
        "_compute_advantage",
        "_update_critic",
        "_update_actor",
    }


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_registered_beside_verls_own(mode: str) -> None:
    ours, theirs = get_trainer_cls(f"pods_{mode}"), get_trainer_cls(mode)
    assert issubclass(ours, PodsTrainer) and issubclass(ours, theirs)
    assert ours.base_mode == mode and ours.__mro__.index(PodsTrainer) < ours.__mro__.index(theirs)
    assert sorted(TRAINER_REGISTRY) == sorted([*MODES, *(f"pods_{mode}" for mode in MODES)])


def test_verl_branches_on_literals_of_its_own_modes() -> None:
    source = inspect.getsource(trainer_base)
    compared = set(re.findall(r'trainer_mode [!=]= "(\w+)"', source))
    assert compared == {"sync"}


def test_our_methods_are_nobody_elses() -> None:
    """A mode of verl that overrides what PodsTrainer does would be passed over or pass over us."""
    for mode in MODES:
        own = set(vars(get_trainer_cls(mode)))
        assert not own & {"_fetch_one_gen_batch", "_balance_batch", "_select", "_drop", "pods"}
    mine = {name for name in vars(PodsTrainer) if not name.startswith("__")}
    assert mine & set(dir(PPOTrainer)) == {
        "_fetch_one_gen_batch",
        "_balance_batch",
        "_abc_impl",
    }


def test_estimators_that_are_refused_exist_and_the_others_are_known() -> None:
    known = {estimator.value for estimator in AdvantageEstimator}
    assert set(WHY_NOT) <= known
    assert known - set(WHY_NOT) == {
        "grpo",
        "grpo_vectorized",
        "grpo_passk",
        "rloo",
        "rloo_vectorized",
        "reinforce_plus_plus_baseline",
        "opo",
        "gpg",
        "optimal_token_baseline",
        "tir_optimal_token_baseline",
        "gdpo",
    }


def test_verls_workers_pass_over_trl_1_and_would_end_with_it() -> None:
    """TRL 1.16 stands beside verl here, as after `pip install "podsrl[verl]"`."""
    assert int(version("trl").split(".")[0]) >= 1
    assert monkey_patch.is_trl_available() is False
    (block,) = re.findall(r"if is_trl_available\(\):\n(.*?\n)(?=    [^ ])", SOURCE, re.DOTALL)
    assert "AutoModelForCausalLMWithValueHead" in block
    with pytest.raises(ImportError):
        exec("from trl import AutoModelForCausalLMWithValueHead")


def test_verl_finds_podsrl_by_its_entry_point() -> None:
    (found,) = [point for point in entry_points(group="verl.plugins") if point.name == "podsrl"]
    assert found.value == "podsrl.verl"
